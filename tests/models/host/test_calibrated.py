"""A fitted rule inside the host: its run, resuming with another file, and the questions it was fitted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import read_traces
from dualfocus_lmms.integrity import read_data
from dualfocus_lmms.models.host.options import ModelOptions
from dualfocus_lmms.models.server.options import ServerOptions
from dualfocus_lmms.trace import read_settings

pytestmark = pytest.mark.seconds(20)


def calibration(folder: Path, b: float, fingerprint: str = "another") -> str:
    fitted_on = [{"task": "t", "split": "test", "questions_fingerprint": fingerprint, "samples": 6}]
    data = {"format": "dualfocus-calibration", "version": 1, "rule": "bias", "count_eos": False, "b": b}
    (folder / "b.json").write_text(json.dumps(data | {"fitted_on": fitted_on}))
    return f"calibrated:{folder / 'b.json'}"


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (ModelOptions, {"pretrained": "x"}),
        (ServerOptions, {"base_url": "http://localhost:1/v1", "model": "m", "family": "llava"}),
    ],
)
def test_what_is_in_the_file_decides_a_run(options: Any, given: dict[str, Any], tmp_path: Path):
    name = calibration(tmp_path, 0.5)
    first = options.of(given | {"select": name}).identity()
    assert (first["select"], first["calibration"]["b"]) == (name, 0.5)
    calibration(tmp_path, 0.25)
    assert options.of(given | {"select": name}).identity() != first
    assert "calibration" not in options.of(given).identity()


def test_a_run_with_a_fitted_rule(run: Any, tiny_checkpoint: Path, tmp_path: Path):
    name, folder = calibration(tmp_path, 50.0), tmp_path / "traces"
    asked = ("--tasks", "df_pope_random", "--limit", "2")
    args = f"pretrained={tiny_checkpoint},trace={folder},select={name}"
    done = run(*asked, model_args=args)
    assert done.returncode == 0, done.stderr[-3000:]
    traces, _ = read_traces(folder)
    assert [(trace.selection.pathway, trace.selection.rule) for trace in traces] == [("macro", name)] * 2
    assert read_settings(folder)["calibration"]["b"] == 50.0

    calibration(tmp_path, -50.0)
    refused = run(*asked, model_args=f"{args},resume=True")
    assert refused.returncode == 2
    assert "calibration" in refused.stderr

    ((_, data),) = read_data(folder).items()
    calibration(tmp_path, 50.0, data["questions_fingerprint"])
    args = f"pretrained={tiny_checkpoint},trace={tmp_path / 'again'},select="
    refused = run(*asked, model_args=args + name)
    assert refused.returncode == 2
    assert "fitted on the questions of df_pope_random (" in refused.stderr
    assert read_traces(tmp_path / "again") == ([], [])
