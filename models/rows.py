"""The rows of a batch: how far each conversation is read and said, and which tokens of it come next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from dualfocus_lmms.models.drafts import Draft
from dualfocus_lmms.models.kv_cache import Key
from dualfocus_lmms.models.rendering import Rendered
from dualfocus_lmms.types import Limits

HOLE = -1
_AHEAD = 16  # the most tokens of a draft in one forward: each has logits over the whole vocabulary


@dataclass(slots=True)
class Row:
    """One conversation being continued. positions: of every token of the prompt, (axes, L)."""

    rendered: Rendered
    key: Key
    positions: torch.Tensor
    limits: Limits
    encodes: int  # pictures encoded for this row
    draft: Draft = field(default_factory=Draft)
    guesses: tuple[int, ...] = ()  # tokens that are read ahead in this forward
    beyond: bool = False  # whether the last guesses stand for an unknown token and the run behind it
    foreseen: int | None = None  # what the model said behind these
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    done: bool = False
    held: int = 0  # tokens of the prompt and of the reply that the cache holds
    computed: int = 0  # tokens that the language model computed for this row

    @property
    def trunk(self) -> int:
        """Tokens up to the end of the first picture; 0 without one or where nothing follows it."""
        end = sum(self.rendered.spans[0]) if self.rendered.spans else 0
        return end if end < len(self.key) else 0

    @property
    def reached(self) -> Key:
        """What the row's cache holds now."""
        return (self.key + tuple(self.tokens))[: self.held]

    def guess(self) -> None:
        """Choose what to read ahead: never beyond the last token that the limit allows."""
        foreseen, self.foreseen = self.foreseen, None
        self.guesses, self.beyond = (), False
        if self.done:
            return
        run = self.draft.after(self.tokens)
        if run and foreseen is not None:
            run = (*run, foreseen)
        beyond = self.draft.beyond((*self.tokens, *run))
        room = min(self.limits.max_new_tokens - len(self.tokens) - 1, _AHEAD)
        self.guesses = (*run, *beyond)[:room]
        self.beyond = 0 < len(beyond) <= room - len(run)

    def places(self, count: int) -> torch.Tensor:
        """Positions (axes, count) of the tokens after those that the cache holds."""
        known = self.positions[:, self.held : self.held + count]
        first = int(self.positions.max()) + 1 + max(self.held - len(self.key), 0)
        more = torch.arange(first, first + count - known.shape[1])
        return torch.cat([known, more.expand(len(known), -1)], dim=1)

    def images(self, count: int) -> list[Image.Image]:
        """The pictures that begin among the next `count` tokens."""
        spans = zip(self.rendered.images, self.rendered.spans, strict=True)
        return [image for image, (start, _) in spans if self.held <= start < self.held + count]


@dataclass(frozen=True, slots=True)
class Block:
    """Columns of one forward: of each row the tokens that come next, filled up with holes on the right.

    ids (B, S) and positions (axes, B, S) on the CPU. images: the pictures among the tokens of each row.
    mark: who sees the tokens, see `Kept`.
    """

    rows: Sequence[Row]
    ids: torch.Tensor
    positions: torch.Tensor
    images: list[list[Image.Image]]
    mark: int

    @classmethod
    def of(cls, rows: Sequence[Row], fed: Sequence[Sequence[int]], mark: int) -> Block:
        """The columns of `fed`; the rows count them as held from now on."""
        width = max(len(tokens) for tokens in fed)
        ids = torch.full((len(rows), width), HOLE)
        positions = torch.zeros(len(rows[0].positions), len(rows), width, dtype=torch.long)
        images = []
        for number, (row, tokens) in enumerate(zip(rows, fed, strict=True)):
            count = len(tokens)
            ids[number, :count] = torch.tensor(tokens, dtype=torch.long)
            positions[:, number, :count] = row.places(count)
            images.append(row.images(count))
            row.held += count
            row.computed += count
        return cls(rows, ids, positions, images, mark)

    @property
    def marks(self) -> torch.Tensor:
        """(B, S): `mark`, or 0 for a hole."""
        return (self.ids != HOLE) * self.mark

    def ends(self) -> torch.Tensor:
        """Columns (B, 1 + guesses) of each row's last token before its guesses, and of these; where a row has
        fewer than another the last one again."""
        lasts = (self.ids != HOLE).sum(1) - 1  # (B,)
        most = max(len(row.guesses) for row in self.rows)
        firsts = lasts - torch.tensor([len(row.guesses) for row in self.rows])
        return (firsts[:, None] + torch.arange(1 + most)).minimum(lasts[:, None]).clamp(min=0)


# What is said at the same time of the same B rows, by the mark of its tokens.
Branches = Mapping[int, Sequence[Row]]
