"""The rows of a batch: how much of each conversation is cached, and which of its tokens come next.

Two rows, the first with five tokens in its prompt and the second with three. Nothing is cached yet:

>>> from dualfocus_lmms.models.engines.kv_cache import SHARED
>>> def row(*ids):
...     return Row(Rendered(ids, ()), ids, torch.arange(len(ids))[None], StopCriteria(8), encodes=0)
>>> rows = [row(11, 12, 13, 14, 15), row(21, 22, 23)]

The block for the prompts is padded on the right. A pad is a hole: its branch_id is 0, so no token attends to
it, and its position does not matter.

>>> block = InputBlock.of(rows, [one.key for one in rows], branch_id=SHARED)
>>> block.ids.tolist()
[[11, 12, 13, 14, 15], [21, 22, 23, -1, -1]]
>>> block.branch_ids.tolist()
[[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
>>> block.positions.tolist()  # (axes, B, S), one axis here
[[[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]]
>>> block.ends().tolist()  # the column whose logits give each row's next token
[[4], [2]]

The model's next tokens are 16 and 24, and the first row's draft expects 17 after 16. The next block has both;
positions go on from each row's own length, not from the padded width:

>>> rows[0].tokens, rows[0].draft_tokens, rows[1].tokens = [16], (17,), [24]
>>> block = InputBlock.of(rows, [(16, 17), (24,)], branch_id=SHARED)
>>> block.ids.tolist(), block.positions.tolist()
([[16, 17], [24, -1]], [[[5, 6], [3, 0]]])
>>> block.ends().tolist()  # two logits for the first row; the second row has no draft and repeats its one
[[0, 1], [0, 0]]
>>> [one.cached for one in rows]
[7, 4]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from dualfocus_lmms.models.checkpoint.tokenize_chat import Rendered
from dualfocus_lmms.models.engines.drafts import Draft
from dualfocus_lmms.models.engines.kv_cache import PrefixKey
from dualfocus_lmms.types import StopCriteria

PAD = -1  # the id of a hole
_MOST_DRAFTED = 16  # draft tokens in one forward at most: each has logits over the whole vocabulary


@dataclass(slots=True)
class Row:
    """One conversation being continued. positions (axes, L): of every token of the prompt."""

    rendered: Rendered
    key: PrefixKey
    positions: torch.Tensor
    limits: StopCriteria
    encodes: int  # images encoded for this row
    draft: Draft = field(default_factory=Draft)
    draft_tokens: tuple[int, ...] = ()  # what this forward computes before the model has chosen it
    past_gap: bool = False  # whether the last of them are a token of a gap and the run after it
    lookahead: int | None = None  # the model's choice after these, although they were not all correct
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    done: bool = False
    cached: int = 0  # tokens of the prompt and of the reply that are in the cache
    computed: int = 0  # tokens that the language model computed for this row

    @property
    def trunk(self) -> int:
        """Tokens up to the end of the first image; 0 without one or where nothing follows it."""
        end = sum(self.rendered.spans[0]) if self.rendered.spans else 0
        return end if end < len(self.key) else 0

    @property
    def cached_key(self) -> PrefixKey:
        """The tokens that are in the row's cache now."""
        return (self.key + tuple(self.tokens))[: self.cached]

    def propose(self) -> None:
        """Set the draft tokens of the next forward: never more than the limit still allows."""
        lookahead, self.lookahead = self.lookahead, None
        self.draft_tokens, self.past_gap = (), False
        if self.done:
            return
        run = self.draft.after(self.tokens)
        if run and lookahead is not None:
            run = (*run, lookahead)
        past_gap = self.draft.past_gap((*self.tokens, *run))
        allowed = min(self.limits.max_new_tokens - len(self.tokens) - 1, _MOST_DRAFTED)
        self.draft_tokens = (*run, *past_gap)[:allowed]
        self.past_gap = 0 < len(past_gap) <= allowed - len(run)

    def next_positions(self, count: int) -> torch.Tensor:
        """Positions (axes, count) of the tokens after those in the cache."""
        known = self.positions[:, self.cached : self.cached + count]
        first = int(self.positions.max()) + 1 + max(self.cached - len(self.key), 0)
        more = torch.arange(first, first + count - known.shape[1])
        return torch.cat([known, more.expand(len(known), -1)], dim=1)

    def images(self, count: int) -> list[Image.Image]:
        """The images that begin among the next `count` tokens."""
        spans = zip(self.rendered.images, self.rendered.spans, strict=True)
        return [image for image, (start, _) in spans if self.cached <= start < self.cached + count]


@dataclass(frozen=True, slots=True)
class InputBlock:
    """Columns of one forward: the next tokens of each row, padded on the right with holes.

    ids (B, S) and positions (axes, B, S) on the CPU. images: those that begin among the tokens of each row.
    branch_id: to whom the tokens are visible, see `PrefixCache`.
    """

    rows: Sequence[Row]
    ids: torch.Tensor
    positions: torch.Tensor
    images: list[list[Image.Image]]
    branch_id: int

    @classmethod
    def of(cls, rows: Sequence[Row], next_tokens: Sequence[Sequence[int]], branch_id: int) -> InputBlock:
        """The columns of each row's `next_tokens`; from now on the rows count them as cached."""
        width = max(len(tokens) for tokens in next_tokens)
        ids = torch.full((len(rows), width), PAD)
        positions = torch.zeros(len(rows[0].positions), len(rows), width, dtype=torch.long)
        images = []
        for number, (row, tokens) in enumerate(zip(rows, next_tokens, strict=True)):
            count = len(tokens)
            ids[number, :count] = torch.tensor(tokens, dtype=torch.long)
            positions[:, number, :count] = row.next_positions(count)
            images.append(row.images(count))
            row.cached += count
            row.computed += count
        return cls(rows, ids, positions, images, branch_id)

    @property
    def branch_ids(self) -> torch.Tensor:
        """(B, S): `branch_id`, or 0 for a hole."""
        return (self.ids != PAD) * self.branch_id

    def ends(self) -> torch.Tensor:
        """Columns (B, 1 + drafted) of each row's last token before its draft tokens, and of these; a row with
        fewer draft tokens than another repeats its last column."""
        lasts = (self.ids != PAD).sum(1) - 1  # (B,)
        most = max(len(row.draft_tokens) for row in self.rows)
        firsts = lasts - torch.tensor([len(row.draft_tokens) for row in self.rows])
        return (firsts[:, None] + torch.arange(1 + most)).minimum(lasts[:, None]).clamp(min=0)


# What is generated at the same time in the same B rows of a cache, by the branch_id of its tokens.
Branches = Mapping[int, Sequence[Row]]
