"""Packs of questions made on the device that trains, where images' features and all their questions lie.

What `base.pack` makes of conversations one by one, for a whole batch at once and of one shape always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from dualfocus_lmms.models.tiny.nano import GRID, WIDTH, normalize
from dualfocus_lmms.train.nano.base import Branches, Packed, box_token_weights
from dualfocus_lmms.train.nano.images import MOST
from dualfocus_lmms.train.nano.table import KIND_NAMES, LONGEST, QUESTIONS, VIEWS, Table

LENGTH = 256  # tokens of a pack; a branch that does not fit is left out, about one in 500
VIEW_SHARES = (0.375, 0.375, 0.25)  # whole scenes, the same in the mirror, crops
AT_ONCE = 512  # images through the tower
_COLUMNS = tuple(field.name for field in fields(Table) if field.name not in ("pixels", "things"))


@dataclass(frozen=True, slots=True)
class Pack:
    """A batch of K branches a row.

    images: (B,), indices into the table. begin: (B, K), where the replies begin. reply, kind: (B, K), their
    lengths and the indices of their kinds in KIND_NAMES. fits: (B, K) bool, whether it holds the branch.
    """

    packed: Packed
    images: torch.Tensor
    begin: torch.Tensor
    reply: torch.Tensor
    kind: torch.Tensor
    fits: torch.Tensor


class Packs:
    """A growing table on a device, and the packs drawn from it.

    features: (N, P, D) float32, filled for the first `len` images.
    """

    def __init__(self, branches: Branches, pad: int, images: int, device: str, seed: int) -> None:
        self._prefix = torch.tensor(branches.prefix, device=device)
        self._first_patch, self._pad, self._device = branches.first_patch, pad, device
        self._name_ids = torch.tensor(sorted(branches.name_ids), device=device)
        self._random = torch.Generator(device).manual_seed(seed)
        self._is_box = torch.tensor([name.startswith("locate") for name in KIND_NAMES], device=device)
        self._count = 0
        shape = (images, QUESTIONS)
        self.features = torch.zeros(images, GRID**2, WIDTH, device=device)
        self._patches = torch.zeros(images, MOST, GRID**2, dtype=torch.bool, device=device)
        self._ids = torch.zeros(*shape, LONGEST, dtype=torch.int16, device=device)
        self._length, self._reply, self._kind = (
            torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(3)
        )
        self._share = torch.zeros(shape, device=device)
        self._about = torch.zeros(shape, dtype=torch.int8, device=device)

    def __len__(self) -> int:
        return self._count

    def reseed(self, seed: int) -> None:
        """From now on draw what a new object with this seed draws."""
        self._random.manual_seed(seed)

    @torch.no_grad()
    def add(self, table: Table, tower: Any) -> None:
        """Append a table's images, with the tower's features."""
        rows = slice(self._count, self._count + len(table))
        for name in _COLUMNS:
            column: torch.Tensor = getattr(self, f"_{name}")
            column[rows] = torch.from_numpy(getattr(table, name)).to(self._device)
        for start in range(0, len(table), AT_ONCE):
            pixels = torch.from_numpy(table.pixels[start : start + AT_ONCE]).to(self._device)
            features = tower(pixel_values=normalize(pixels)).last_hidden_state[:, 1:]
            self.features[self._count + start : self._count + start + len(features)] = features
        self._count += len(table)

    def draw(
        self,
        rows: int,
        branches: int,
        whole_mix: Mapping[str, float],
        crop_mix: Mapping[str, float],
        box_weights: Sequence[float],
    ) -> Pack:
        """A batch of rows x branches random questions, as often as `questions.ask` asks them."""
        views = torch.tensor(VIEW_SHARES, device=self._device)
        view = torch.multinomial(views, rows, replacement=True, generator=self._random)
        scenes = torch.randint(self._count // VIEWS, (rows,), device=self._device, generator=self._random)
        images = VIEWS * scenes + view
        mixes = torch.tensor(
            [[mix.get(name, 0.0) for name in KIND_NAMES] for mix in (whole_mix, whole_mix, crop_mix)],
            device=self._device,
        )
        chances = mixes[view[:, None], self._kind[images].long()] * self._share[images]
        chosen = torch.multinomial(chances, branches, replacement=True, generator=self._random)
        return self.pack(images, chosen, box_weights)

    def pack(self, images: torch.Tensor, chosen: torch.Tensor, box_weights: Sequence[float]) -> Pack:
        """The questions `chosen` (B, K) about images (B,), behind the shared prefix. box_weights: as in
        `base.pack`."""
        prefix, device = len(self._prefix), self._device
        lengths, replies, kinds, things = (
            column[images].gather(1, chosen).long()
            for column in (self._length, self._reply, self._kind, self._about)
        )
        ends = prefix + lengths.cumsum(1)
        starts, fits = ends - lengths, ends <= LENGTH
        position = torch.arange(LENGTH, device=device)
        number = (position[None, :, None] >= ends[:, None]).sum(-1)  # (B, L): branches that have ended
        branch = number.clamp(max=chosen.shape[1] - 1)
        inside = (position >= prefix) & (number < chosen.shape[1]) & fits.gather(1, branch)
        offset = torch.where(inside, position - starts.gather(1, branch), 0)
        length, reply = lengths.gather(1, branch), replies.gather(1, branch)
        is_reply = inside & (offset >= length - reply)

        ids = self._ids[images[:, None], chosen.gather(1, branch), offset].long()
        ids = torch.where(inside, ids, self._pad)
        ids[:, :prefix] = self._prefix
        positions = torch.where(inside, prefix + offset, 0)
        positions[:, :prefix] = position[:prefix]
        number = torch.where(inside, branch + 1, -1)
        number[:, :prefix] = 0
        pattern = torch.tensor(box_token_weights(box_weights), device=device)
        in_reply = (offset - (length - reply)).clamp(0, len(pattern) - 1)
        is_box = self._is_box[kinds.gather(1, branch)]
        weights = torch.where(is_reply, torch.where(is_box, pattern[in_reply], 1.0), 0.0)

        before = offset - (length - reply - 1)  # 0 and 1: tokens that depend on the question alone
        opening = inside & (before >= 0) & (before <= 1)
        later = inside & (before >= 0) & (offset < length - 1)
        strength = torch.where(opening, 1.0, torch.where(later, 0.3, 0.0))
        known = (things >= 0).gather(1, branch)
        patches = self._patches[images[:, None], things.clamp(min=0)]  # (B, K, P)
        patches = patches.gather(1, branch[:, :, None].expand(-1, -1, patches.shape[2]))
        looks = torch.zeros(*ids.shape, LENGTH, device=device)
        patch_columns = slice(self._first_patch, self._first_patch + patches.shape[2])
        looks[:, :, patch_columns] = (strength * known)[:, :, None] * patches
        naming = inside & ~is_reply & torch.isin(ids, self._name_ids)
        same = number[:, :, None] == number[:, None]
        reads = (opening[:, :, None] & naming[:, None] & same).float()
        labels = torch.where(is_reply, ids, -100)
        packed = Packed(ids, positions, number, labels, weights, looks, reads)
        return Pack(packed, images, ends - replies, replies, kinds, fits)
