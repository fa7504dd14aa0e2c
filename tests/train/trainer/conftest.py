"""What short training runs share."""

from __future__ import annotations

import os

import pytest
from training_runs import STEPS


@pytest.fixture(scope="module")
def common(tiny_checkpoint, sample_folders) -> list[str]:
    """Overrides of the tiny recipe that all runs share. The model writes boxes and says yes or no already."""
    folder, held_out = sample_folders
    return [
        f"model={tiny_checkpoint}",
        f"data.0.path={folder}",
        f"data.1.path={folder}",
        f"evaluation.path={held_out}",
        f"evaluation.every={STEPS // 2}",
        "evaluation.max_new_tokens=8",
        f"steps={STEPS}",
        "protocol=paper",
        "batch_size=8",
        "micro_batch_size=4",
        "train=[projector, language_model]",
        "training.logging_steps=1",
        "training.save_steps=2",
        "training.disable_tqdm=true",
    ]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
