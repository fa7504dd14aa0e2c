"""Replays on disk: the run's traces with the replay's choice, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import write_data
from dualfocus_lmms.results.runs import Run, load_run

Replay = Callable[..., Run]


@pytest.fixture
def replayed(tmp_path: Path, write_run: Callable[..., Path]) -> Replay:
    """A replay of a run of four samples, whose macro answers "yes" are more certain than micro's "no"."""
    write_run(tmp_path / "run", [100, 0, 100, 0])

    def load(
        model_args: Any, effective: int = 4, rows: Any = (), traces: Path | None = None, **config: Any
    ) -> Run:
        folder = tmp_path / "replay" / "model"
        folder.mkdir(parents=True, exist_ok=True)
        results = {
            "n-samples": {"df_local": {"original": 4, "effective": effective}},
            "config": {"model": "dualfocus_replay", "model_args": model_args, **config},
        }
        (folder / "20261123_000000_results.json").write_text(json.dumps(results), encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "20261123_000000_samples_df_local.jsonl").write_text(lines, encoding="utf-8")
        return load_run(tmp_path / "replay", traces, replays=True)

    return load


def chosen(run: Run) -> list[tuple[int, str, str, str]]:
    return [
        (trace.key["doc_id"], trace.selection.pathway, trace.selection.text, trace.selection.rule)
        for trace in run.tasks["df_local"].traces
    ]


def test_the_choice_is_that_of_the_replay(replayed: Replay, tmp_path: Path) -> None:
    traces = tmp_path / "run" / "traces"
    run = replayed(f"trace={traces},select=micro")
    assert chosen(run) == [(number, "micro", "no", "micro") for number in range(4)]
    assert (run.name, run.replay_of, run.settings["select"]) == ("replay", (str(traces),), "micro")
    assert run.settings["pretrained"] == "/somewhere/nano"
    assert load_run(tmp_path / "run").replay_of == ()
    given = {"trace": str(traces), "skip_confidence": 0.5}  # macro's is 0.9
    assert chosen(replayed(given)) == [(number, "macro", "yes", "ppl") for number in range(4)]
    assert {trace.fallback for trace in replayed(given).tasks["df_local"].traces} == {"skip_confidence"}


def test_only_the_questions_that_were_asked(replayed: Replay, tmp_path: Path) -> None:
    given = f"trace={tmp_path / 'run' / 'traces'}"
    run = replayed(given, effective=2)
    assert (run.tasks["df_local"].traces.doc_ids.tolist(), run.complete) == ([0, 1], 1.0)
    assert replayed(given, effective=2, offset=1).tasks["df_local"].traces.doc_ids.tolist() == [1, 2]


def test_another_choice_than_the_logged_one_is_refused(replayed: Replay, tmp_path: Path) -> None:
    given = f"trace={tmp_path / 'run' / 'traces'}"
    row = {"doc_id": 2, "token_counts": [{"dualfocus": {"pathway": "macro"}}]}
    assert chosen(replayed(given, rows=[row]))[2][1] == "macro"
    with pytest.raises(UserError, match=r"macro .*doc_id 2 .*micro"):
        chosen(replayed(f"{given},select=micro", rows=[row]))
    assert len(chosen(replayed(given, rows=[{"doc_id": 2, "token_counts": [None]}]))) == 4


def test_traces_that_have_moved(replayed: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert replayed("trace=run/traces,select=micro").replay_of == ("run/traces",)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"run/traces.*--traces"):
        replayed("trace=run/traces,select=micro")
    moved = tmp_path / "moved" / "traces"
    assert chosen(replayed("trace=run/traces,select=micro", traces=moved))[0][1] == "micro"


def test_two_runs(
    replayed: Replay, tmp_path: Path, write_traces: Callable[..., Path], trace_of: Callable[..., Any]
) -> None:
    """The second run was asked under another name, and its data say that they are the same questions."""
    docs = [{"question": f"Question {number}?"} for number in range(4)]
    others = [trace_of(number, "df_other", macro=f"other {number}") for number in range(4)]
    second = write_traces(tmp_path / "second", others, documents={"df_other/test": docs})
    given = f"trace={tmp_path / 'run' / 'traces'},second={second}"
    run = replayed(f"{given},select=micro")
    assert chosen(run) == [(number, "micro", f"other {number}", "micro") for number in range(4)]
    first = run.tasks["df_local"].traces[0]
    assert first.micro is not None
    assert (first.micro.pathway, first.ppl.keys(), first.box, first.shown) == (
        "micro",
        {"macro", "micro"},
        None,
        (),
    )
    assert first.prompts == {"macro": "Question 0?", "second": "Question 0?"}
    assert (run.settings["second"], run.replay_of[1]) == (str(second), str(second))
    row = {"doc_id": 0, "token_counts": [{"dualfocus": {"pathway": "second"}}]}
    assert chosen(replayed(f"{given},select=micro", rows=[row]))[0][1] == "micro"
    skipped = chosen(replayed(f"{given},skip_confidence=0.5"))  # macro's is 0.9
    assert skipped == [(number, "macro", "yes", "ppl") for number in range(4)]
    write_data(second, {"df_other/test": docs[::-1]})
    with pytest.raises(UserError, match="df_other"):
        chosen(replayed(given))


def test_replays_whose_files_are_not_whole(replayed: Replay, tmp_path: Path) -> None:
    traces = tmp_path / "run" / "traces"
    with pytest.raises(UserError, match="name=value"):
        replayed(f"trace={traces},select")
    with pytest.raises(UserError, match="nowhere"):
        replayed(f"trace={traces},second=nowhere")
    (traces / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json"):
        replayed(f"trace={traces},select=micro")
