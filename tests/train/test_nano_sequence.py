"""`make nano` from nothing, at its smallest: every stage for a few steps, one after the other."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dualfocus_lmms import DualFocusModel
from dualfocus_lmms.scenes import make_scene
from dualfocus_lmms.train.nano import __main__ as nano
from dualfocus_lmms.train.nano import base, images, pretrain_vision

RECIPE = [
    "steps=2",
    "batch_size=2",
    "micro_batch_size=2",
    "evaluation.every=2",
    "evaluation.samples=2",
    "training.save_steps=2",
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    """The stages with few scenes and steps; what they do is the same."""
    monkeypatch.setattr(images, "PER_FILE", 20)
    monkeypatch.setattr(pretrain_vision, "BATCH", 8)
    monkeypatch.setattr(base, "IMAGES", 2)
    for name, value in (("TOWER_SCENES", 20), ("SEE_STEPS", (2, 2)), ("BASE_STEPS", 2), ("HELD_OUT", 2)):
        monkeypatch.setattr(nano, name, value)
    monkeypatch.setattr(nano.os, "cpu_count", lambda: 1)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(output: Path, *arguments: str) -> None:
    done = CliRunner().invoke(
        nano.app, ["--output", str(output), "--device", "cpu", "--last-scenes", "4", *arguments]
    )
    assert done.exit_code == 0, done.output


def test_the_stages_follow_each_other_from_nothing_to_a_model_that_answers(tmp_path: Path, small: None):
    """The commands of `make nano`; the base stage in one process."""
    run(tmp_path, "--until", "tower")
    assert (tmp_path / "tower-2.pt").is_file()
    assert not (tmp_path / "base").exists()
    run(tmp_path, "--until", "base")
    weights = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert not (tmp_path / "samples").exists()
    run(tmp_path, *RECIPE)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == weights
    model = tmp_path / "seed-0" / "dualfocus" / "model"
    assert (model / "model.safetensors").read_bytes() != weights
    trace = DualFocusModel(str(model), device="cpu").ask(
        make_scene("test", 0, 0).image(), "How many shapes are in the image?"
    )
    assert trace.locate is not None
    assert trace.macro.tokens
    note = json.loads((tmp_path / "seed-0" / "dualfocus" / "recipe.json").read_text())
    assert note["model"] == str(tmp_path / "seed-0" / "first" / "model")
    assert [source["share"] for source in note["data"]] == [0.7, 0.15, 0.15]
    written = (model / "model.safetensors").stat().st_mtime_ns
    run(tmp_path, *RECIPE)  # both runs are finished: nothing is trained again
    assert (model / "model.safetensors").stat().st_mtime_ns == written
