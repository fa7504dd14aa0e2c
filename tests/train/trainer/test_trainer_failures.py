"""Runs that stop, and samples that do not fit: each is reported, and no broken checkpoint is written."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
from training_runs import history, losses, weights

from dualfocus_lmms import GenerationError, UserError
from dualfocus_lmms.train.data.samples import shard_path, write_shard
from dualfocus_lmms.train.trainer.trainer import last_checkpoint, train

pytestmark = pytest.mark.seconds(5)


def test_what_does_not_fit_is_reported(common, tmp_path):
    output = tmp_path / "run"
    train("tiny_cpu", [*common, f"output={output}", "steps=2", "max_length=100", "evaluation=null"])
    assert not any("eval_macro" in entry for entry in history(output))
    last = history(output)[-1]
    assert last["shortened"] > 0
    assert last["shortened"] + last["left_out"] <= 16
    assert all(math.isfinite(loss) for loss in losses(output))


def test_a_loss_that_is_no_number_stops_the_run(common, tmp_path):
    with pytest.raises(GenerationError):
        train("tiny_cpu", [*common, f"output={tmp_path / 'run'}", "training.learning_rate=1e30"])
    assert not (tmp_path / "run" / "model").exists()


def test_no_checkpoint_of_a_broken_model_is_written(common, tmp_path):
    """Though the loss is logged later than checkpoints are written. What failed may be started otherwise."""
    output = tmp_path / "run"
    rare = [
        "training.save_steps=1",
        "training.logging_steps=100",
        "evaluation=null",
        "training.warmup_steps=0",
    ]
    with pytest.raises(GenerationError):
        train("tiny_cpu", [*common, *rare, f"output={output}", "training.learning_rate=1e30"])
    for folder in output.glob("checkpoint-*"):
        assert all(bool(value.isfinite().all()) for value in weights(folder).values())
    shutil.rmtree(output)
    with pytest.raises(GenerationError):
        train(
            "tiny_cpu", [*common, f"output={output}", "training.learning_rate=1e30", "training.save_steps=8"]
        )
    assert last_checkpoint(output) is None
    train("tiny_cpu", [*common, f"output={output}", "steps=1", "evaluation=null"])


def test_an_output_that_cannot_be_written_is_the_users_mistake(common, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="file"):
            train("tiny_cpu", [*common, f"output={output}"])


def test_a_run_in_which_no_sample_fits_makes_no_checkpoint(common, make_samples, tmp_path):
    long = [replace(sample, question="what " * 90) for sample in make_samples(8, 2)]
    (tmp_path / "long").mkdir()
    write_shard(long, shard_path(tmp_path / "long", 0))
    output, data = tmp_path / "run", f"data=[{{path: {tmp_path / 'long'}}}]"
    with pytest.raises(UserError, match="max_length"):
        train("tiny_cpu", [*common, f"output={output}", data, "max_length=100", "evaluation=null", "steps=1"])
    assert not (output / "model").exists()


def test_a_length_beyond_the_models_is_refused(common, tmp_path):
    with pytest.raises(UserError, match="4096"):
        train("tiny_cpu", [*common, f"output={tmp_path / 'run'}", "max_length=5000"])
