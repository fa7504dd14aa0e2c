"""From a conversation to token ids, for every engine and for training alike. Knows nothing about weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from dualfocus_lmms.conversation import Conversation, Turn
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.family import Family

_ANCHOR = "\n"


@dataclass(frozen=True, eq=False, slots=True)
class Rendered:
    """Token ids of a conversation up to the point where the model speaks.

    ids: with one placeholder id for every image token. spans: (start, length) of each image, in order.
    replies: (start, length) of each assistant turn, in order.
    """

    ids: tuple[int, ...]
    images: tuple[Image.Image, ...]
    spans: tuple[tuple[int, int], ...] = field(default=())
    replies: tuple[tuple[int, int], ...] = field(default=())


class Renderer:
    """Applies the tokenizer's chat template, or the family's when the tokenizer brings none."""

    def __init__(self, tokenizer: Any, family: Family, image_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template or family.chat_template
        self._image_token_id = image_token_id
        self._image_token = tokenizer.convert_ids_to_tokens(image_token_id)
        bos = tokenizer.bos_token_id
        self._adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]

    def render(self, conversation: Conversation, image_length: Callable[[Image.Image], int]) -> Rendered:
        """Ids of `conversation` followed by the opening of an assistant turn.

        image_length gives the number of tokens of an image. Assistant turns appear with exactly the tokens
        they carry, without any with those of `reply`; the text around them is tokenised as it was when they
        were generated.
        """
        ids: list[int] = []
        replies = []
        for position, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                said = self.reply(turn.text) if turn.tokens is None else turn.tokens
                ids += self._tokens(self._text(conversation.turns[:position]), first=not ids)
                replies.append((len(ids), len(said)))
                ids += said
        ids += self._tokens(self._text(conversation.turns), first=not ids)
        return self._expand(ids, replies, conversation.images, image_length)

    def reply(self, text: str) -> tuple[int, ...]:
        """Ids of `text` as a model says it: after the opening of its turn, the closing token left out."""
        said = text.strip()
        return tuple(self.continuation(self._blank + said)) if said else ()

    @cached_property
    def _blank(self) -> str:
        """What stands between the opening of an assistant turn and its text: a blank, or nothing."""
        asked, marker = Conversation().user("?"), "\ue000\ue001"
        opened = self._template_text(asked, open_turn=True)
        said = self._template_text(asked.assistant(marker), open_turn=False).partition(marker)[0]
        if not said.startswith(opened):
            raise UserError(
                f"The chat template opens an assistant turn with {opened[-20:]!r} before it is said and with "
                f"{said[-20:]!r} after: what a model says cannot be found in it again."
            )
        return said[len(opened) :]

    def _text(self, turns: Sequence[Turn]) -> str:
        """The rendered text after the last assistant turn."""
        marker = f"\ue000{len(turns)}\ue001"
        spoken = [position for position, turn in enumerate(turns) if turn.role == "assistant"]
        marked = [
            Turn(turn.role, marker, turn.images) if spoken and position == spoken[-1] else turn
            for position, turn in enumerate(turns)
        ]
        return self._template_text(Conversation(tuple(marked)), open_turn=True).split(marker)[-1]

    def _template_text(self, conversation: Conversation, open_turn: bool) -> str:
        return self._tokenizer.apply_chat_template(
            conversation.messages(),
            chat_template=self._template,
            add_generation_prompt=open_turn,
            tokenize=False,
        )

    def _tokens(self, text: str, first: bool) -> list[int]:
        """Ids of a piece of text; a piece that is not the first continues a text and opens with no blank."""
        if first:
            ids = self._tokenizer(text, add_special_tokens=False).input_ids
            bos = self._tokenizer.bos_token_id
            return [bos, *ids] if self._adds_bos and ids[:1] != [bos] else ids
        return self.continuation(text)

    def continuation(self, text: str) -> list[int]:
        """Ids of `text` as it stands after other text, without the blank that some tokenizers put first."""
        anchor = self._tokenizer(_ANCHOR, add_special_tokens=False).input_ids
        ids: list[int] = self._tokenizer(_ANCHOR + text, add_special_tokens=False).input_ids
        return ids[len(anchor) :]

    def _expand(
        self,
        ids: Sequence[int],
        replies: Sequence[tuple[int, int]],
        images: tuple[Image.Image, ...],
        image_length: Callable[[Image.Image], int],
    ) -> Rendered:
        """One placeholder for each image becomes one for each of its tokens."""
        found = sum(token == self._image_token_id for token in ids)
        if found != len(images):
            raise UserError(
                f"The rendered prompt has {found} image placeholders for {len(images)} images: "
                f"the text of a question must not contain {self._image_token!r}."
            )
        expanded: list[int] = []
        spans, starts = [], []
        waiting = iter(images)
        for token in ids:
            starts.append(len(expanded))
            length = 1
            if token == self._image_token_id:
                length = image_length(next(waiting))
                spans.append((len(expanded), length))
            expanded += [token] * length
        starts.append(len(expanded))
        moved = tuple((starts[start], length) for start, length in replies)
        return Rendered(tuple(expanded), images, tuple(spans), moved)
