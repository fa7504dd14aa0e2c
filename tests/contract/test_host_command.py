"""lmms-eval's command line and its log, inside of which `dualfocus eval` runs."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

LookUp = Callable[[str], Any]
TRACKER = "lmms_eval.loggers.evaluation_tracker"


class Stop(BaseException):
    """As `dualfocus eval` leaves the host, which catches every Exception."""


@pytest.fixture
def started(foreign: LookUp, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Namespace]]:
    """Runs the host's command with arguments; what it hands to `cli_evaluate_single`."""
    host = foreign("lmms_eval.__main__")
    handed: list[Namespace] = []

    def single(args: Namespace) -> None:
        handed.append(args)
        raise Stop

    def start(*arguments: str) -> Namespace:
        monkeypatch.setattr(sys, "argv", ["lmms-eval", *arguments])
        with pytest.raises(Stop):
            foreign("lmms_eval.__main__:cli_evaluate")()
        assert handed, "cli_evaluate no longer looks cli_evaluate_single up in its module"
        return handed[-1]

    monkeypatch.setattr(host, "cli_evaluate_single", single)
    monkeypatch.setattr(logging.root, "handlers", logging.root.handlers)
    yield start
    logger.remove()
    logger.add(sys.stderr)


def test_cli_evaluate_calls_cli_evaluate_single_of_its_module(started: Callable[..., Namespace]) -> None:
    """`dualfocus eval` puts a function in its place: called otherwise, a run that failed would exit with 0,
    and the host's own tasks would be read at every start."""
    args = started("--tasks", "df_pope,df_gqa", "--gen_kwargs", "max_new_tokens=2", "--output_path", "out")
    assert (args.tasks, args.gen_kwargs, args.output_path) == ("df_pope,df_gqa", "max_new_tokens=2", "out")


def test_the_defaults_that_are_looked_at(started: Callable[..., Namespace]) -> None:
    """`dualfocus eval`: it takes the model `hf` for none given, and tests the others against these."""
    args = started("--tasks", "t")
    assert args.model == "hf", "parse_eval_args: the default of --model"
    assert (args.limit, args.include_path, args.output_path, args.gen_kwargs) == (None, None, None, "")


def test_no_tasks_are_none(started: Callable[..., Namespace]) -> None:
    """`dualfocus eval` refuses a command without tasks, which the host would end with exit code 0."""
    assert started("--model", "m").tasks is None


def test_a_limit_is_a_number(started: Callable[..., Namespace]) -> None:
    """`dualfocus eval` refuses `--limit 0`, which the host would take for no limit."""
    assert started("--tasks", "t", "--limit", "0").limit == 0


def test_functions_that_check_arguments_have_their_names(foreign: LookUp) -> None:
    """`dualfocus eval` shows a ValueError out of one of these as the user's mistake, without traceback."""
    for name in (
        "lmms_eval.__main__:cli_evaluate",
        "lmms_eval.__main__:cli_evaluate_single",
        "lmms_eval.evaluator:simple_evaluate",
        "lmms_eval.models.registry_v2:ModelRegistryV2._require_model_id",
        "lmms_eval.api.task:ConfigurableMessagesTask.construct_requests",
    ):
        assert foreign(name).__name__ == name.rpartition(".")[2].rpartition(":")[2]


def test_a_wrong_argument_is_a_value_error_of_cli_evaluate_single(
    foreign: LookUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dualfocus eval`: the innermost frame of such an error lies in the host and has this name."""
    args = Namespace(
        tasks="t", include_path=None, verbosity="INFO", model="m", output_path=None, hf_hub_log_args="",
        write_out=False, predict_only=False, log_samples=True,
    )  # fmt: skip
    manager = foreign("lmms_eval.__main__:TaskManager")
    monkeypatch.setattr(manager, "initialize_tasks", lambda self, include_path, include_defaults: {})
    with pytest.raises(ValueError, match="output_path") as caught:
        foreign("lmms_eval.__main__:cli_evaluate_single")(args)
    frame = caught.traceback[-1].frame
    assert frame.code.name == "cli_evaluate_single"
    assert frame.f_globals["__name__"].startswith("lmms_eval.")


def tracked(foreign: LookUp, folder: Path) -> list[Any]:
    """What the host logs, by loguru from the tracker's module, when it writes results into a folder."""
    records: list[Any] = []
    sink = logger.add(lambda message: records.append(message.record), filter=TRACKER)
    try:
        tracker = foreign(f"{TRACKER}:EvaluationTracker")(output_path=str(folder))
        tracker.general_config_tracker.model_name_sanitized = "model"
        tracker.save_results_aggregated(results={"results": {}}, samples={}, datetime_str="20270101_000000")
        tracker.save_results_samples(task_name="t", samples=[{}])
    finally:
        logger.remove(sink)
    return records


def test_results_that_cannot_be_written_are_only_logged(foreign: LookUp, tmp_path: Path) -> None:
    """`dualfocus eval` reads "Could not save" in the log and fails; else such a run would succeed."""
    (tmp_path / "file").touch()
    records = tracked(foreign, tmp_path / "file")
    assert all(record["name"] == TRACKER for record in records)
    said = [record["message"] for record in records]
    failed = [place for place, text in enumerate(said) if text.startswith("Could not save")]
    assert len(failed) == 2, f"{TRACKER} no longer logs 'Could not save' for results and for samples: {said}"
    assert all("Error" in said[place + 1] for place in failed), f"the cause no longer comes next: {said}"


def test_results_that_are_written_are_no_failure(foreign: LookUp, tmp_path: Path) -> None:
    """`dualfocus eval`: a run without fault must not be taken for one, whatever else is logged."""
    said = [record["message"] for record in tracked(foreign, tmp_path)]
    assert not any(text.startswith("Could not save results") for text in said), said
    assert (tmp_path / "model" / "20270101_000000_results.json").is_file(), "EvaluationTracker: its file name"
