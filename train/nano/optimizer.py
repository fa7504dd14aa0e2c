"""Muon on matrices, AdamW on the rest, one schedule for both; and a state that survives a kill."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dualfocus_lmms.errors import GenerationError

WARMUP = 60  # steps
STEADY = 0.6  # share of the steps at the full rate; then linearly down to LAST of it
LAST = 0.01


class Optimizer:
    """Steps of a run of a known length.

    Hidden matrices are Muon's (rate 0.02, momentum 0.95); embeddings, output heads, convolutions and vectors
    are AdamW's (rate 3e-3). Gradients are clipped at norm 1.
    """

    def __init__(self, modules: Iterable[nn.Module], steps: int, heads: Iterable[nn.Module] = ()) -> None:
        apart = {id(parameter) for head in heads for parameter in head.parameters()}
        named = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        self._parameters = list(named.values())
        matrices = [p for p in self._parameters if p.ndim == 2 and id(p) not in apart]
        others = [p for p in self._parameters if p.ndim != 2 or id(p) in apart]
        self._optimizers = [
            torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.0),
            torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
            for optimizer in self._optimizers
        ]

    def step(self, loss: torch.Tensor) -> None:
        """One update. GenerationError when the loss is not a number."""
        if not math.isfinite(loss.item()):
            raise GenerationError(f"The loss is {loss.item()}: lower the learning rate.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    def state(self) -> list[Any]:
        return [part.state_dict() for part in (*self._optimizers, *self._schedules)]

    def load(self, state: list[Any]) -> None:
        for part, saved in zip((*self._optimizers, *self._schedules), state, strict=True):
            part.load_state_dict(saved)


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear decay."""
    decay = (1 - step / steps) / (1 - STEADY)
    return min((step + 1) / WARMUP, 1.0, max(decay, LAST))


def save(path: Path, **state: Any) -> None:
    """Write a state under its name only when it is complete."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    torch.save(state, temporary)
    temporary.replace(path)


def restore(path: Path) -> dict[str, Any] | None:
    """The state in a file, None where there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
