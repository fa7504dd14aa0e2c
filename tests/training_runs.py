"""Short training runs: how long they are, what is read from their folders, and what makes two the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dualfocus_lmms.models.checkpoint.loading import load_checkpoint

STEPS = 8
SAME = 1e-5  # nats and weights, float32: what another order of summation may change


def history(output: Path) -> list[dict[str, float]]:
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in history(output) if "loss" in entry]


def evaluations(output: Path) -> dict[str, float]:
    """The figures of every evaluation during a run: "4 macro" is the macro accuracy after step 4."""
    return {
        f"{entry['step']} {name.removeprefix('eval_')}": value
        for entry in history(output)
        for name, value in entry.items()
        if name.startswith("eval_")
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(str(folder), device="cpu").model.state_dict()


def assert_same_run(output: Path, other: Path) -> None:
    assert losses(output) == pytest.approx(losses(other), abs=SAME)
    ours, theirs = weights(output / "model"), weights(other / "model")
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < SAME
