"""CircularEval, MMBench's score: a question is correct when it is correct in every rotation of its options.

No judge model: a reply that names no option, or two, is wrong (see `letters.read_letter`). Pure functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import isnan
from typing import Any, TypedDict

from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common.letters import read_letter
from dualfocus_lmms.tasks.common.uncertainty import circular_error


class Turn(TypedDict):
    """One rotation of one question. rotation: 0 is the unrotated one; rotations: how many there should be."""

    question: int
    rotation: int
    rotations: int
    right: bool


def mmbench_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the metrics, over all and in the question's ability.

    vanilla_*, the plain accuracy, counts the unrotated question only. Where the ability is None (not known),
    there are only the metrics over all.
    """
    turn = Turn(
        question=doc["question_id"],
        rotation=doc["rotation"],
        rotations=len(doc["options"]),
        right=read_letter(results[0], doc["options"]) == doc["answer"],
    )
    ability = doc["ability"]
    names = ["circular_accuracy", *([] if ability is None else [f"circular_{ability}"])]
    metrics: dict[str, Any] = {
        **dict.fromkeys(names, turn),
        **dict.fromkeys((f"{name}_stderr" for name in names), turn),
        "incomplete_questions": turn,
        FINGERPRINT: doc[FINGERPRINT],
    }
    if turn["rotation"] == 0:
        score = 100.0 if turn["right"] else 0.0
        metrics |= {name.replace("circular", "vanilla"): score for name in names}
    return metrics


def circular(turns: Sequence[Turn]) -> float:
    """Share of the questions, 0 to 100, that are correct in each of their turns.

    As in the official evaluator, a question counts if it has an unrotated turn, and where some of its other
    turns are missing, the rest decide. `incomplete` counts both cases. 0 when there is no question.
    """
    questions = _counted(turns)
    correct = sum(all(turn["right"] for turn in own) for own in questions)
    return 100.0 * correct / len(questions) if questions else 0.0


def circular_stderr(turns: Sequence[Turn]) -> float | str:
    """The standard error of `circular`, drawn by question; "N/A", the host's word, for a single question."""
    counted = [turn for own in _counted(turns) for turn in own]
    scores = [100.0 if turn["right"] else 0.0 for turn in counted]
    error = circular_error(scores, [turn["question"] for turn in counted])
    return "N/A" if isnan(error) else error


def incomplete(turns: Sequence[Turn]) -> int:
    """How many questions lack one of their rotations: CircularEval is too high, or does not count them."""
    return sum(len(own) < own[0]["rotations"] for own in _by_question(turns))


def _counted(turns: Sequence[Turn]) -> list[list[Turn]]:
    """The turns of each question that has an unrotated one."""
    return [own for own in _by_question(turns) if any(turn["rotation"] == 0 for turn in own)]


def _by_question(turns: Sequence[Turn]) -> list[list[Turn]]:
    questions = defaultdict(list)
    for turn in turns:
        questions[turn["question"]].append(turn)
    return list(questions.values())
