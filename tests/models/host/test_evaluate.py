"""`dualfocus eval` on arguments that the host would misread, and on results that it cannot write."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from loguru import logger

from dualfocus_lmms import UserError
from dualfocus_lmms.models.host.evaluate import evaluate

ASKED = ["--tasks", "df_nano", "--model_args", "pretrained=none"]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Namespace], None]], None]:
    """Puts a function of the parsed arguments in the place of the host's run."""
    import lmms_eval.__main__ as host

    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(logging.root, "handlers", logging.root.handlers)

    def replace(single: Callable[[Namespace], None]) -> None:
        monkeypatch.setattr(host, "cli_evaluate_single", lambda args: (single(args), None))

    replace(lambda args: None)
    yield replace
    logger.remove()
    logger.add(sys.stderr)


def save(args: Namespace) -> None:
    """What the host does with results at the end of a run."""
    from lmms_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=args.output_path)
    tracker.general_config_tracker.model_name_sanitized = "nano"
    tracker.save_results_aggregated(results={"results": {}}, samples={}, datetime_str="now")


@pytest.mark.parametrize("given", ["max_new_tokns=2", "max_new_tokens", "until=x,max_gen_toks=3"])
def test_generation_settings_that_would_change_nothing_are_refused(host, given: str) -> None:
    with pytest.raises(UserError):
        evaluate([*ASKED, "--gen_kwargs", given])
    assert evaluate([*ASKED, "--model", "other", "--gen_kwargs", "max_gen_toks=3"]) == 0


@pytest.mark.parametrize("given", ["max_new_tokens=2,until=['a,b'],do_sample=False", "temperature=0", ""])
def test_generation_settings_that_are_known_pass(host, given: str) -> None:
    assert evaluate([*ASKED, "--gen_kwargs", given]) == 0


def test_a_model_that_does_not_exist_is_a_mistake(host) -> None:
    from lmms_eval.models import get_model

    host(lambda args: get_model(args.model))
    with pytest.raises(UserError, match="dualfocus_replay"):
        evaluate([*ASKED, "--model", "dualfocuss"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--tasks", "df_nanno"], "df_nano"),
        (["--tasks", "df_nano,df_poope"], "df_pope"),
        (["--model", "dualfocs"], "dualfocus"),
        (["--output_pth", "x"], "--output_path"),
        (["--trust-remote", "--outptu-path=x"], "--output_path"),
    ],
)
def test_a_name_that_is_mistyped_is_named(host, given: list[str], meant: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean {meant}\\?"):
        evaluate([*ASKED, *given])


def test_options_have_underscores_or_hyphens(host, tmp_path: Path) -> None:
    asked: list[Namespace] = []
    host(asked.append)
    words = ["--output-path", str(tmp_path / "a-b"), "--batch-size=2", "--effect_size=0.5", "--log-samples"]
    assert evaluate([*ASKED, *words, "--gen-kwargs", "until=--model-x"]) == 0
    (args,) = asked
    assert (args.output_path, args.batch_size, args.effect_size) == (str(tmp_path / "a-b"), "2", 0.5)
    assert (args.gen_kwargs, args.log_samples) == ("until=--model-x", True)


def test_a_task_of_another_folder_is_not_ours_to_judge(host) -> None:
    assert evaluate([*ASKED, "--tasks", "df_nanno", "--include_path", "mine"]) == 0
    assert evaluate([*ASKED, "--tasks", "df_*"]) == 0
    assert evaluate([*ASKED, "--model", "llava"]) == 0


def test_what_follows_a_run_is_told_its_arguments(host) -> None:
    told: list[Namespace] = []
    assert evaluate([*ASKED, "--limit", "7"], None, told.append) == 0
    assert [args.limit for args in told] == [7]
    host(lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(ASKED, None, told.append)
    assert len(told) == 1


def test_no_question_is_asked_where_no_result_can_be_written(host, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asked = []
    host(asked.append)
    with pytest.raises(UserError, match="file/results"):
        evaluate([*ASKED, "--output_path", str(tmp_path / "file" / "results")])
    assert asked == []


def test_results_that_could_not_be_written_are_no_success(host, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    host(save)
    assert evaluate([*ASKED, "--output_path", str(folder)]) == 0
    assert (folder / "nano" / "now_results.json").is_file()

    def save_where_a_file_is_in_the_way(args: Namespace) -> None:
        (folder / "nano" / "now_results.json").unlink()
        (folder / "nano").rmdir()
        (folder / "nano").touch()
        save(args)

    host(save_where_a_file_is_in_the_way)
    with pytest.raises(UserError, match="File exists"):
        evaluate([*ASKED, "--output_path", str(folder)])
