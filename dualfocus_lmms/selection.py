"""Selection rules: each takes the macro and the micro answer and returns the one to give.

A rule of your own is one function, registered as an entry point of the group `dualfocus_lmms.rules`.
"""

from __future__ import annotations

from collections.abc import Callable

from dualfocus_lmms.types import Answer, Selection

Rule = Callable[[Answer, Answer, bool], Answer]


def ppl(macro: Answer, micro: Answer, count_eos: bool) -> Answer:
    """Eq. 8: macro where its perplexity is strictly lower, else micro, so that a tie goes to micro."""
    return macro if macro.nll(count_eos) < micro.nll(count_eos) else micro


def ppl_tie_macro(macro: Answer, micro: Answer, count_eos: bool) -> Answer:
    """The release's tie rule: micro where its perplexity is strictly lower, else macro."""
    return micro if micro.nll(count_eos) < macro.nll(count_eos) else macro


def macro(macro: Answer, micro: Answer, count_eos: bool) -> Answer:
    """Always the answer from the whole image."""
    return macro


def micro(macro: Answer, micro: Answer, count_eos: bool) -> Answer:
    """Always the answer from the zoomed region."""
    return micro


def select(rule_name: str, rule: Rule, macro: Answer, micro: Answer | None, count_eos: bool) -> Selection:
    """Apply `rule`; without a micro answer (skipped, or no readable box) the answer is macro."""
    if micro is None:
        return Selection("macro", macro.text, rule_name)
    chosen = rule(macro, micro, count_eos)
    margin = micro.nll(count_eos) - macro.nll(count_eos)
    return Selection(chosen.pathway, chosen.text, rule_name, margin)
