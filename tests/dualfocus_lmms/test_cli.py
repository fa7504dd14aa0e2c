"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import errno
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import GenerationError, Trace, UserError, __version__, api, cli
from dualfocus_lmms.testing import FakeBackend, Reply

SCRIPT = {"macro": Reply("red", (-0.7,)), "locate": "[0.25, 0.25, 0.50, 0.75]", "micro": "blue"}
RealModel = api.DualFocusModel


class Done:
    """A finished command: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["dualfocus", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return Done(int(stopped.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Put a scripted model in the place of the one that loads weights; what it was made with."""

    def install(script: Any = SCRIPT) -> list[dict[str, Any]]:
        made = []

        def model(
            pretrained: str,
            device: str | None,
            dtype: str,
            family: str | None,
            chat_template: str,
            min_pixels: int | None,
            max_pixels: int | None,
            **settings: Any,
        ) -> api.DualFocusModel:
            loaded = {"pretrained": pretrained, "device": device, "dtype": dtype}
            made.append({**loaded, "chat_template": chat_template, **settings})
            return RealModel.on(FakeBackend(script), **settings)

        monkeypatch.setattr(api, "DualFocusModel", model)
        return made

    return install


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 20), "red").save(path)
    return path


def test_ask_prints_both_answers_the_region_and_the_choice(run, scripted, photo: Path):
    scripted()
    done = run("ask", photo, "What colour?", "--pretrained", "x")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "pathway         answer    perplexity\n"
        "--------------  --------  ------------\n"
        "macro           red       2.014\n"
        "micro (chosen)  blue      1.105\n"
        "\n"
        "Region: [0.250, 0.250, 0.500, 0.750] of the image; "
        "crop: x 10 to 20, y 5 to 15 (10 x 10 of 40 x 20 pixels)\n"
        "Micro answer, chosen by the rule ppl; ln PPL(micro) - ln PPL(macro) = -0.600: micro is surer\n"
    )


def test_ask_prints_the_perplexities_that_a_joint_rule_compared(run, scripted, photo: Path):
    """Their logarithms differ by what stands below them; those of the pathways do not."""
    scripted()
    out = run("ask", photo, "What colour?", "--pretrained", "x", "--protocol", "release").out
    assert "perplexity by release" in out.splitlines()[0]
    macro, micro = (
        float(line.split()[-1]) for line in out.splitlines() if line.startswith(("macro", "micro"))
    )
    (margin,) = re.findall(r"ln PPL\(micro\) - ln PPL\(macro\) = ([-+.\d]+)", out)
    assert math.log(micro) - math.log(macro) == pytest.approx(float(margin), abs=0.003)
    assert (macro, micro) != (2.014, 1.105)  # those of the pathways


def test_ask_says_why_there_is_no_micro_answer(run, scripted, photo: Path):
    scripted({"macro": Reply("1e3", (-0.7,)), "locate": "I see none."})
    assert run("ask", photo, "What colour?", "--pretrained", "x").out == (
        "pathway         answer    perplexity\n"
        "--------------  --------  ------------\n"
        "macro (chosen)  1e3       2.014\n"
        "micro           -         -\n"
        "\n"
        "Macro answer: the reply to the locate question holds no box\n"
    )


def test_ask_passes_its_options_on(run, scripted, photo: Path):
    made = scripted()
    options = {
        "--pretrained": "some/model",
        "--protocol": "release",
        "--select": "macro",
        "--skip-confidence": "0.9",
        "--box-margin": "3",
        "--crop-pixels": "original",
        "--grounding": "center",
        "--instruction": "Say it.",
        "--max-new-tokens": "7",
        "--device": "cpu",
        "--dtype": "float32",
        "--chat-template": "family",
    }
    given = [word for pair in options.items() for word in pair]
    trace = Trace.from_json(run("ask", photo, "What colour?", *given, "--json").out)
    assert made == [
        {
            "pretrained": "some/model",
            "device": "cpu",
            "dtype": "float32",
            "chat_template": "family",
            "protocol": "release",
            "select": "macro",
            "skip_confidence": 0.9,
            "box_margin": 3,
            "crop_pixels": "original",
            "grounding": "center",
            "grounding_checkpoint": None,
            "prompts": None,
        }
    ]
    assert (trace.box, trace.locate) == ((0.25, 0.25, 0.75, 0.75), None)
    assert trace.prompts["macro"] == "What colour?\nSay it."
    assert (trace.selection.rule, trace.selection.text) == ("macro", "red")


