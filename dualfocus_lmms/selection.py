"""Selection rules: each takes the macro and the micro answer and returns the final one.

A rule of your own is one function, registered as an entry point of the group `dualfocus_lmms.rules`. The
rules that compare both answers under one context are in `joint_rules`, those with fitted numbers in
`calibrated`.
"""

from __future__ import annotations

from collections.abc import Callable

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.calibrated import CalibratedRule, Case
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.types import Answer, JointScores, Selection

Rule = Callable[[Answer, Answer, bool], Answer] | JointRule | CalibratedRule


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


def select(
    rule_name: str,
    rule: Rule,
    macro: Answer,
    micro: Answer | None,
    count_eos: bool,
    judged: JointScores | None = None,
    box: Box | None = None,
) -> Selection:
    """Apply `rule`; without a micro answer (skipped, or no readable box) the answer is macro.

    judged: what a `JointRule` compares. ValueError where that rule is given none of its own. box: the located
    region, which a `CalibratedRule` may look at.
    """
    if micro is None:
        return Selection("macro", macro.text, rule_name)
    if isinstance(rule, JointRule):
        if judged is None or judged.rule != rule_name:
            raise ValueError(f"The rule {rule_name} compares scores that were not computed.")
        return _select_joint(rule, macro, micro, count_eos, judged)
    if isinstance(rule, CalibratedRule):
        compared = rule.choice.compare(Case(macro, micro, box, count_eos))
        chosen = macro if compared[0] < compared[1] else micro
        return Selection(chosen.pathway, chosen.text, rule_name, compared[1] - compared[0], compared)
    chosen = rule(macro, micro, count_eos)
    margin = micro.nll(count_eos) - macro.nll(count_eos)
    return Selection(chosen.pathway, chosen.text, rule_name, margin)


def _select_joint(
    rule: JointRule, macro: Answer, micro: Answer, count_eos: bool, judged: JointScores
) -> Selection:
    margin, compared, pathway = None, None, judged.winner
    if judged.macro is not None and judged.micro is not None:
        compared = judged.macro.nll(count_eos), judged.micro.nll(count_eos)
        margin = compared[1] - compared[0]
        pathway = rule.tie if margin == 0 else "micro" if margin < 0 else "macro"
    chosen = micro if pathway == "micro" else macro
    return Selection(chosen.pathway, chosen.text, judged.rule, margin, compared)
