"""A conversation with pictures, as a value. Knows nothing about chat templates or tokens' meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """One turn. `images` open the turn, before its text. `tokens` are the exact ids a model generated for an
    assistant turn, so that a later call continues from what was said and not from a re-tokenised copy; None
    where no model said it."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[Image.Image, ...] = ()
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Conversation:
    """Turns of one conversation, user first. `user` and `assistant` return extended copies."""

    turns: tuple[Turn, ...] = ()

    def user(self, text: str, *images: Image.Image) -> Conversation:
        return Conversation((*self.turns, Turn("user", text, images)))

    def assistant(self, text: str, tokens: tuple[int, ...] | None = None) -> Conversation:
        return Conversation((*self.turns, Turn("assistant", text, (), tokens)))

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """Every picture in order of appearance."""
        return tuple(image for turn in self.turns for image in turn.images)

    def messages(self) -> list[dict[str, Any]]:
        """The form that chat templates of transformers read; pictures appear as {"type": "image"}."""
        return [
            {
                "role": turn.role,
                "content": [{"type": "image"} for _ in turn.images] + [{"type": "text", "text": turn.text}],
            }
            for turn in self.turns
        ]
