"""`dualfocus ask`: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dualfocus_lmms import GenerationError, Trace, cli
from dualfocus_lmms.testing import Reply


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
        "Micro answer, chosen by the rule ppl; ln PPL(micro) - ln PPL(macro) = -0.600: "
        "micro is more certain\n"
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
            "regions": "union",
            "looks": 1,
            "grounding": "center",
            "grounding_checkpoint": None,
            "prompts": None,
            "keep_maps": False,
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


def test_ask_saves_the_image(run, scripted, photo: Path, tmp_path: Path):
    scripted()
    assert run("ask", photo, "What?", "--pretrained", "x", "--save", tmp_path / "out.png").code == 0
    with Image.open(tmp_path / "out.png") as saved:
        assert min(saved.size) > 300


@pytest.mark.parametrize(("grounding", "kept"), [("attention", True), ("center", False)])
def test_ask_keeps_the_map_that_it_draws(
    run, scripted, photo: Path, tmp_path: Path, grounding: str, kept: bool
):
    """A scripted model has no attention, so what it is asked for is looked at."""
    made = scripted()
    place = ["--grounding", grounding, "--save", tmp_path / "out.png"]
    done = run("ask", photo, "What?", "--pretrained", "x", *place)
    assert ([one["keep_maps"] for one in made], done.code) == ([kept], 2 if kept else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "papr"], "Error: Unknown protocol 'papr': choose one of paper, release. Did"),
        (["--select", "best"], "Error: Unknown selection rule 'best': choose one of "),
        (["--skip-confidence", "2"], "Error: skip_confidence is a probability from 0"),
        (["--box-margin", "-1"], "Error: box_margin is a number of pixels, 0 or more, got -1.\n"),
        (["--crop-pixels", "large"], "Error: crop_pixels is 'auto'"),
        (["--crop-pixels", "0"], "Error: crop_pixels is 'auto'"),
        (["--max-new-tokens", "0"], "Error: max_new_tokens must be a whole number, 1 or more, got 0.\n"),
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


def test_a_missing_image_or_checkpoint_is_named(run, photo: Path):
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (40, 20), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_and_several_questions_are_asked_of_one_model(run, scripted, folder: Path):
    made = scripted()
    done = run("ask", folder, "What?", "Where?", "--pretrained", "x", "--json", "--save", folder / "out")
    traces = [Trace.from_json(line) for line in done.out.splitlines()]
    asked = [(Path(trace.key["image"]).name, trace.prompts["macro"].splitlines()[0]) for trace in traces]
    assert asked == [("a.jpg", "What?"), ("a.jpg", "Where?"), ("b.png", "What?"), ("b.png", "Where?")]
    assert [trace.key["id"] for trace in traces] == ["0", "1", "2", "3"]
    assert len(made) == 1
    assert sorted(file.name for file in (folder / "out").iterdir()) == [
        "1-a.png",
        "2-a.png",
        "3-b.png",
        "4-b.png",
    ]


@pytest.mark.parametrize("given", [[], ["-"]])
def test_questions_come_from_standard_input(run, scripted, photo: Path, monkeypatch, given: list[str]):
    scripted()
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n\n Where? \n"))
    done = run("ask", photo, *given, "--pretrained", "x")
    assert re.findall(r"photo\.png: (\w+\?)", done.out) == ["What?", "Where?"]
    assert done.out.count("micro (chosen)") == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["photo.png"], "standard input"), (["empty", "What?"], "'empty'"),
     (["photo.png", "What?", "Where?", "--save", "a.png"], "folder")],
)  # fmt: skip
def test_nothing_to_ask_is_a_mistake(run, scripted, photo: Path, monkeypatch, arguments: list, word: str):
    scripted()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    monkeypatch.chdir(photo.parent)
    (photo.parent / "empty").mkdir()
    done = run("ask", *arguments, "--pretrained", "x")
    assert (done.code, done.out) == (2, "")
    assert word in done.err.lower()


def test_an_interruption_says_how_many_are_answered(run, scripted, photo: Path):
    asked = []

    def stop(stage: str, conversation: object) -> str:
        asked.append(stage)
        if len(asked) > 3:
            raise KeyboardInterrupt
        return "red"

    scripted(stop)
    done = run("ask", photo, "What?", "Where?", "Why?", "--pretrained", "x")
    assert done.code == 130
    assert re.search(r"\b1 of 3\b", done.err)


def test_progress_is_for_a_terminal(run, scripted, photo: Path, monkeypatch):
    scripted()
    monkeypatch.setattr("dualfocus_lmms.cli.output.sys.stderr.isatty", lambda: True, raising=False)
    lines = run("ask", photo, "What?", "--pretrained", "some/model").err.splitlines()
    assert len(lines) == 2
    assert "some/model" in lines[0]
