"""The unmodified host on our model and tasks, as its users start it: each run is a process of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dualfocus_lmms import Trace, read_traces
from dualfocus_lmms.trace import trace_key

Run = Callable[..., "subprocess.CompletedProcess[str]"]
EVAL = [sys.executable, "-m", "dualfocus_lmms", "eval"]
HOST = [sys.executable, "-m", "lmms_eval", "--model", "dualfocus"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SLURM = Path(__file__).resolve().parents[2] / "examples" / "slurm.sh"
TWO_PROCESSES = [*LAUNCH, "-m", "dualfocus_lmms", "eval"]


@pytest.fixture(scope="module")
def pope_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE's files in miniature: 3 splits, 20 questions each about 4 plain pictures."""
    folder = tmp_path_factory.mktemp("benchmarks")
    images = folder / "pope" / "images"
    images.mkdir(parents=True)
    colors = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250), "sand": (220, 180, 90)}
    for number, (name, color) in enumerate(colors.items()):
        Image.new("RGB", (60 + 30 * number, 50), color).save(images / f"{name}.png")
    things = {"cat": "yes", "dog": "no", "tv": "yes", "car": "no", "person": "yes"}
    lines = [
        {"image": f"{name}.png", "text": f"Is there a {thing} in the image?", "label": label}
        for name in colors
        for thing, label in things.items()
    ]
    text = "".join(json.dumps({"question_id": number} | line) + "\n" for number, line in enumerate(lines))
    for split in ("random", "popular", "adversarial"):
        (folder / "pope" / f"coco_pope_{split}.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def environment(pope_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return os.environ | {
        "DUALFOCUS_DATA": str(pope_folder),
        "LMMS_EVAL_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def run(environment: dict[str, str], tiny_checkpoint: Path) -> Run:
    """Run a command with --model_args pretrained=<tiny checkpoint>,... and return it when it has ended."""

    def start(command: list[str], *arguments: str, model_args: str = "", **extra: str):
        pretrained = [] if "pretrained=" in model_args else [f"pretrained={tiny_checkpoint}"]
        given = ",".join([*pretrained, *([model_args] if model_args else [])])
        return subprocess.run(
            [*command, *arguments, "--model_args", given],
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return start


def traces_of(folder: Path) -> dict[str, Trace]:
    traces, damaged = read_traces(folder)
    assert damaged == []
    return {trace_key(trace.key): trace for trace in traces}


def assert_same_answers(some: dict[str, Trace], others: dict[str, Trace]) -> None:
    assert some.keys() == others.keys()
    for key, trace in some.items():
        other = others[key]
        assert trace.selection.text == other.selection.text
        for answer, same in zip(trace.answers, other.answers, strict=True):
            assert answer.tokens == same.tokens
            assert answer.logprobs == pytest.approx(same.logprobs, abs=1e-4)


def scores(output: Path) -> dict[str, dict[str, float]]:
    """The results of a run by task, without the entries that are text."""
    results = json.loads(next(output.rglob("*_results.json")).read_text())["results"]
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in results.items()
    }


def test_one_process_two_processes_and_the_bare_host_give_the_same_answers_and_scores(run, tmp_path):
    ways = {
        "one": (EVAL, "batch_size=1"),
        "two": (TWO_PROCESSES, "batch_size=8"),
        "bare": (HOST, "batch_size=8"),
    }
    for name, (command, model_args) in ways.items():
        folder = tmp_path / name
        done = run(
            command, "--tasks", "df_pope", "--output_path", str(folder), "--log_samples",
            model_args=f"{model_args},trace={folder / 'trace'}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert "warning" not in done.stderr.lower(), done.stderr
    one, two, bare = (traces_of(tmp_path / name / "trace") for name in ways)
    assert len(one) == 60
    assert_same_answers(one, two)
    assert_same_answers(one, bare)
    assert sorted(path.name for path in (tmp_path / "two" / "trace").glob("*.jsonl")) == [
        "rank0.jsonl",
        "rank1.jsonl",
    ]
    expected = scores(tmp_path / "one")
    assert set(expected) == {"df_pope", "df_pope_random", "df_pope_popular", "df_pope_adversarial"}
    for name in ("two", "bare"):
        for task, metrics in scores(tmp_path / name).items():
            assert metrics == pytest.approx(expected[task])
    assert 0 < expected["df_pope_random"]["f1_stderr,none"] < 100
    data = [json.loads((tmp_path / name / "trace" / "data.json").read_text()) for name in ways]
    assert data[0] == data[1] == data[2]
    assert {name: about["samples"] for name, about in data[0].items()} == {
        f"df_pope_{split}/{split}": 20 for split in ("random", "popular", "adversarial")
    }
    results = json.loads(next((tmp_path / "one").rglob("*_results.json")).read_text())["results"]
    for name, about in data[0].items():
        assert about["questions"] == 20
        task = results[name.partition("/")[0]]
        assert about["questions_fingerprint"] == task["questions_fingerprint,none"]
    by_hand = [trace.selection.text.lower() == "yes" for trace in one.values()]
    assert expected["df_pope"]["yes_ratio,none"] == pytest.approx(100 * sum(by_hand) / len(by_hand))
    sample = json.loads(
        next((tmp_path / "one").rglob("*samples_df_pope_random.jsonl")).read_text().splitlines()[0]
    )
    extras = sample["token_counts"][0]["dualfocus"]
    trace = next(
        trace
        for trace in one.values()
        if (trace.key["task"], trace.key["doc_id"]) == ("df_pope_random", sample["doc_id"])
    )
    assert extras["pathway"] == trace.selection.pathway
    assert extras["ppl"] == pytest.approx(trace.ppl)
    assert extras["macro"] == trace.macro.text
    assert extras["image_hash"] == trace.image_hash


def test_both_adapters_give_the_same_answers_and_pathway_macro_is_the_macro_answer(run, tmp_path):
    for name, arguments, model_args in (
        ("chat", [], "batch_size=5"),
        ("simple", ["--force_simple"], "batch_size=5"),
        ("macro", [], "batch_size=5,pathway=macro"),
    ):
        done = run(
            EVAL, "--tasks", "df_pope_random", *arguments, model_args=f"{model_args},trace={tmp_path / name}"
        )
        assert done.returncode == 0, done.stderr[-3000:]
    chat, simple, macro = (traces_of(tmp_path / name) for name in ("chat", "simple", "macro"))
    assert_same_answers(chat, simple)
    for key, trace in macro.items():
        assert trace.micro is None
        assert trace.selection.text == chat[key].macro.text
        assert trace.macro.logprobs == pytest.approx(chat[key].macro.logprobs, abs=1e-4)


def test_a_run_that_was_killed_resumes_and_answers_nothing_twice(environment, run, tiny_checkpoint, tmp_path):
    model_args = f"pretrained={tiny_checkpoint},trace={tmp_path / 'trace'}"
    process = subprocess.Popen(
        [*EVAL, "--tasks", "df_pope", "--model_args", model_args],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = tmp_path / "trace" / "rank0.jsonl"
    while not file.exists() or file.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = file.read_bytes()
    assert 3 <= before.count(b"\n") < 60
    refused = run(EVAL, "--tasks", "df_pope", model_args=model_args)
    assert refused.returncode == 2  # without resume=True nothing is overwritten
    refused = run(EVAL, "--tasks", "df_pope", model_args=f"{model_args},resume=True,box_margin=9")
    assert refused.returncode == 2  # nor with other settings
    assert file.read_bytes() == before
    done = run(EVAL, "--tasks", "df_pope", model_args=f"{model_args},resume=True,batch_size=4")
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
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), environment["PATH"]])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    folder = tmp_path / "run"
    for _ in range(2):
        done = subprocess.run(
            ["bash", str(SLURM), str(tiny_checkpoint), "df_pope_random", str(folder), "box_margin=3"],
            env=environment | slurm | {"PATH": path, "PROCESSES": "2", "PORT": port},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        files = sorted((folder / "traces").glob("rank*.jsonl"))
        assert [len(file.read_text().splitlines()) for file in files] == [10, 10]
    assert len(list(folder.rglob("*_results.json"))) == 2
    assert json.loads((folder / "traces" / "run.json").read_text())["box_margin"] == 3


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
    done = run(EVAL, *arguments, model_args=model_args)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_config_file_needs_no_model_and_may_name_tasks_of_its_own(environment, tiny_checkpoint, tmp_path):
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
    done = subprocess.run(
        [*EVAL, "--config", str(config)], env=environment, capture_output=True, text=True, timeout=300
    )
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
    done = run(
        EVAL, "--tasks", "df_pope_random", model_args=f"pretrained={broken},trace={tmp_path / 'trace'}"
    )
    assert done.returncode == 1
    assert read_traces(tmp_path / "trace") == ([], [])


BOXED_TASK = """
task: df_boxed
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_visual: !function dualfocus_lmms.tasks.sources.images
doc_to_text: "{{question}}\\nAnswer the question using a single word or phrase."
doc_to_target: answers
generation_kwargs: {max_new_tokens: 8, do_sample: false, temperature: 0}
process_results: !function dualfocus_lmms.tasks.scoring.answer_results
metric_list: [{metric: accuracy, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, dualfocus: {question: question, box: region}}
"""


def test_annotated_boxes_of_a_task_are_looked_at(run, tmp_path):
    """Five questions; the last one has no box, which only grounding=annotated minds."""
    boxes = [[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 1.0], [0.3, 0.3, 0.305, 0.9], None]
    Image.new("RGB", (200, 100), (20, 20, 250)).save(tmp_path / "blue.png")
    doc = {"image": str(tmp_path / "blue.png"), "question": "Is there a dog?", "answers": ["yes"]}
    file = tmp_path / "boxed.jsonl"
    file.write_text("".join(json.dumps(doc | {"region": box}) + "\n" for box in boxes))
    (tmp_path / "df_boxed.yaml").write_text(BOXED_TASK.replace("FILE", str(file)))
    boxed = [*EVAL, "--tasks", "df_boxed", "--include_path", str(tmp_path)]

    model_args = f"grounding=annotated,box_shift=10,batch_size=3,trace={tmp_path / 'trace'}"
    done = run(boxed, "--limit", "4", model_args=model_args)
    assert done.returncode == 0, done.stderr[-3000:]
    traces = sorted(traces_of(tmp_path / "trace").values(), key=lambda trace: trace.key["doc_id"])
    assert [list(trace.box) for trace in traces] == boxes[:4]
    assert traces[0].given_reply == "[0.10, 0.20, 0.50, 0.60]"
    for trace in traces:
        assert (trace.grounding, trace.box_shift, trace.locate) == ("annotated", 10, None)
        dx, dy = (trace.shifted_box[axis] - trace.box[axis] for axis in (0, 1))
        assert math.hypot(dx * 200, dy * 100) == pytest.approx(10)
    without = run(boxed, model_args=model_args + ",resume=True")  # the fifth has no box
    assert (without.returncode, "Traceback" in without.stderr) == (2, False)
    assert len(traces_of(tmp_path / "trace")) == 4


def test_252_real_pope_questions_through_two_processes_and_in_batches(run, shared_data, tmp_path):
    """Real photos and questions; the model's weights are random, so that the score means nothing."""
    real = {"DUALFOCUS_DATA": str(shared_data / "benchmarks")}
    for name, command in (("one", EVAL), ("two", TWO_PROCESSES)):
        done = run(command, "--tasks", "df_pope", model_args=f"batch_size=8,trace={tmp_path / name}", **real)
        assert done.returncode == 0, done.stderr[-3000:]
    one = traces_of(tmp_path / "one")
    assert len(one) == 252
    assert len({trace.image_hash for trace in one.values()}) == 14
    assert_same_answers(one, traces_of(tmp_path / "two"))
