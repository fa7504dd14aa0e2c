"""Accuracy on held-out scenes during training, by kind of question; earlier tokens of a reply are given."""

from __future__ import annotations

from typing import Any

import torch

from dualfocus_lmms.models.tiny.nano import nano_tokenizer
from dualfocus_lmms.train.nano.base import with_images
from dualfocus_lmms.train.nano.packs import Pack, Packs
from dualfocus_lmms.train.nano.table import KIND_NAMES

BOX_TOKENS = 12  # of a box, its closing bracket left out: whole, tenths, hundredths for each edge
ROWS, BATCHES = 256, 6
WHOLE_MIX = {
    "locate": 0.15,
    "locate_both": 0.1,
    "list": 0.05,
    "exist": 0.2,
    "relation": 0.35,
    "count": 0.15,
}
CROP_MIX = {"detail": 0.8, "relation": 0.2}  # counted with those of whole scenes


@torch.no_grad()
def probe(model: Any, packs: Packs, branches: int) -> dict[str, float]:
    """By kind: the share of replies that are entirely correct, for boxes the mean IoU; the same questions
    whenever it is called."""
    packs.reseed(1)
    correct, overlap = ({name: [0.0, 0] for name in KIND_NAMES} for _ in range(2))
    for _ in range(BATCHES):
        pack = packs.draw(ROWS, branches, WHOLE_MIX, CROP_MIX, (1.0, 1.0, 1.0))
        predicted, labels = _replies(model, packs, pack)
        position = torch.arange(predicted.shape[2], device=predicted.device)
        exact = ((predicted == labels) | (position >= pack.reply[:, :, None])).all(2)
        ious = iou(boxes(predicted), boxes(labels))
        for kind, name in enumerate(KIND_NAMES):
            counted = (pack.kind == kind) & pack.fits
            for sums, values in ((correct, exact), (overlap, ious)):
                sums[name][0] += values[counted].sum().item()
                sums[name][1] += int(counted.sum())
    return {
        name: sums[name][0] / sums[name][1]
        for name in KIND_NAMES
        for sums in (overlap if name.startswith("locate") else correct,)
        if sums[name][1]
    }


def _replies(model: Any, packs: Packs, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K, T) ids that the model finds likeliest, and those of the replies; T is that of a box."""
    packed = pack.packed
    hidden = model.model.language_model(
        inputs_embeds=with_images(model, packed.ids, packs.features[pack.images]),
        attention_mask=packed.mask(),
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state
    positions = pack.begin[:, :, None] + torch.arange(BOX_TOKENS + 2, device=pack.begin.device)
    positions = positions.clamp(max=packed.ids.shape[1] - 1)
    before = (positions - 1).flatten(1)
    states = hidden.gather(1, before[:, :, None].expand(-1, -1, hidden.shape[2]))
    predicted = model.lm_head(states).argmax(-1).view_as(positions)
    return predicted, packed.ids.gather(1, positions.flatten(1)).view_as(positions)


def boxes(ids: torch.Tensor) -> torch.Tensor:
    """(..., 4) edges as fractions, of the tokens (..., T) of boxes."""
    values = _values().to(ids.device)[ids[..., :BOX_TOKENS]].unflatten(-1, (4, 3))
    return (values * torch.tensor([1, 0.1, 0.01], device=ids.device)).sum(-1)


def _values() -> torch.Tensor:
    """The number that each token of the vocabulary stands for; 0 for all others."""
    tokenizer = nano_tokenizer()
    values = torch.zeros(len(tokenizer))
    for digit in range(10):
        values[tokenizer.convert_tokens_to_ids(str(digit))] = digit
    for piece in (" [1.", ", 1."):
        values[tokenizer.convert_tokens_to_ids(piece)] = 1
    return values


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(...) intersection over union of boxes (..., 4); 0 where there is no area."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    both = inner.prod(-1)
    return both / (areas[0] + areas[1] - both).clamp(min=1e-9)
