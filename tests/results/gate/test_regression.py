"""The gate on our own model: its scores on drawn scenes are those of results/baseline.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.seconds(20)

ROOT = Path(__file__).parents[3]


def test_the_small_model_is_as_good_as_it_was(run_command: Callable[..., Any], tmp_path: Path):
    """As `make demo` runs it: 100 questions of each kind, through lmms-eval."""
    model = f"pretrained=dualfocus-nano,trace={tmp_path / 'traces'}"
    asked = ["eval", "--model_args", model, "--tasks", "df_nano", "--limit", "100", "--batch_size", "16"]
    done = run_command("dualfocus", *asked, "--output_path", str(tmp_path), "--log_samples")
    assert done.returncode == 0, done.stderr[-3000:]
    baseline = str(ROOT / "results" / "baseline.json")
    done = run_command("dualfocus", "check", str(tmp_path), "--baseline", baseline)
    assert done.returncode == 0, done.stdout + done.stderr