def test_ask_json_is_the_trace_and_nothing_else(run, scripted, photo: Path):
    scripted()
    done = run("ask", photo, "What colour?", "--pretrained", "x", "--json")
    assert done.out.count("\n") == 1
    data = json.loads(done.out)
    assert (data["selection"]["text"], data["box"], data["crop"]) == (
        "blue",
        [0.25, 0.25, 0.5, 0.75],
        [10, 5, 20, 15],
    )


def test_ask_saves_the_picture(run, scripted, photo: Path, tmp_path: Path):
    scripted()
    assert run("ask", photo, "What?", "--pretrained", "x", "--save", tmp_path / "out.png").code == 0
    with Image.open(tmp_path / "out.png") as saved:
        assert min(saved.size) > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "papr"], "Error: Unknown protocol 'papr': choose one of paper, release. Did"),
        (["--select", "best"], "Error: Unknown selection rule 'best': choose one of "),
        (["--skip-confidence", "2"], "Error: skip_confidence is a probability from 0"),
        (["--box-margin", "-1"], "Error: box_margin is a number of pixels, 0 or more, got -1.\n"),
        (["--crop-pixels", "large"], "Error: crop_pixels is 'auto'"),
        (["--crop-pixels", "0"], "Error: crop_pixels is 'auto'"),
        (["--max-new-tokens", "0"], "Error: max_new_tokens must be at least 1, got 0.\n"),
        (["--save", "out.doc"], "Error: 'out.doc' is not the name of an image file: end it with"),
        (["--save", "none/out.png"], "Error: The folder 'none' of the image does not exist: make it"),
        (["--box-margin", "wide"], "Invalid value for '--box-margin'"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(run, scripted, photo: Path, options: list, message: str):
    scripted()
    done = run("ask", photo, "What?", "--pretrained", "x", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_missing_picture_or_checkpoint_is_named(run, photo: Path):
    done = run("ask", "none.png", "What?", "--pretrained", "x")
    assert (done.code, done.err) == (2, "Error: No image exists at 'none.png': check the path.\n")
    done = run("ask", photo, "What?", "--pretrained", "/none/here")
    assert done.code == 2
    assert done.err.startswith("Error: Cannot load the checkpoint '/none/here'")
    done = run("ask", photo, "What?")
    assert done.code == 2
    assert "Missing option '--pretrained'" in done.err


def test_a_failure_of_the_model_is_exit_code_1(run, scripted, photo: Path):
    def broken(*_: object) -> str:
        raise GenerationError("logits are not numbers")

    scripted(broken)
    done = run("ask", photo, "What?", "--pretrained", "x")
    assert (done.code, done.out, done.err) == (1, "", "Error: logits are not numbers\n")


def test_a_bug_is_not_hidden(scripted, photo: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["dualfocus", "ask", str(photo), "What?", "--pretrained", "x"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_bug_is_a_plain_traceback_and_exit_code_1():
    code = (
        "import sys; from dualfocus_lmms import cli, api; api.load_image = lambda path: 1 / 0; "
        "sys.argv = ['dualfocus', 'ask', 'a', 'b', '--pretrained', 'c']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


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
        ["--help"],
        ["--tasks", "df_pope", "--model_args", "pretrained=a b,trace=c", "--limit", "4", "-h"],
        ["--batch_size=4", "--log_samples", "word", "--version"],
    ],
)
def test_eval_passes_everything_to_the_host(run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]):
    received = []

    def evaluate(arguments: list[str], check_questions: object) -> int:
        received.append(list(arguments))
        return 3

    monkeypatch.setattr("dualfocus_lmms.models.host.evaluate.evaluate", evaluate)
    done = run("eval", *arguments)
    assert (done.code, done.out, done.err) == (3, "", "")
    assert received == [arguments]


def test_eval_shows_the_hosts_user_errors(run, monkeypatch: pytest.MonkeyPatch):
    def evaluate(arguments: list[str], check_questions: object) -> int:
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
    from dualfocus_lmms.models.host.replay import ReplayOptions
    from dualfocus_lmms.models.server.host import ServerOptions
    from dualfocus_lmms.options import table

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
    assert [word for word in ("ask", "tiny", "eval", "bench") if f"\n  {word} " not in done.out] == []
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
    assert (done.returncode, "nothing is kept" in done.stderr) == (130, True)
    assert not list((tmp_path / "out").glob("VG_100K*"))
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
