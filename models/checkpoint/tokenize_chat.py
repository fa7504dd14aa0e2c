"""From a conversation to token ids, for every engine and for training alike. Knows nothing about weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from dualfocus_lmms.conversation import Conversation, Turn
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.checkpoint.chat_template import ChatTemplate, apply_template, choose_template
from dualfocus_lmms.reasoning import is_empty

_ANCHORS = ("\n", "a", "1")

# How many placeholders stand for an image, or the very ids that do where they are not all the same.
ImageIds = Callable[[Image.Image], "int | Sequence[int]"]


@dataclass(frozen=True, eq=False, slots=True)
class Rendered:
    """Token ids of a conversation up to the point where the model generates.

    ids: with the ids of every image in its place. spans: (start, length) of each image, in order.
    replies: (start, length) of each assistant turn, in order.
    """

    ids: tuple[int, ...]
    images: tuple[Image.Image, ...]
    spans: tuple[tuple[int, int], ...] = field(default=())
    replies: tuple[tuple[int, int], ...] = field(default=())


class Renderer:
    """Applies a chat template: the one given, else what `choose_template` takes of tokenizer and family.

    image_token_id: what the template writes once for every image.
    """

    def __init__(
        self, tokenizer: Any, family: Family, image_token_id: int, template: ChatTemplate | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._image_token_id = image_token_id
        self._image_token = tokenizer.convert_ids_to_tokens(image_token_id)
        self.template = template or choose_template(tokenizer, family, [self._image_token])
        bos = tokenizer.bos_token_id
        self._adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]

    def render(self, conversation: Conversation, image_ids: ImageIds) -> Rendered:
        """Ids of `conversation` followed by the opening of an assistant turn.

        Assistant turns appear with exactly the tokens they carry, without any with those of `reply`; the
        text around them is tokenised as it was when they were generated.
        """
        ids: list[int] = []
        replies = []
        for position, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                reply = self.reply(turn.text) if turn.tokens is None else turn.tokens
                ids += self._tokens(self._text(conversation.turns[:position]), first=not ids)
                replies.append((len(ids), len(reply)))
                ids += reply
        ids += self._tokens(self._text(conversation.turns), first=not ids)
        return self._expand(ids, replies, conversation, image_ids)

    def reply(self, text: str) -> tuple[int, ...]:
        """Ids of `text` as a model generates it: after the opening of its turn, without the closing token."""
        stripped = text.strip()
        return tuple(self.continuation(self._blank + stripped)) if stripped else ()

    @cached_property
    def _blank(self) -> str:
        """What stands between the opening of an assistant turn and its text: a blank, or nothing."""
        question, marker = Conversation().user("?"), "\ue000\ue001"
        opened = self._template_text(question, open_turn=True)
        replied = self._template_text(question.assistant(marker), open_turn=False).partition(marker)[0]
        if opened.startswith(replied) and is_empty(opened[len(replied) :]):
            return ""  # only the turn that is opened says that nothing is to be thought
        if not replied.startswith(opened):
            raise UserError(
                f"The chat template opens an assistant turn with {opened[-20:]!r} before a reply and with "
                f"{replied[-20:]!r} around one: a reply cannot be put back where it was generated."
            )
        return replied[len(opened) :]

    @cached_property
    def closing_ids(self) -> frozenset[int]:
        """The special token by which the template closes a reply; none where other text closes it."""
        question, marker = Conversation().user("?"), "\ue000\ue001"
        after = self._template_text(question.assistant(marker), open_turn=False).partition(marker)[2]
        ids = self.continuation(after.lstrip()) if after.strip() else []
        added = self._tokenizer.added_tokens_decoder.items()
        special = {token for token, about in added if about.special} | {*self._tokenizer.all_special_ids}
        return frozenset(ids[:1]) & special

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
        return apply_template(self._tokenizer, self.template.text, conversation, open_turn)

    def _tokens(self, text: str, first: bool) -> list[int]:
        """Ids of a piece of text; a piece that is not the first continues a text and opens with no blank."""
        if first:
            ids = self._tokenizer(text, add_special_tokens=False).input_ids
            bos = self._tokenizer.bos_token_id
            return [bos, *ids] if self._adds_bos and ids[:1] != [bos] else ids
        return self.continuation(text)

    def continuation(self, text: str) -> list[int]:
        """Ids of `text` as it stands after other text, without the blank that some tokenizers put first."""
        for before in _ANCHORS:
            anchor = self._tokenizer(before, add_special_tokens=False).input_ids
            ids: list[int] = self._tokenizer(before + text, add_special_tokens=False).input_ids
            if ids[: len(anchor)] == anchor:  # not merged with what follows
                return ids[len(anchor) :]
        raise UserError(f"The tokenizer joins {text[:20]!r} with any text before it: a turn cannot begin so.")

    def _expand(
        self,
        ids: Sequence[int],
        replies: Sequence[tuple[int, int]],
        conversation: Conversation,
        image_ids: ImageIds,
    ) -> Rendered:
        """The placeholder of each image becomes the image's ids."""
        images = conversation.images
        patches = {id(patch) for patch in conversation.patches}
        found = sum(token == self._image_token_id for token in ids)
        expected = len(images) - len(patches)
        if found != expected:
            raise UserError(
                f"The rendered prompt has {found} image placeholders for {expected} images: the text of a "
                f"question must not contain {self._image_token!r}, got {conversation.turns[-1].text[:200]!r}."
            )
        expanded: list[int] = []
        spans, starts = [], []
        waiting = deque(images)
        for token in ids:
            starts.append(len(expanded))
            if token != self._image_token_id:
                expanded.append(token)
                continue
            group = [waiting.popleft()]
            while waiting and id(waiting[0]) in patches:
                group.append(waiting.popleft())
            for image in group:
                given = image_ids(image)
                placeholders = [token] * given if isinstance(given, int) else given
                spans.append((len(expanded), len(placeholders)))
                expanded += placeholders
        starts.append(len(expanded))
        moved = tuple((starts[start], length) for start, length in replies)
        return Rendered(tuple(expanded), images, tuple(spans), moved)
