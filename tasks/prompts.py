"""The answer instructions of LLaVA's evaluations, which every task here ends its prompt with."""

from __future__ import annotations

from collections.abc import Sequence

from dualfocus_lmms.tasks.scoring import letters

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


def option_lines(options: Sequence[str]) -> str:
    """ "A. cat\\nB. dog" for ["cat", "dog"]."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters(options), options, strict=True))
