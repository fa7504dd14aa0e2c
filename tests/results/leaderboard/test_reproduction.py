"""Measured figures beside the printed ones, and what is said of the difference."""

from __future__ import annotations

import datetime

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.results.leaderboard.records import Measured, MeasuredTask, Score
from dualfocus_lmms.results.leaderboard.reproduction import (
    Reproduced,
    compare,
    frame,
    model_of,
    published_models,
    table,
)


def row(value: float, error: float | None = 0.5, published: float | None = 68.9, n: int = 100) -> Reproduced:
    return Reproduced(
        "release", "df_seed_image", "accuracy", "selected", value, error, n, 100, published, "t"
    )


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (row(68.9), "reproduced"),
        (row(68.9 + 1.02), "reproduced"),  # 1.96 standard errors and half a digit are 1.03
        (row(68.9 + 1.04), "higher"),
        (row(68.9 - 1.04), "lower"),
        (row(68.9, error=None), "no standard error"),
        (row(10.0, n=99), "not all questions"),
        (row(68.9, published=None), "not printed"),
    ],
)
def test_verdicts(figure: Reproduced, verdict: str):
    assert figure.verdict == verdict


def test_the_interval_has_the_standard_error_and_half_a_printed_digit():
    assert row(67.9).interval == pytest.approx((-1 - 0.97998 - 0.05, -1 + 0.97998 + 0.05), abs=1e-4)
    assert row(67.9, published=None).interval is None


def test_the_model_of_a_checkpoint():
    assert published_models() == ["LLaVA-1.5-13B", "LLaVA-1.5-7B", "Qwen-VL-Chat", "ShareGPT4V-13B"]
    assert model_of("yhcao/DualFocus-LLaVA-1.5-7B") == "LLaVA-1.5-7B"
    assert model_of("/models/dualfocus-sharegpt4v-13b/") == "ShareGPT4V-13B"
    assert model_of("runs/mine", "Qwen-VL-Chat") == "Qwen-VL-Chat"
    with pytest.raises(UserError, match="Qwen-VL-Chat"):
        model_of("runs/mine")
    with pytest.raises(UserError, match=r"LLaVA-1\.5-7B"):
        model_of("runs/mine", "LLaVA-1.5-7")


def measured(**tasks: dict[str, dict[str, float]]) -> Measured:
    return Measured(
        finished=datetime.datetime(2026, 11, 28),
        hardware="one CPU",
        commit=None,
        model="M",
        method="DualFocus release",
        versions={},
        settings={},
        headline=list(tasks),
        tasks={
            name: MeasuredTask(
                n=50,
                questions=50,
                version="1.0",
                fingerprints={},
                scores={
                    way: {metric: Score(value=value, error=1.0) for metric, value in scores.items()}
                    for way, scores in ways.items()
                },
            )
            for name, ways in tasks.items()
        },
    )


def test_each_protocol_is_compared_with_its_own_tables():
    ways = {way: {"accuracy": value, "unknown": 1.0} for way, value in (("selected", 68.0), ("macro", 66.0))}
    run = measured(
        df_seed_image=ways,
        df_pope_random={"selected": {"f1": 88.0}},
        df_vstar={"selected": {"accuracy": 50.0}},
    )
    rows = compare({"release": run, "paper": run}, "LLaVA-1.5-7B")
    assert [
        (each.protocol, each.task, each.metric, each.answers, each.published, each.table) for each in rows
    ] == [
        ("release", "df_seed_image", "accuracy", "selected", 68.9, "model zoo"),
        ("release", "df_pope_random", "f1", "selected", None, ""),
        ("paper", "df_seed_image", "accuracy", "selected", 68.9, "table 1"),
        ("paper", "df_seed_image", "accuracy", "macro", 66.7, "table 3"),
        ("paper", "df_pope_random", "f1", "selected", None, ""),
    ]
    assert frame(rows)["difference"].round(1).iloc[0] == -0.9
    assert "-0.9 (-2.9 to +1.1)" in table(rows)
