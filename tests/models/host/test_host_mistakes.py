"""Runs of the host that cannot be, or must not go on: an exit code, a message, and no answer."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualfocus_lmms import read_traces

pytestmark = pytest.mark.seconds(20)


@pytest.mark.parametrize(
    ("arguments", "model_args", "code"),
    [
        (["--tasks", "df_pope_random", "--limit", "0"], "", 2),
        ([], "", 2),
        (["--tasks", "df_pope_random"], "skip_confidences=0.5", 2),
        (["--tasks", "df_pope_random"], "pretrained=no/such/checkpoint", 2),
        (["--tasks", "df_no_such_task"], "", 2),
        (["--tasks", "df_no_such_*"], "", 2),
        (["--tasks", "df_pope_random", "--log_samples"], "", 2),
        (["--tasks", "df_pope_random", "--limit", "1", "--gen_kwargs", "max_new_tokens=many"], "", 2),
        (["--config", "no_such_file.yaml"], "", 2),
    ],
)
def test_what_cannot_run_ends_with_an_exit_code(run, arguments, model_args, code):
    done = run(*arguments, model_args=model_args)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_config_file_needs_no_model_and_may_name_tasks_of_its_own(
    run_command, environment, tiny_checkpoint, tmp_path
):
    """Two configurations in one process: ours alone, then a group of the user's that holds one of ours."""
    (tmp_path / "mine.yaml").write_text("group: df_mine\ntask: [df_pope_popular]\n")
    runs = [
        {"tasks": "df_pope_random", "model_args": f"pretrained={tiny_checkpoint},trace={tmp_path / 'first'}"},
        {
            "tasks": "df_mine",
            "include_path": str(tmp_path),
            "model_args": f"pretrained={tiny_checkpoint},trace={tmp_path / 'second'}",
        },
        {"tasks": "df_pope_random", "model_args": f"pretrained={tiny_checkpoint}", "limit": 0},
    ]
    config = tmp_path / "runs.json"  # JSON is YAML
    config.write_text(json.dumps([{"limit": 2} | run for run in runs]))
    done = run_command("dualfocus", "eval", "--config", str(config), env=environment)
    assert done.returncode == 2, done.stderr[-3000:]  # the third one's limit
    assert "Traceback" not in done.stderr
    for name, task in (("first", "df_pope_random"), ("second", "df_pope_popular")):
        traces, _ = read_traces(tmp_path / name)
        assert [(trace.key["task"], trace.key["doc_id"]) for trace in traces] == [(task, 0), (task, 1)]


def test_weights_that_are_not_numbers_end_the_run_and_leave_no_answer(run, tiny_checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    head = next(name for name in weights if name.endswith("lm_head.weight"))
    weights[head] = torch.full_like(weights[head], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    done = run("--tasks", "df_pope_random", model_args=f"pretrained={broken},trace={tmp_path / 'trace'}")
    assert done.returncode == 1
    assert read_traces(tmp_path / "trace") == ([], [])
