"""Other choices between recorded answers of df_nano: fitted rules and two prompts, as a replay chooses."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.results.report import choices, claims
from dualfocus_lmms.results.runs import load_run

WriteRun = Callable[..., Path]
KINDS = ("detail", "exist", "global")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, write_nano: WriteRun, random_scripts) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_nano(folder / name, {kind: random_scripts(random.Random(seed), kind, 40) for kind in KINDS})
        for seed, name in enumerate(("first", "second"))
    ]


def rule(folder: Path, b: float, fingerprint: str = "another") -> str:
    path = folder / "b.json"
    fitted_on = [{"task": "t", "split": "s", "questions_fingerprint": fingerprint, "samples": 1}]
    data = {"format": "dualfocus-calibration", "version": 1, "rule": "bias", "count_eos": False, "b": b}
    path.write_text(json.dumps(data | {"fitted_on": fitted_on}))
    return f"calibrated:{path}"


def test_eq_8_gives_what_the_run_chose(runs: list[Path]):
    samples = claims.answers(runs[0])
    assert choices.by_rule(load_run(runs[0]), samples, "ppl").tolist() == samples["selected"].tolist()


@pytest.mark.parametrize(("b", "way"), [(50.0, "macro"), (-50.0, "micro"), (0.0, "selected")])
def test_a_fitted_rule(runs: list[Path], tmp_path: Path, b: float, way: str):
    samples = claims.answers(runs[0])
    assert choices.by_rule(load_run(runs[0]), samples, rule(tmp_path, b)).tolist() == samples[way].tolist()


def test_rules_that_cannot_be_used_are_refused(runs: list[Path], tmp_path: Path):
    run, samples = load_run(runs[0]), claims.answers(runs[0])
    fingerprint = run.tasks["df_nano_exist"].data["questions_fingerprint"]
    with pytest.raises(UserError, match="df_nano_exist"):
        choices.by_rule(run, samples, rule(tmp_path, 0.0, fingerprint))
    with pytest.raises(UserError, match="micro_context"):
        choices.by_rule(run, samples, "micro_context")


def test_of_two_runs_the_more_certain_macro_answer_counts(runs: list[Path]):
    first, second = (claims.answers(run).set_index(["task", "doc_id"]) for run in runs)
    both = choices.by_second(load_run(runs[0]), claims.answers(runs[0]), load_run(runs[1]))
    for row in both.itertuples():
        one, two = (some.loc[(row.task, row.doc_id)] for some in (first, second))
        chosen = one if one["ppl_macro"] < two["ppl_macro"] else two
        assert (row.other, row.lower) == (two["macro"], chosen["macro"])


def test_a_second_run_of_other_questions_is_refused(
    runs: list[Path], tmp_path: Path, write_nano, random_scripts
):
    run, samples = load_run(runs[0]), claims.answers(runs[0])
    lacking = write_nano(tmp_path / "lacking", {"detail": random_scripts(random.Random(0), "detail", 40)})
    with pytest.raises(UserError, match="df_nano_exist"):
        choices.by_second(run, samples, load_run(lacking))
    fewer = {kind: random_scripts(random.Random(0), kind, 39) for kind in KINDS}
    with pytest.raises(UserError, match="3 of 120"):
        choices.by_second(run, samples, load_run(write_nano(tmp_path / "fewer", fewer)))


def test_a_page_gets_its_tables(runs: list[Path], tmp_path: Path, monkeypatch, capsys):
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text("before\n<!-- choices -->\nold\n<!-- end -->\nafter\n")
    given = ["--select", rule(tmp_path, 0.1), "--second", str(runs[1])]
    arguments = [str(runs[0]), *given, "--json", str(figures), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["choices", *arguments])
    choices.main()
    text = page.read_text()
    assert text.startswith("before\n<!-- choices -->\n| run ")
    assert text.endswith("|\n<!-- end -->\nafter\n")
    assert "| first | calibrated:b.json | all         | 120 |" in text
    assert capsys.readouterr().out.strip() in text
    found = json.loads(figures.read_text())
    row = found["rules"]["first"]["calibrated:b.json"]["against eq. 8"]["all"]
    assert row["value"] == pytest.approx(100 * (row["gained"] - row["lost"]) / 120)
    assert row["now"] - row["before"] == pytest.approx(row["value"])
    assert found["prompts"]["second"]["DualFocus"]["all"]["now"] == pytest.approx(row["before"])
    assert sorted(found["prompts"]["second"]["second"]) == ["all", "detail", "exist", "global"]


def test_boosted_trees_choose_between_the_same_answers(runs: list[Path], monkeypatch: pytest.MonkeyPatch):
    """examples/boosted_choice.py: what it sees of each trace, and a choice of one of the two answers."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "examples")
    trees = importlib.import_module("boosted_choice")
    samples = trees.samples_of(runs[0])
    assert samples["nll_macro"].tolist() == claims.answers(runs[0])["nll_macro"].tolist()
    located = samples[samples["area"].notna()]
    assert located["area"].between(0, 1).all()
    assert (located["nll_box"] >= 0).all()
    scores = trees.chosen(trees.samples_of(runs[1]), samples)
    assert ((scores == samples["macro"]) | (scores == samples["micro"])).all()
