"""Runs of the host that are killed, or sent again by Slurm, go on where they stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from killed import kill, whole_lines

from dualfocus_lmms import Trace
from dualfocus_lmms.trace import trace_key

pytestmark = pytest.mark.seconds(110)

EVAL = [sys.executable, "-m", "dualfocus_lmms", "eval"]
SLURM = Path(__file__).resolve().parents[3] / "examples" / "slurm.sh"


def test_a_run_that_was_killed_resumes_and_answers_nothing_twice(environment, run, tiny_checkpoint, tmp_path):
    model_args = f"pretrained={tiny_checkpoint},trace={tmp_path / 'trace'}"
    command = [*EVAL, "--tasks", "df_pope", "--model_args", model_args]
    file = tmp_path / "trace" / "rank0.jsonl"
    kill(command[1:], lambda: whole_lines(file) >= 3, environment)
    before = file.read_bytes()
    assert 3 <= before.count(b"\n") < 60
    refused = subprocess.run(command, env=os.environ | environment, stderr=subprocess.PIPE, timeout=300)
    assert refused.returncode == 2  # without resume=True nothing is overwritten
    assert b"Traceback" not in refused.stderr
    refused = run("--tasks", "df_pope", model_args=f"{model_args},resume=True,box_margin=9")
    assert refused.returncode == 2  # nor with other settings
    assert file.read_bytes() == before
    done = run("--tasks", "df_pope", model_args=f"{model_args},resume=True,batch_size=4")
    assert done.returncode == 0, done.stderr[-3000:]
    whole = before[: before.rindex(b"\n") + 1]
    assert file.read_bytes().startswith(whole)
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")]
    keys = [trace_key(Trace.from_json(line).key) for line in lines]
    assert len(keys) == len(set(keys)) == 60


def test_a_slurm_job_runs_on_all_processes_and_when_requeued_answers_nothing_twice(
    environment, tiny_checkpoint, tmp_path
):
    """The documented script, with stand-ins for Slurm's two commands: one node, two processes."""
    for name, line in (("srun", 'exec "$@"'), ("scontrol", "echo localhost")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    folder = tmp_path / "run"
    for _ in range(2):
        done = subprocess.run(
            ["bash", str(SLURM), str(tiny_checkpoint), "df_pope_random", str(folder), "box_margin=3"],
            env=os.environ | environment | slurm | {"PATH": path, "PROCESSES": "2", "PORT": port},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        files = sorted((folder / "traces").glob("rank*.jsonl"))
        assert [len(file.read_text().splitlines()) for file in files] == [10, 10]
    assert len(list(folder.rglob("*_results.json"))) == 2
    assert json.loads((folder / "traces" / "run.json").read_text())["box_margin"] == 3
