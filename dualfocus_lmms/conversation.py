"""A conversation with images, as a value. Knows nothing about chat templates or tokens' meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """One turn. `images` open the turn, before its text; `patches` are sub-images that join the last of them
    as further tiles (table 6), without a placeholder of their own in the text. `tokens` are the exact ids
    that a model generated for an assistant turn, so that a later call continues from these and not from a
    re-tokenised copy; None where no model generated the turn."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[Image.Image, ...] = ()
    tokens: tuple[int, ...] | None = None
    patches: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Conversation:
    """Turns of one conversation, user first. `user` and `assistant` return extended copies."""

    turns: tuple[Turn, ...] = ()

    def user(self, text: str, *images: Image.Image, patches: tuple[Image.Image, ...] = ()) -> Conversation:
        return Conversation((*self.turns, Turn("user", text, images, patches=patches)))

    def assistant(self, text: str, tokens: tuple[int, ...] | None = None) -> Conversation:
        return Conversation((*self.turns, Turn("assistant", text, (), tokens)))

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """Every image in order of appearance, patches too."""
        return tuple(image for turn in self.turns for image in (*turn.images, *turn.patches))

    @property
    def patches(self) -> tuple[Image.Image, ...]:
        """The images that are patches of the one before them."""
        return tuple(patch for turn in self.turns for patch in turn.patches)

    def messages(self) -> list[dict[str, Any]]:
        """The form that chat templates of transformers read; images appear as {"type": "image"}."""
        return [
            {
                "role": turn.role,
                "content": [{"type": "image"} for _ in turn.images] + [{"type": "text", "text": turn.text}],
            }
            for turn in self.turns
        ]
