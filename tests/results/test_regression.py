"""The gate on our own model: its scores on drawn scenes are those of results/baseline.json."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_small_model_is_as_good_as_it_was(tmp_path: Path):
    """As `make demo` runs it: 100 questions of each kind, through lmms-eval."""
    run = [sys.executable, "-m", "dualfocus_lmms"]
    model = f"pretrained=dualfocus-nano,trace={tmp_path / 'traces'}"
    asked = ["eval", "--model_args", model, "--tasks", "df_nano", "--limit", "100", "--batch_size", "16"]
    written = ["--output_path", str(tmp_path), "--log_samples"]
    subprocess.run([*run, *asked, *written], check=True, capture_output=True, cwd=ROOT)
    baseline = str(ROOT / "results" / "baseline.json")
    done = subprocess.run(
        [*run, "check", str(tmp_path), "--baseline", baseline],
        check=False, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
