"""`dualfocus calibrate` on runs whose answers are known: the table, the file, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dualfocus_lmms import Answer, Selection, Trace, UserError
from dualfocus_lmms.calibrated import Bias, Logistic
from dualfocus_lmms.cli import app
from dualfocus_lmms.plugins import load_rule
from dualfocus_lmms.results.calibration.build import calibrate
from dualfocus_lmms.results.summary import summary

pytest.importorskip("lmms_eval.tasks")

SHORT = "Answer the question using a single word or phrase."
# By ln PPL(macro) - ln PPL(micro): which answer is correct. Up to 0.45 it is macro's: b = 0.5 is best.
QUESTIONS = [(step / 10 + 0.05, "macro" if step < 5 else "micro") for step in range(-5, 15)] * 2
Make = Callable[..., Any]


@pytest.fixture
def finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trace_of: Make, write_traces: Make) -> Make:
    """Finish a run of df_local about these questions; its folder."""
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(
        name: str, questions: Any = QUESTIONS, ended: bool = True, micro: bool = True, **settings: Any
    ) -> Path:
        from dualfocus_lmms.tasks.common.score import load_task

        rows = [
            {"image": "a.png", "question": f"What is {number}?", "answer": way}
            for number, (_, way) in enumerate(questions)
        ]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setenv("DUALFOCUS_LOCAL", str(file))
        traces = []
        for number, (advantage, _) in enumerate(questions):
            first = Answer("macro", "macro", (1,), (-1.0,), False)
            second = Answer("micro", "micro", (1,), (advantage - 1.0,), False) if micro else None
            chosen = first if second is None or advantage < 0 else second
            traces.append(
                replace(
                    trace_of(number),
                    macro=first,
                    micro=second,
                    prompts={"macro": f"What is {number}?\n{SHORT}"},
                    selection=Selection(chosen.pathway, chosen.text, "ppl"),
                    ppl={"macro": math.e} | ({"micro": math.exp(1 - advantage)} if second else {}),
                )
            )
        documents = {"df_local/test": load_task("df_local").eval_docs_no_media} if ended else None
        given = {"pretrained": "nano", "count_eos": False} | settings
        return write_traces(tmp_path / name, traces, documents=documents, settings=given)

    return run


def test_what_is_written_and_said(finish: Make, tmp_path: Path):
    out = tmp_path / "b.json"
    found = calibrate([finish("run")], out)
    assert isinstance(found.rule.choice, Bias)
    assert found.rule.choice.b == pytest.approx(0.5)
    (row,) = found.table.frame.to_dict("records")
    assert (row["rule"], row["questions of"], row["n"], row["choice matters"]) == ("bias", "df_local", 40, 40)
    assert (row["b = 0"], row["fitted"], row["oracle"]) == (75, 100, 100)
    assert row["b = 0"] < row["cross-validated"] <= 100
    assert row["gain"] == pytest.approx(row["cross-validated"] - 75)
    assert row["gain, low"] < row["gain"] < row["gain, high"]
    assert 0 < row["p"] < 0.05
    assert row["b, low"] <= row["b"] <= row["b, high"]
    assert f"calibrated:{out}" in found.text
    assert "| bias" in found.text
    assert load_rule(f"calibrated:{out}") == found.rule
    data = json.loads(out.read_text())
    assert data["figures"][0]["fitted"] == 100
    assert data["runs"] == [{"run": "run", "settings": {"pretrained": "nano", "count_eos": False}}]
    (seen,) = data["fitted_on"]
    assert (seen["task"], seen["split"], seen["samples"]) == ("df_local", "test", 40)
    assert len(seen["questions_fingerprint"]) == 16


def test_each_trace_is_read_once(finish: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = finish("run")
    lines: list[bytes] = []
    read = Trace.from_json
    monkeypatch.setattr(Trace, "from_json", lambda line: lines.append(line) or read(line))
    calibrate([run], tmp_path / "b.json")
    assert len(lines) == len(set(lines)) == len(QUESTIONS)
    summary(run)
    assert len(lines) == 2 * len(QUESTIONS)


def test_the_same_run_gives_the_same_file(finish: Make, tmp_path: Path):
    run = finish("run")
    calibrate([run], tmp_path / "one.json", "logistic")
    calibrate([run], tmp_path / "two.json", "logistic")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_logistic_rule_is_shown_beside_b(finish: Make, tmp_path: Path):
    found = calibrate([finish("run")], tmp_path / "rule.json", "logistic", folds=4)
    assert isinstance(found.rule.choice, Logistic)
    frame = found.table.frame.set_index("rule")
    assert frame.index.tolist() == ["bias", "logistic"]
    assert frame["b"].isna().tolist() == [False, True]
    assert frame.loc["logistic", "fitted"] > 90
    loaded = load_rule(f"calibrated:{tmp_path / 'rule.json'}")
    assert (loaded.choice, loaded.fitted_on) == (found.rule.choice, found.rule.fitted_on)


def test_the_answers_of_two_runs_to_one_question_belong_together(finish: Make, tmp_path: Path):
    """So that the interval is no narrower for a run that is given as a copy."""
    one, again = finish("one"), finish("again")
    single, double = (calibrate(runs, tmp_path / "b.json").table.frame for runs in ([one], [one, again]))
    assert double.loc[0, "n"] == 80
    assert (
        double.loc[0, ["b", "b, low", "b, high"]].tolist()
        == single.loc[0, ["b", "b, low", "b, high"]].tolist()
    )
    assert len(load_rule(f"calibrated:{tmp_path / 'b.json'}").fitted_on) == 1


def test_what_cannot_be_had_is_said(finish: Make, tmp_path: Path):
    found = calibrate([finish("run", [(0.2, "macro"), (0.3, "macro"), (0.4, "cat")])], tmp_path / "b.json")
    (row,) = found.table.frame.to_dict("records")
    assert (row["choice matters"], row["b"]) == (2, pytest.approx(0.8))
    found = calibrate([finish("one", [(0.2, "macro"), (0.4, "cat")])], tmp_path / "b.json")
    (row,) = found.table.frame.to_dict("records")
    assert row["fitted"] == 50
    assert math.isnan(row["cross-validated"])
    assert math.isnan(row["p"])
    assert "No cross-validation" in found.text
    assert json.loads((tmp_path / "b.json").read_text())["figures"][0]["cross-validated"] is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"micro": False}, ["40 samples", "0 have a micro answer"]),
        ({"questions": [(0.5, "cat"), (0.1, "dog")]}, ["2 samples", "2 have a micro answer"]),
        ({"ended": False}, ["not ended", "resume=True"]),
    ],
)
def test_a_run_that_tells_nothing_is_refused(finish: Make, tmp_path: Path, given: dict, named: list[str]):
    run = finish("run", **given)
    with pytest.raises(UserError) as caught:
        calibrate([run], tmp_path / "b.json")
    assert all(words in str(caught.value) for words in named)
    assert not (tmp_path / "b.json").exists()


def test_mistakes_are_named(finish: Make, tmp_path: Path):
    one, other = finish("one"), finish("other", count_eos=True)
    for named, given in {
        "tree": {"runs": [one], "rule": "tree"},
        "--folds": {"runs": [one], "folds": 1},
        "--traces": {"runs": [one, other], "traces": one},
        "count_eos": {"runs": [one, other]},
        "--out": {"runs": [one], "out": one / "rank0.jsonl" / "b.json"},
    }.items():
        with pytest.raises(UserError, match=named):
            calibrate(**{"out": tmp_path / "b.json"} | given)
    with pytest.raises(UserError, match="logistic"):
        calibrate([finish("macro", [(0.1, "macro"), (0.2, "macro")])], tmp_path / "b.json", "logistic")


def test_the_command(finish: Make, tmp_path: Path):
    done = CliRunner().invoke(app, ["calibrate", str(finish("run")), "--out", str(tmp_path / "b.json")])
    assert done.exit_code == 0, done.output
    assert "cross-validated" in done.output
    assert load_rule(f"calibrated:{tmp_path / 'b.json'}").choice == Bias(pytest.approx(0.5))
