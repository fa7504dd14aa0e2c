"""The figures of a report on samples whose outcomes were made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dualfocus_lmms.results.report import accuracy as right
from dualfocus_lmms.results.report import box_tables, by_question, comparison, plots, tables
from dualfocus_lmms.results.trace_columns import COSTS

NAN = float("nan")


def samples(*rows: dict[str, Any]) -> pd.DataFrame:
    """Samples that differ in what is given from a right macro answer without a second look."""
    plain = {
        "task": "t",
        "dimension": None,
        "macro": 100.0,
        "micro": NAN,
        "ppl": (1.25, NAN),
        "pathway": "macro",
        "fallback": None,
        "annotated": False,
        "iou": NAN,
        "coverage": NAN,
    } | dict.fromkeys(COSTS, NAN)
    made = []
    for number, row in enumerate(rows):
        one = plain | {"doc_id": number, "question_key": str(number), "seconds_macro": 1.0} | row
        one["selected"] = one["macro"] if one["pathway"] == "macro" else one["micro"]
        one["oracle"] = one["macro"] if math.isnan(one["micro"]) else max(one["macro"], one["micro"])
        one["ppl_macro"], one["ppl_micro"] = one.pop("ppl")
        one["nll_macro"], one["nll_micro"] = (np.log(one[f"ppl_{way}"]) for way in ("macro", "micro"))
        made.append(one | {"confidence_macro": 1 / one["ppl_macro"]})
    return pd.DataFrame(made)


BOTH = {"seconds_locate": 2.0, "seconds_micro": 3.0}
RESCUED = {"macro": 0.0, "micro": 100.0, "ppl": (2.0, 1.1), "pathway": "micro", **BOTH}
SPOILED = {"macro": 100.0, "micro": 0.0, "ppl": (1.6, 1.5), "pathway": "micro", **BOTH}
KEPT = {"macro": 100.0, "micro": 0.0, "ppl": (1.1, 2.0), "pathway": "macro", **BOTH}
MISSED = {"macro": 0.0, "micro": 100.0, "ppl": (1.3, 1.4), "pathway": "macro", **BOTH}
ONE_LOOK = {"macro": 100.0, "ppl": (1.25, NAN), "fallback": "no_box"}
ALL_KINDS = (RESCUED, RESCUED, SPOILED, KEPT, MISSED, ONE_LOOK)


def test_the_pathways():
    (row,) = tables.ablation(samples(*ALL_KINDS)).frame.to_dict("records")
    assert (row["samples"], row["questions"]) == (6, 6)
    assert row["macro"] == pytest.approx(300 / 6)
    assert row["micro"] == pytest.approx(400 / 6)  # of the last one the macro answer
    assert row["selected"] == pytest.approx(400 / 6)
    assert row["oracle"] == 100
    assert row["gain"] == pytest.approx(100 / 6)
    assert (row["wrong to right"], row["right to wrong"], row["contested"]) == (2, 1, 5)
    assert row["choice right"] == 60  # of the contested: two rescued and one kept
    assert row["p"] == 1.0  # two against one
    assert row["gain, low"] < row["gain"] < row["gain, high"]


def test_right_answers_with_intervals_and_tests():
    both_right = {"micro": 100.0, "ppl": (1.2, 1.1), "pathway": "micro"}
    both_wrong = both_right | {"macro": 0.0, "micro": 0.0}
    some = samples(*[both_right] * 49, ONE_LOOK, *[RESCUED] * 30, *[SPOILED] * 5, *[both_wrong] * 15)
    frame = right.right_answers(some).frame.set_index("answers")
    assert frame["samples"].tolist() == [100] * 4
    assert frame["right"].to_dict() == pytest.approx({"macro": 55, "micro": 80, "selected": 80, "oracle": 85})
    assert frame.loc["selected", ["low", "high"]].tolist() == pytest.approx([71.1, 86.7], abs=0.05)  # by hand
    macro, micro = (frame.loc[way, ["only selected right", "only this right"]] for way in ("macro", "micro"))
    assert (macro.tolist(), micro.tolist()) == ([30, 5], [0, 0])
    assert frame["p"].tolist()[:2] == [pytest.approx(2.2e-5, rel=0.05), 1]
    assert frame.loc[["selected", "oracle"], ["only selected right", "p"]].isna().all(axis=None)


def test_right_answers_of_every_task():
    frame = right.right_answers(samples(RESCUED, MISSED, {"task": "u", "macro": 49.0})).frame
    assert frame["task"].unique().tolist() == ["t", "u", tables.ALL]
    assert frame.loc[frame["answers"] == "selected", "right"].tolist() == [50, 0, pytest.approx(100 / 3)]


def test_the_interval_of_the_gain_is_that_of_paired_differences():
    gains = np.array([100.0] * 30 + [-100.0] * 10 + [0.0] * 60)
    low, high = by_question.interval(gains, np.zeros(100), range(100))
    assert (low + high) / 2 == pytest.approx(20)
    assert high - low == pytest.approx(2 * 1.96 * gains.std(ddof=1) / 10, rel=0.1)


def test_several_tasks_have_a_row_each_and_one_together():
    frame = tables.ablation(samples(RESCUED, {"task": "u"}, {"task": "u"})).frame
    assert frame[["task", "samples", "selected"]].values.tolist() == [
        ["t", 1, 100],
        ["u", 2, 100],
        [tables.ALL, 3, 100],
    ]


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        ([1, 2, 3, 4], [False, False, True, True], 100),
        ([4, 3, 2, 1], [False, False, True, True], 0),
        ([1, 3, 2, 4], [False, False, True, True], 75),
        ([1, 1, 1, 1], [False, False, True, True], 50),
        ([1, 2, NAN, 3], [False, False, True, True], 100),
    ],
)
def test_auroc(values: list[float], positive: list[bool], expected: float):
    assert tables.auroc(values, positive) == expected


def test_auroc_of_one_kind_is_unknown():
    assert math.isnan(tables.auroc([1, 2], [True, True]))
    assert math.isnan(tables.auroc([], []))


def test_skipping_the_second_look_of_confident_answers():
    """Confidences 0.5, 0.5, 0.625, 0.91, 0.77, 0.8."""
    curve = tables.adaptive_curve(samples(*ALL_KINDS), [1.0, 0.7, 0.55, 0.0])
    assert curve["skip_confidence"].tolist() == [1.0, 0.7, 0.55, 0.0]
    assert curve["skipped"].tolist() == pytest.approx([0, 50, 400 / 6, 100])
    assert curve["score"].tolist() == pytest.approx([400 / 6, 400 / 6, 500 / 6, 50])  # 0.55 saves the spoiled
    assert curve["time against macro"].tolist() == pytest.approx([31 / 6, 21 / 6, 16 / 6, 1])
    assert curve["ms per sample"].iloc[-1] == pytest.approx(1000)


def test_what_a_run_skipped_itself_is_not_known_above_its_threshold():
    skipped = {"ppl": (1.25, NAN), "fallback": "skip_confidence"}  # a confidence of 0.8
    curve = tables.adaptive_curve(samples(RESCUED, skipped), [1.0, 0.9, 0.8, 0.6, 0.0])
    assert curve["skip_confidence"].tolist() == [0.8, 0.6, 0.0]


def test_without_times_the_curve_has_none():
    curve = tables.adaptive_curve(samples(RESCUED | {"seconds_macro": 0.0}), [1.0, 0.0])
    assert "ms per sample" not in curve


def test_perplexities_of_right_and_wrong_answers():
    frame = tables.perplexities(samples(*ALL_KINDS)).frame.set_index("answers")
    assert frame["samples"].to_dict() == {
        "macro, right": 3,
        "macro, wrong": 3,
        "micro, right": 3,
        "micro, wrong": 2,
    }
    assert frame.loc["macro, wrong", "median"] == pytest.approx(2.0)
    assert frame.loc["micro, right", "AUROC"] == 100


def test_what_stages_cost():
    frame = tables.stages(samples(*ALL_KINDS)).frame.set_index("stage")
    assert frame["samples"].to_dict() == {"macro": 6, "locate": 5, "micro": 5, "in all": 6}
    assert frame.loc["locate", "ms per sample"] == pytest.approx(10_000 / 6)
    assert frame.loc["in all", "time against macro"] == pytest.approx(31 / 6)


def test_the_pixels_that_a_model_received_are_a_cost_where_they_decide_its_tokens():
    assert "image pixels per sample" not in tables.stages(samples(*ALL_KINDS)).frame
    seen = {"pixels_macro": 1000.0, "pixels_micro": 500.0}
    frame = tables.stages(samples(RESCUED | seen, SPOILED | {"pixels_macro": 3000.0})).frame
    pixels = frame.set_index("stage")["image pixels per sample"]
    assert pixels.to_dict() == {"macro": 2000, "locate": 0, "micro": 250, "in all": 2250}


def test_second_looks_and_why_there_was_none():
    frame = tables.fallbacks(samples(*ALL_KINDS)).frame
    assert frame.iloc[:, 0].tolist() == ["second look", "no_box"]
    assert frame["samples"].tolist() == [5, 1]


def test_boxes_by_area_and_overlap():
    boxed = samples(
        RESCUED | {"area": 0.5, "crop_pixels": 100.0, "iou": 0.6},
        SPOILED | {"area": 1.0, "crop_pixels": 400.0, "iou": 0.0},
        KEPT | {"area": 100.0, "crop_pixels": 90_000.0, "iou": 1.0},
        ONE_LOOK,
    )
    areas = box_tables.boxes(boxed).frame.set_index("area")
    assert areas["samples"].to_dict() == {"0-1%": 1, "1-4%": 1, "50-100%": 1, "all": 3}
    assert areas["side"].tolist() == [10, 20, 300, 20]
    overlaps = box_tables.overlaps(boxed).frame.set_index("IoU of")
    assert overlaps["samples"].to_dict() == {"0-0.1": 1, "0.5-0.75": 1, "0.75-1": 1, "all": 3}
    assert overlaps.loc["0.5-0.75", "micro"] == 100
    assert box_tables.overlaps(samples(RESCUED)).frame.empty


def test_boxes_against_the_annotated_ones():
    box = {"annotated": True}
    some = samples(
        RESCUED | box | {"iou": 0.8, "coverage": 1.0},
        RESCUED | box | {"iou": 0.5, "coverage": 0.5},
        ONE_LOOK | box,  # it found none
        ONE_LOOK | box | {"fallback": "skip_confidence"},  # it was not asked for one
        ONE_LOOK | box | {"fallback": "pathway_macro"},
        RESCUED | {"task": "u"},
    )
    (row,) = box_tables.located(some).frame.to_dict("records")
    assert (row["task"], row["samples"]) == ("t", 3)
    assert row["with a box"] == pytest.approx(200 / 3)
    assert row["IoU"] == pytest.approx(1.3 / 3)
    assert row["IoU above 0.5"] == pytest.approx(100 / 3)
    assert row["coverage"] == pytest.approx(150 / 3)
    assert row["all of it shown"] == pytest.approx(100 / 3)
    assert box_tables.located(samples(RESCUED)).frame.empty


def test_scores_by_coverage():
    some = samples(
        RESCUED | {"coverage": 1.0},
        RESCUED | {"coverage": 0.9995},  # a crop is whole pixels
        SPOILED | {"coverage": 0.5},
        KEPT | {"coverage": 0.49},
        KEPT | {"coverage": 0.0},
        ONE_LOOK,
    )
    frame = box_tables.by_coverage(some).frame.set_index("coverage")
    assert frame["samples"].to_dict() == {"0": 1, "0-50%": 1, "50-100%": 1, "100%": 2, "all": 5}
    assert frame["micro"].tolist() == [0, 0, 0, 100, 40]
    assert frame["macro"].tolist() == [100, 100, 100, 0, 60]
    assert frame.loc["100%", "micro chosen"] == 100
    assert box_tables.by_coverage(samples(RESCUED)).frame.empty


def test_kinds_of_questions():
    frame = tables.dimensions(
        samples(RESCUED | {"dimension": "a"}, {"dimension": "b"}, SPOILED | {"dimension": "a"})
    )
    assert frame.frame[["kind", "samples", "macro", "selected"]].values.tolist() == [
        ["a", 2, 50, 50],
        ["b", 1, 100, 100],
    ]
    assert tables.dimensions(samples(RESCUED | {"dimension": "a"})).frame.empty
    assert tables.dimensions(samples(RESCUED)).frame.empty


def test_runs_are_compared_on_the_questions_of_both():
    first = samples(RESCUED, RESCUED, SPOILED)
    second = samples(RESCUED, MISSED, KEPT, ONE_LOOK)
    table = comparison.by_run(
        {"one": first, "two": second}, {"one": {"box_shift": 0}, "two": {"box_shift": 25}}
    )
    one, two = table.frame.to_dict("records")
    assert (one["box_shift"], two["box_shift"]) == ("0", "25")
    assert math.isnan(one["difference"])
    assert (two["in both"], two["difference"], two["p"]) == (3, pytest.approx(0), 1.0)
    assert two["selected"] == 75
    by_task = comparison.by_task({"one": first, "two": second}).frame
    assert by_task[["run", "answers"]].values.tolist()[3:] == [
        ["two", way] for way in ("macro", "micro", "selected")
    ]


def test_settings_that_are_the_same_are_no_columns():
    run = samples(RESCUED)
    table = comparison.by_run({"one": run, "two": run}, {"one": {"select": "ppl"}, "two": {"select": "ppl"}})
    assert "select" not in table.frame


def test_a_table_as_texts():
    frame = pd.DataFrame({"task": ["a|b", None], "n": [1234, 5], "p": [0.00012, NAN], "gain": [1.0, -2.0]})
    table = tables.Table("x", "X", frame, formats={"p": "{:.2g}"} | tables.SIGNED)
    assert table.cells() == [["a|b", "1,234", "0.00012", "+1.00"], ["-", "5", "-", "-2.00"]]
    assert table.numeric == [False, True, True, True]
    lines = table.markdown().splitlines()
    assert len(lines) == 4
    assert "a\\|b" in lines[2]


@pytest.mark.parametrize("some", [samples(*ALL_KINDS), samples(ONE_LOOK), samples(RESCUED)])
def test_plots_are_svg_that_takes_the_colours_of_its_page(some: pd.DataFrame):
    for plot in (plots.adaptive(some), plots.perplexities(some)):
        assert plot.startswith("<svg")
        assert plot == plot.strip() + "\n"
        assert "var(--ink" in plot
        assert "<metadata" not in plot
        assert "http" not in plot.replace("http://www.w3.org/", "")
    assert plots.adaptive(some) == plots.adaptive(some)
    assert plots.kinds(some) is None
    assert plots.areas(some) is None


def test_plots_of_kinds_and_areas():
    some = samples(*(row | {"dimension": str(n), "area": 10.0 * n} for n, row in enumerate(ALL_KINDS)))
    assert plots.kinds(some).startswith("<svg")
    assert plots.areas(some).startswith("<svg")
