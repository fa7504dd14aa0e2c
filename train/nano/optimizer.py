"""Muon on matrices, AdamW on the rest, one schedule for both; and a state to resume from."""

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


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon without weight decay, in float32: its bfloat16 is slow on most CPUs."""

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, momentum: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update, of all matrices of one shape at once."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                directions = orthogonal(torch.stack(self._directions(matrices, group["momentum"])))
                change = group["lr"] * max(1, rows / columns) ** 0.5
                torch._foreach_sub_(matrices, list(directions.unbind()), alpha=change)

    def _directions(self, matrices: list[torch.Tensor], momentum: float) -> list[torch.Tensor]:
        """The gradients with Nesterov's momentum."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        means = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, means, momentum))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(N, R, C): about the nearest matrices whose singular values are all 1, by five Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Optimizer:
    """Steps of a run of a known length, or at rates that the caller gives.

    Hidden matrices are Muon's (rate 0.02, momentum 0.95); embeddings, output heads, convolutions and vectors
    are AdamW's (rate 3e-3). Gradients are clipped at norm 1. steps: the length of the run, for `step`.
    """

    def __init__(self, modules: Iterable[nn.Module], steps: int = 0, heads: Iterable[nn.Module] = ()) -> None:
        apart = {id(parameter) for head in heads for parameter in head.parameters()}
        named = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        self._parameters = list(named.values())
        matrices = [p for p in self._parameters if p.ndim == 2 and id(p) not in apart]
        others = [p for p in self._parameters if p.ndim != 2 or id(p) in apart]
        parts = [
            (Muon(matrices, lr=0.02, momentum=0.95), 0.02),
            (torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0), 3e-3),
        ]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [*parts]
        self._steps, self._done = steps, 0

    def step(self, loss: torch.Tensor) -> None:
        """One update at the rate of the schedule. GenerationError when the loss is not a number."""
        check(loss)
        self.update(loss, rate(self._done, self._steps))

    def update(self, loss: torch.Tensor, factor: float) -> None:
        """One update at `factor` times the rates; the loss is not read, so that a GPU need not wait."""
        loss.backward()
        _add_up(self._parameters)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, full in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = full * factor
            optimizer.step()
            optimizer.zero_grad()
        self._done += 1

    def state(self) -> list[Any]:
        return [self._done, *(optimizer.state_dict() for optimizer, _ in self._optimizers)]

    def load(self, state: list[Any]) -> None:
        self._done = state[0]
        for (optimizer, _), saved in zip(self._optimizers, state[1:], strict=True):
            optimizer.load_state_dict(saved)


def check(loss: torch.Tensor) -> None:
    """GenerationError when the loss is not a number."""
    if not math.isfinite(loss.item()):
        raise GenerationError(f"The loss is {loss.item()}: lower the learning rate.")


def _add_up(parameters: list[nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients."""
    if dist.is_initialized():
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)


def rank_and_world() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of a number over all processes."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, constant, linear decay."""
    return min((step + 1) / WARMUP, decay(step / steps))


def decay(share: float) -> float:
    """The learning rate's factor when this share of a run is over, without warm-up."""
    return min(1.0, max((1 - share) / (1 - STEADY), LAST))


def save(path: Path, **state: Any) -> None:
    """Write a state to a file that appears only when it is complete."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def restore(path: Path) -> dict[str, Any] | None:
    """The state in a file, None where there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
