"""Muon on matrices, AdamW on the rest, one schedule for both; and a state that survives a kill."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.files import replacing

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
        _add_up(self._parameters)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    @property
    def _parts(self) -> list[Any]:
        return [*self._optimizers, *self._schedules]

    def state(self) -> list[Any]:
        return [part.state_dict() for part in self._parts]

    def load(self, state: list[Any]) -> None:
        for part, saved in zip(self._parts, state, strict=True):
            part.load_state_dict(saved)


def _add_up(parameters: list[nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients."""
    if dist.is_initialized():
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)


def rank_and_world() -> tuple[int, int]:
    """Number of this process and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of a number over all processes."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear decay."""
    decay = (1 - step / steps) / (1 - STEADY)
    return min((step + 1) / WARMUP, 1.0, max(decay, LAST))


def save(path: Path, **state: Any) -> None:
    """Write a state under its name only when it is complete."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def restore(path: Path) -> dict[str, Any] | None:
    """The state in a file, None where there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
