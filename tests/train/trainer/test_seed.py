"""Two runs of one recipe are the same run, whatever was drawn before them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.train.trainer.trainer import train

pytestmark = pytest.mark.seconds(10)

LORA = ("train=[projector]", "lora={r: 4, lora_alpha: 8, lora_dropout: 0.1}")


def run(model: Path, samples: Path, output: Path, *more: str) -> dict[str, torch.Tensor]:
    """The weights of two steps."""
    overrides = [
        f"model={model}",
        f"data.0.path={samples}",
        f"data.1.path={samples}",
        "evaluation=null",
        "protocol=paper",
        "steps=2",
        "batch_size=4",
        "micro_batch_size=2",
        "training.learning_rate=1e-2",
        "training.disable_tqdm=true",
        f"output={output}",
        *more,
    ]
    return load_checkpoint(str(train("tiny_cpu", overrides)), device="cpu").model.state_dict()


@pytest.mark.parametrize("parts", [LORA, ("train=[projector, language_model]",)])
def test_the_seed_decides_everything_that_is_drawn(untrained, sample_folders, tmp_path, parts):
    torch.manual_seed(1)
    first = run(untrained, sample_folders[0], tmp_path / "first", *parts)
    torch.manual_seed(2)
    second = run(untrained, sample_folders[0], tmp_path / "second", *parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_makes_another_run(untrained, sample_folders, tmp_path):
    first = run(untrained, sample_folders[0], tmp_path / "first", *LORA)
    second = run(untrained, sample_folders[0], tmp_path / "second", *LORA, "seed=1")
    assert not all(torch.equal(first[name], second[name]) for name in first)
