"""The tower's heads once more, fitted to a frozen tower: checkpoints come without them."""

from __future__ import annotations

import numpy as np
import torch

from dualfocus_lmms.train.nano.pretrain_vision import Heads, patch_targets

STEPS, BATCH = 600, 256


def fit_heads(features: torch.Tensor, things: np.ndarray, steps: int = STEPS) -> Heads:
    """Heads that read patch features (N, P, D) of images with `things` (N, MOST, 8); on their device."""
    device, width = features.device, features.shape[-1]
    mean = features.flatten(0, 1).mean(0)
    deviation = features.flatten(0, 1).std(0).clamp(min=1e-6)
    heads = Heads(width).to(device)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    targets = {name: torch.from_numpy(value).to(device) for name, value in patch_targets(things).items()}
    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = torch.from_numpy(rng.integers(len(things), size=min(BATCH, len(things)))).to(device)
        standard = (features[chosen] - mean) / deviation
        loss, _ = heads.loss(standard, {name: value[chosen] for name, value in targets.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # so that the heads take features that are not standardised
        for head in heads.linears().values():
            head.weight.div_(deviation)
            head.bias.sub_(head.weight @ mean)
    return heads.requires_grad_(False)
