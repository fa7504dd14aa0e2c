"""The unmodified host on our model and tasks: every way of starting it gives the same answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dualfocus_lmms import Trace, read_traces
from dualfocus_lmms.trace import trace_key

pytestmark = pytest.mark.seconds(90)

HOST = [sys.executable, "-m", "lmms_eval", "--model", "dualfocus"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# `dualfocus eval` with some lists of arguments in the same processes: what takes longest is to start them.
ONE_AFTER_THE_OTHER = """
import json, os, sys
from dualfocus_lmms.cli import main

for data, arguments in json.loads(sys.argv.pop()):
    os.environ["DUALFOCUS_DATA"] = data
    sys.argv = ["dualfocus", "eval", *arguments]
    try:
        main()
    except SystemExit as stopped:
        if stopped.code:
            raise
"""


@pytest.fixture(scope="module")
def two_processes(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    pope_folder: Path,
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of runs on two processes: miniature/, with results, and real/ where there is real data."""
    out = tmp_path_factory.mktemp("two")
    written = ["--output_path", str(out / "miniature"), "--log_samples"]
    runs = [run_of(pope_folder, tiny_checkpoint, out / "miniature" / "trace", *written)]
    try:
        data = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        pass
    else:
        runs.append(run_of(data / "benchmarks", tiny_checkpoint, out / "real" / "trace"))
    script = out / "script.py"
    script.write_text(ONE_AFTER_THE_OTHER)
    done = subprocess.run(
        [*LAUNCH, str(script), json.dumps(runs)],
        env=os.environ | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr.lower(), done.stderr
    return out


def run_of(data: Path, checkpoint: Path, trace: Path, *more: str) -> tuple[str, list[str]]:
    """A folder of benchmark files, and the arguments of a run on its POPE in batches of 8."""
    model_args = f"pretrained={checkpoint},batch_size=8,trace={trace}"
    return str(data), ["--tasks", "df_pope", "--model_args", model_args, *more]


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


def test_one_process_two_processes_and_the_bare_host_give_the_same_answers_and_scores(
    run, environment, two_processes, tiny_checkpoint, pope_folder, tmp_path
):
    """Two processes, and the bare host in one: its own command, with its own tasks beside ours."""
    ways = {name: tmp_path / name for name in ("one", "bare")} | {"two": two_processes / "miniature"}
    written = ["--output_path", str(ways["one"]), "--log_samples"]
    done = run("--tasks", "df_pope", *written, model_args=f"batch_size=1,trace={ways['one'] / 'trace'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr.lower(), done.stderr
    written = ["--output_path", str(ways["bare"]), "--log_samples"]
    _, arguments = run_of(pope_folder, tiny_checkpoint, ways["bare"] / "trace", *written)
    done = subprocess.run(
        [*HOST, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr.lower(), done.stderr
    one, bare, two = (traces_of(folder / "trace") for folder in ways.values())
    assert len(one) == 60
    assert_same_answers(one, two)
    assert_same_answers(one, bare)
    assert sorted(path.name for path in (ways["two"] / "trace").glob("*.jsonl")) == [
        "rank0.jsonl",
        "rank1.jsonl",
    ]
    expected = scores(ways["one"])
    assert set(expected) == {"df_pope", "df_pope_random", "df_pope_popular", "df_pope_adversarial"}
    for name in ("two", "bare"):
        for task, metrics in scores(ways[name]).items():
            assert metrics == pytest.approx(expected[task])
    assert 0 < expected["df_pope_random"]["f1_stderr,none"] < 100
    data = [json.loads((folder / "trace" / "data.json").read_text()) for folder in ways.values()]
    assert data[0] == data[1] == data[2]
    assert {name: about["samples"] for name, about in data[0].items()} == {
        f"df_pope_{split}/{split}": 20 for split in ("random", "popular", "adversarial")
    }
    results = json.loads(next(ways["one"].rglob("*_results.json")).read_text())["results"]
    for name, about in data[0].items():
        assert about["questions"] == 20
        task = results[name.partition("/")[0]]
        assert about["questions_fingerprint"] == task["questions_fingerprint,none"]
    by_hand = [trace.selection.text.lower() == "yes" for trace in one.values()]
    assert expected["df_pope"]["yes_ratio,none"] == pytest.approx(100 * sum(by_hand) / len(by_hand))
    sample = json.loads(next(ways["one"].rglob("*samples_df_pope_random.jsonl")).read_text().splitlines()[0])
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
            "--tasks", "df_pope_random", *arguments, model_args=f"{model_args},trace={tmp_path / name}"
        )
        assert done.returncode == 0, done.stderr[-3000:]
    chat, simple, macro = (traces_of(tmp_path / name) for name in ("chat", "simple", "macro"))
    assert_same_answers(chat, simple)
    for key, trace in macro.items():
        assert trace.micro is None
        assert trace.selection.text == chat[key].macro.text
        assert trace.macro.logprobs == pytest.approx(chat[key].macro.logprobs, abs=1e-4)


BOXED_TASK = """
task: df_boxed
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_visual: !function dualfocus_lmms.tasks.common.sources.images
doc_to_text: "{{question}}\\nAnswer the question using a single word or phrase."
doc_to_target: answers
generation_kwargs: {max_new_tokens: 8, do_sample: false, temperature: 0}
process_results: !function dualfocus_lmms.tasks.common.scoring.answer_results
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
    boxed = ["--tasks", "df_boxed", "--include_path", str(tmp_path)]
    ours = {"DUALFOCUS_ONLY_OUR_TASKS": "1"}  # not the host's own, which take long to read

    model_args = f"grounding=annotated,box_shift=10,batch_size=3,trace={tmp_path / 'trace'}"
    done = run(*boxed, "--limit", "4", model_args=model_args, **ours)
    assert done.returncode == 0, done.stderr[-3000:]
    traces = sorted(traces_of(tmp_path / "trace").values(), key=lambda trace: trace.key["doc_id"])
    assert [list(trace.box) for trace in traces] == boxes[:4]
    assert traces[0].given_reply == "[0.10, 0.20, 0.50, 0.60]"
    for trace in traces:
        assert (trace.grounding, trace.box_shift, trace.locate) == ("annotated", 10, None)
        dx, dy = (trace.shifted_box[axis] - trace.box[axis] for axis in (0, 1))
        assert math.hypot(dx * 200, dy * 100) == pytest.approx(10)
    without = run(*boxed, model_args=model_args + ",resume=True", **ours)  # the fifth has no box
    assert (without.returncode, "Traceback" in without.stderr) == (2, False)
    assert len(traces_of(tmp_path / "trace")) == 4


def test_252_real_pope_questions_through_two_processes_and_in_batches(
    run, two_processes, shared_data, tmp_path
):
    """Real photos and questions; the model's weights are random, so that the score means nothing."""
    real = {"DUALFOCUS_DATA": str(shared_data / "benchmarks")}
    done = run("--tasks", "df_pope", model_args=f"batch_size=8,trace={tmp_path}", **real)
    assert done.returncode == 0, done.stderr[-3000:]
    one = traces_of(tmp_path)
    assert len(one) == 252
    assert len({trace.image_hash for trace in one.values()}) == 14
    assert_same_answers(one, traces_of(two_processes / "real" / "trace"))
