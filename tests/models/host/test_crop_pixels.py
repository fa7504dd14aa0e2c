"""What a run's folder says of the zoom, and which runs of an earlier time go on in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.models.host.model import DualFocus
from dualfocus_lmms.models.tiny.families import save_tiny_family
from dualfocus_lmms.trace import read_settings
from dualfocus_lmms.zoom import DynamicResolution


def older(folder: Path) -> None:
    """Take from a run what its folder did not say before crops were enlarged."""
    path = folder / "run.json"
    settings = json.loads(path.read_text())
    kept = {name: settings[name] for name in settings if not name.endswith("_pixels")}
    path.write_text(json.dumps(kept))


def run(checkpoint: Path, folder: Path, **more: Any) -> DualFocus:
    return DualFocus(pretrained=str(checkpoint), device="cpu", trace=str(folder), **more)


def test_where_nothing_is_enlarged_earlier_runs_go_on(tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path)
    assert read_settings(tmp_path)["crop_pixels"] == "original"
    older(tmp_path)
    run(tiny_checkpoint, tmp_path, resume=True)
    with pytest.raises(UserError, match="max_pixels=8000"):
        run(tiny_checkpoint, tmp_path / "other", max_pixels=8000)


def test_where_crops_are_enlarged_an_earlier_run_goes_on_as_it_began(tmp_path):
    checkpoint, folder = save_tiny_family(tmp_path / "qwen", "qwen2_5_vl"), tmp_path / "run"
    run(checkpoint, folder)
    assert read_settings(folder)["crop_pixels"] == "auto"
    older(folder)
    (folder / "rank0.jsonl").write_text("an answer\n")  # else the next run takes the folder
    with pytest.raises(UserError, match="crop_pixels was 'original', now 'auto'"):
        run(checkpoint, folder, resume=True)
    run(checkpoint, folder, resume=True, crop_pixels="original")
    model = run(checkpoint, tmp_path / "bounded", min_pixels=4000, max_pixels=8000)
    assert model._runner is not None
    assert model._runner.backend.resolution == DynamicResolution(28, 4000, 8000)
    settings = read_settings(tmp_path / "bounded")
    assert (settings["min_pixels"], settings["max_pixels"]) == (4000, 8000)
