"""Which answer each rule gives, ties and margins."""

from __future__ import annotations

import pytest

from dualfocus_lmms import Answer
from dualfocus_lmms.plugins import load_rule
from dualfocus_lmms.selection import select
from dualfocus_lmms.types import JointScores, Scores


def answer(pathway, *logprobs: float, ended: bool = False) -> Answer:
    return Answer(pathway, f"the {pathway} one", tuple(range(len(logprobs) - ended)), logprobs, ended)


@pytest.mark.parametrize(
    ("rule", "macro", "micro", "expected"),
    [
        ("ppl", (-0.1,), (-0.2,), "macro"),
        ("ppl", (-0.2,), (-0.1,), "micro"),
        ("ppl", (-0.2,), (-0.2,), "micro"),  # eq. 8: a tie goes to micro
        ("ppl", (0.0,), (0.0,), "micro"),
        ("ppl_tie_macro", (-0.1,), (-0.2,), "macro"),
        ("ppl_tie_macro", (-0.2,), (-0.1,), "micro"),
        ("ppl_tie_macro", (-0.2,), (-0.2,), "macro"),
        # the mean, whatever the length
        ("ppl", (-0.1, -0.1, -0.1, -0.1), (-0.2,), "macro"),
        ("ppl", (-0.1, -0.5), (-0.2,), "micro"),
        # beyond any float, the logarithms still differ
        ("ppl", (-800.0,), (-900.0,), "macro"),
        ("ppl", (-900.0,), (-800.0,), "micro"),
        ("macro", (-9.0,), (-0.1,), "macro"),
        ("micro", (-0.1,), (-9.0,), "micro"),
    ],
)
def test_rules(rule: str, macro: tuple[float, ...], micro: tuple[float, ...], expected: str) -> None:
    chosen = select(rule, load_rule(rule), answer("macro", *macro), answer("micro", *micro), False)
    assert (chosen.pathway, chosen.text, chosen.rule) == (expected, f"the {expected} one", rule)
    assert chosen.margin == pytest.approx(-sum(micro) / len(micro) + sum(macro) / len(macro))


@pytest.mark.parametrize("rule", ["ppl", "ppl_tie_macro"])
def test_the_closing_token_can_decide(rule: str) -> None:
    macro, micro = answer("macro", -0.2, -0.1, ended=True), answer("micro", -0.1, -0.9, ended=True)
    without = select(rule, load_rule(rule), macro, micro, count_eos=False)
    counted = select(rule, load_rule(rule), macro, micro, count_eos=True)
    assert (without.pathway, without.margin) == ("micro", pytest.approx(0.1 - 0.2))
    assert (counted.pathway, counted.margin) == ("macro", pytest.approx(0.5 - 0.15))


@pytest.mark.parametrize("rule", ["ppl", "ppl_tie_macro", "macro", "micro", "release", "micro_context"])
def test_without_a_micro_answer(rule: str) -> None:
    chosen = select(rule, load_rule(rule), answer("macro", -9.0), None, False)
    assert (chosen.pathway, chosen.text, chosen.rule, chosen.margin) == ("macro", "the macro one", rule, None)


@pytest.mark.parametrize(
    ("rule", "macro", "micro", "count_eos", "expected", "margin"),
    [
        ("release", ((-0.4, -0.2), (-0.3,)), ((-0.4, -0.6), (-0.1,)), True, "macro", 1.1 / 3 - 0.9 / 3),
        ("release", ((-0.4, -0.2), (-0.3,)), ((-0.4, -0.1), (-0.9,)), True, "macro", 1.4 / 3 - 0.9 / 3),
        ("release", ((-0.4, -0.2), (-0.3,)), ((-0.4, -0.1), (-0.9,)), False, "micro", 0.25 - 0.3),
        ("release", ((-0.5,), (-0.5,)), ((-0.5, -0.5), (-0.5,)), True, "macro", 0),
        ("micro_context", ((-0.5,), (-0.5,)), ((-0.5, -0.5), (-0.5,)), True, "micro", 0),
        ("micro_context", ((-0.5,), ()), ((-0.25,), (-9.0,)), False, "micro", -0.25),
        ("micro_context", ((-0.5,), ()), ((-0.25,), (-9.0,)), True, "macro", 9.25 / 2 - 0.5),
    ],
)
def test_scores_under_one_context_decide(rule, macro, micro, count_eos, expected, margin) -> None:
    """Whatever the answers' own log-probabilities are."""
    judged = JointScores(rule, Scores("x", *macro), Scores("y", *micro))
    for own in ((-0.1,), (-9.0,)):
        answers = answer("macro", *own), answer("micro", -1.0)
        chosen = select(rule, load_rule(rule), *answers, count_eos, judged)
        assert (chosen.pathway, chosen.text, chosen.rule) == (expected, f"the {expected} one", rule)
        assert chosen.margin == pytest.approx(margin)


@pytest.mark.parametrize("winner", ["macro", "micro"])
def test_a_pathway_can_win_without_scores(winner) -> None:
    judged = JointScores("release", winner=winner)
    answers = answer("macro", -1.0), answer("micro", -1.0)
    chosen = select("release", load_rule("release"), *answers, True, judged)
    assert (chosen.pathway, chosen.text, chosen.margin) == (winner, f"the {winner} one", None)


@pytest.mark.parametrize("judged", [None, JointScores("micro_context", winner="macro")])
def test_scores_of_another_rule_are_none(judged) -> None:
    with pytest.raises(ValueError, match="release"):
        select("release", load_rule("release"), answer("macro", -1.0), answer("micro", -1.0), True, judged)
