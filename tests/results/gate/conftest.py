"""A good run as the baseline, and runs checked against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from gate_runs import GOOD, WriteRun

from dualfocus_lmms.results.baseline import Baseline
from dualfocus_lmms.results.gate.check import Check, check, update
from dualfocus_lmms.results.runs import load_run


@pytest.fixture
def baseline(tmp_path: Path, write_run: WriteRun) -> Baseline:
    update(load_run(write_run(tmp_path / "good", GOOD)), tmp_path / "baseline.json")
    return Baseline.load(tmp_path / "baseline.json")


@pytest.fixture
def checked(tmp_path: Path, write_run: WriteRun, baseline: Baseline) -> Callable[..., Check]:
    """A run with the given scores, checked; numbers after the scores are the bound and alpha."""

    def make(
        scores: Sequence[float], max_drop: float | None = None, alpha: float = 0.05, **how_written: object
    ) -> Check:
        return check(load_run(write_run(tmp_path / "new", scores, **how_written)), baseline, max_drop, alpha)

    return make
