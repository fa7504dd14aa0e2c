"""How a task ends its prompt: options and the answer instruction of LLaVA's evaluations for them."""

from __future__ import annotations

from collections.abc import Sequence

from dualfocus_lmms.tasks.common.letters import letters

LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


def option_lines(options: Sequence[str]) -> str:
    """ "A. cat\\nB. dog" for ["cat", "dog"]."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters(options), options, strict=True))
