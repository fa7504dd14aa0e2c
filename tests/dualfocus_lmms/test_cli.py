"""The commands but `ask`: what they print, where, and with which exit code."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dualfocus_lmms import Trace, UserError, __version__, cli


def test_tiny_makes_a_checkpoint_that_ask_can_load(run, photo: Path, tmp_path: Path):
    folder = tmp_path / "made"
    done = run("tiny", folder, "--steps", "0", "--seed", "3")
    assert done.code == 0
    assert done.out == (
        f"{folder}: a LLaVA checkpoint of size tiny. Its weights are random, its answers mean nothing.\n"
    )
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava"
    done = run(
        "ask", photo, "What?", "--pretrained", folder, "--max-new-tokens", "2", "--json", "--device", "cpu"
    )
    assert done.code == 0
    assert len(Trace.from_json(done.out).macro.logprobs) <= 2
    done = run("tiny", folder)
    assert (done.code, done.err) == (2, f"Error: {folder} exists already: give a new folder.\n")


@pytest.mark.parametrize(
    ("options", "steps"), [([], 150), (["--size", "100m"], 0), (["--size", "100m", "--steps", "9"], 9)]
)
def test_tiny_teaches_only_the_smallest_by_default(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list, steps: int
):
    made = []
    monkeypatch.setattr("dualfocus_lmms.models.tiny.llava.save_tiny", lambda *given: made.append(given))
    assert run("tiny", tmp_path / "new", "--tokenizer", "words", "--seed", "5", *options).code == 0
    size = options[1] if options else "tiny"
    assert made == [(tmp_path / "new", size, "words", 5, steps)]


def test_tiny_names_the_sizes(run, tmp_path: Path):
    done = run("tiny", tmp_path / "new", "--size", "huge")
    assert (done.code, done.err) == (2, "Error: Unknown size 'huge': choose one of tiny, 100m, 7b.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tasks", "df_pope", "--model_args", "pretrained=a b,trace=c", "--limit", "4"],
        ["--batch_size=4", "--log_samples", "word", "--version"],
    ],
)
def test_eval_passes_everything_to_the_host(run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]):
    received = []

    def evaluate(arguments: list[str], *_: object) -> int:
        received.append(list(arguments))
        return 3

    monkeypatch.setattr("dualfocus_lmms.models.host.evaluate.evaluate", evaluate)
    done = run("eval", *arguments)
    assert (done.code, done.out, done.err) == (3, "", "")
    assert received == [arguments]


def test_help_of_eval_begins_with_our_arguments_and_tasks(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dualfocus_lmms.models.host.evaluate.evaluate", lambda *_: 0)
    lines = run("eval", "--help").out.splitlines()
    shown = [line.split()[0].rstrip(",") for line in lines if line[:2] == "  " and line[2:3].isalpha()]
    assert shown[0] == "pretrained"
    assert {"trace", "resume", "batch_size", "df_nano", "df_pope"} <= set(shown)
    assert max(map(len, lines)) <= 80


def test_tasks_are_all_of_ours(run):
    words = set(re.findall(r"\bdf_\w+", run("tasks").out))
    files = list((Path(__file__).parents[2] / "tasks").glob("*/df_*.yaml"))
    assert len(files) > 20
    assert {file.stem for file in files} == words


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"model_args": "pretrained=x,trace=t", "output_path": None}, ["scores of t", "report t "]),
        (
            {"model_args": "pretrained=x,trace=t", "output_path": "my out"},
            ["scores of t", "report 'my out' "],
        ),
        ({"model_args": "pretrained=x", "output_path": "o"}, ["trace=FOLDER"]),
        ({"model": "dualfocus_replay", "model_args": "trace=t", "output_path": None}, []),
    ],
)
def test_eval_ends_with_the_scores_and_the_next_command(
    run, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], shown: list[str]
):
    def evaluate(arguments: list[str], check: object, finished: Callable[[Any], None]) -> int:
        finished(SimpleNamespace(**{"model": "dualfocus", **given}))
        return 0

    monkeypatch.setattr("dualfocus_lmms.models.host.evaluate.evaluate", evaluate)
    monkeypatch.setattr("dualfocus_lmms.results.summary.summary", lambda traces: f"scores of {traces}")
    out = run("eval").out
    assert [text for text in shown if text not in out] == []
    assert bool(out) == bool(shown)


def test_eval_shows_the_hosts_user_errors(run, monkeypatch: pytest.MonkeyPatch):
    def evaluate(arguments: list[str], *_: object) -> int:
        raise UserError("No task.")

    monkeypatch.setattr("dualfocus_lmms.models.host.evaluate.evaluate", evaluate)
    done = run("eval")
    assert (done.code, done.err) == (2, "Error: No task.\n")


def test_bench_passes_its_options_and_prints_the_report(run, monkeypatch: pytest.MonkeyPatch):
    received = []
    from dualfocus_lmms.models.bench.benchmark import Plan
    from dualfocus_lmms.models.bench.model import Source

    def bench(*given: Any) -> str:
        received.append(given)
        return "| engine | ratio |"

    monkeypatch.setattr("dualfocus_lmms.models.bench.benchmark.bench", bench)
    assert run("bench").out == "| engine | ratio |\n"
    work = "--batch-size 2 --batch-size 8 --samples 8 --repeats 1 --new-tokens 4 --box-tokens 30"
    model = "--size tiny --family llava --device cpu --dtype bfloat16 --engine tree --skip-share 0.2"
    run("bench", *work.split(), *model.split(), "--out", "folder", "--profile")
    plan = Plan(
        batch_sizes=(2, 8), samples=8, repeats=1, new_tokens=4, box_tokens=30, skip_share=0.2,
        engines=("tree",),
    )  # fmt: skip
    source = Source(size="tiny", family="llava", device="cpu", dtype="bfloat16")
    assert received == [
        (Source(), Plan(), None, False),  # the command has the benchmark's defaults
        (source, plan, "folder", True),
    ]


def test_arguments_are_those_of_a_model_class(run):
    from dualfocus_lmms.models.host.options import ModelOptions
    from dualfocus_lmms.models.server.options import ServerOptions
    from dualfocus_lmms.options_text import table
    from dualfocus_lmms.replay import ReplayOptions

    assert run("arguments").out == f"{table(ModelOptions)}\n"
    assert run("arguments", "--model", "dualfocus_server").out == f"{table(ServerOptions)}\n"
    assert run("arguments", "--model", "dualfocus_replay").out == f"{table(ReplayOptions)}\n"
    assert run("arguments", "--model", "llava").code == 2


def test_score_prints_the_table_and_writes_the_file(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    received = []

    class Scores:
        def markdown(self) -> str:
            return "| f1 | 87.14 |"

        def save(self, path: str) -> None:
            received.append(path)

    module = ModuleType("dualfocus_lmms.tasks.common.score_group")
    module.score_any = lambda *given: received.append(given) or Scores()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dualfocus_lmms.tasks.common.score_group", module)
    done = run("score", "--task", "df_pope_random", "--answers", "a.jsonl")
    assert (done.code, done.out, done.err) == (0, "| f1 | 87.14 |\n", "")
    run("score", "--task", "t", "--answers", "a.xlsx", "--out", "scores.json", "--include-path", "mine")
    assert received == [("df_pope_random", "a.jsonl", None), ("t", "a.xlsx", "mine"), "scores.json"]


def test_help_lists_the_commands_and_is_light(run):
    done = run("--help")
    assert done.code == 0
    listed = re.findall(r"^  (\w+)  ", done.out.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(cli.ORDER)
    assert "..." not in done.out.partition("Commands:")[2]  # no line is cut off
    code = (
        "import sys; from dualfocus_lmms import cli; sys.argv = ['dualfocus', 'ask', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(run):
    done = run("--version")
    assert (done.code, done.out) == (0, f"{__version__}\n")


def test_an_underscore_in_an_option_or_a_command_is_a_hyphen(run):
    done = run("bench", "--batch_size", "1", "--new_tokens", "1", "--size", "huge")
    assert (done.code, "'huge'" in done.err) == (2, True)
    assert run("data", "gqa_mcq", "--help").code == 0


def test_a_command_that_is_mistyped_is_named(run):
    assert "'eval'" in run("evall").err


def test_no_command_is_a_mistake(run):
    done = run()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_an_interruption_says_what_is_kept_and_is_in_the_way_of_nothing(
    run_command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualfocus_lmms.train.data import scene_files

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ("dualfocus", "data", "scenes", str(tmp_path / "out"), "--count", "2")
    with monkeypatch.context() as patch:
        patch.setattr(scene_files, "_qas", interrupted)
        done = run_command(*command)
    assert (done.returncode, "2 of 2" in done.stderr) == (130, True)
    assert not (tmp_path / "out" / "VG_100K").exists()
    assert run_command(*command).returncode == 0
    assert len(list((tmp_path / "out" / "VG_100K").iterdir())) == 2


def test_a_full_disk_is_one_message(run_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from dualfocus_lmms import families

    def full() -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "file.json")

    monkeypatch.setattr(families, "table", full)
    done = run_command("dualfocus", "families")
    assert done.returncode == 2
    assert "file.json" in done.stderr
    assert "Traceback" not in done.stderr
