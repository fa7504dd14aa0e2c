"""Reports of whole runs on drawn scenes, with images, and of those that were killed."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.results.report import build as reports
from dualfocus_lmms.results.report.build import Report, report

WriteRun = Callable[..., Path]  # see conftest
Scripts = dict[str, Any]


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, nano_scripts: Scripts, write_nano: WriteRun
) -> tuple[Report, Path]:
    """The report of a run of 20 samples and of one that was killed after 6, with moved boxes."""
    folder = tmp_path_factory.mktemp("runs")
    write_nano(folder / "whole", nano_scripts, drawn=True)
    some = {kind: scripts[:3] for kind, scripts in nano_scripts.items()}
    write_nano(folder / "killed", some, True, {"box_shift": 25}, finished=False)
    with (folder / "killed" / "traces" / "rank0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": {"task": "df_na')
    return report([folder / "whole", folder / "killed"], folder / "out", images=12), folder / "out"


def test_the_files(two: tuple[Report, Path]):
    written, out = two
    assert (written.samples, written.images) == (26, 12)
    assert {path.name for path in out.iterdir()} >= {
        "report.html",
        "report.md",
        "comparison.csv",
        "comparison_by_task.csv",
        "run1_ablation.csv",
        "run2_ablation.csv",
        "run1_samples.csv",
        "run1_adaptive.svg",
        "run2_boxes.svg",
    }
    assert (out / "report.html").stat().st_size < 3_000_000


def test_the_figures_are_those_of_the_script(two: tuple[Report, Path]):
    frame = pd.read_csv(two[1] / "run1_ablation.csv").set_index("task")
    detail = frame.loc["df_nano_detail"]
    assert (detail["samples"], detail["macro"], detail["micro"], detail["selected"]) == (10, 20, 80, 90)
    assert (detail["wrong to right"], detail["right to wrong"], detail["contested"]) == (7, 0, 8)
    assert frame.loc["all questions", "samples"] == 20
    samples = pd.read_csv(two[1] / "run1_samples.csv")
    assert samples["outcome"].value_counts().to_dict() == {
        "both right": 8,
        "rescued": 9,
        "kept": 1,
        "both wrong": 2,
    }
    right = pd.read_csv(two[1] / "run1_right.csv").set_index(["task", "answers"])
    assert right.loc[("df_nano_detail", "micro"), ["right", "only selected right"]].tolist() == [80, 1]
    located = pd.read_csv(two[1] / "run1_located.csv").set_index("task")
    assert located.loc["df_nano_exist", ["samples", "with a box"]].tolist() == [10, 90]
    shown = pd.read_csv(two[1] / "run1_coverage.csv").set_index("coverage")
    assert shown.loc["all", ["samples", "macro"]].tolist() == [19, pytest.approx(100 * 8 / 19)]
    assert samples["coverage"].min() > 0.95  # the boxes are the annotated ones, with three digits
    assert samples.groupby("task")["iou"].mean()["df_nano_exist"] == pytest.approx(1, abs=0.02)


def test_runs_are_compared(two: tuple[Report, Path]):
    frame = pd.read_csv(two[1] / "comparison.csv").set_index("run")
    assert frame["box_shift"].to_dict() == {"whole": 0, "killed": 25}
    assert frame.loc["killed", "in both"] == 6
    assert frame.loc["killed", "difference"] == 0
    paired = pd.read_csv(two[1] / "comparison_paired.csv").set_index("task")
    assert paired["in both"].to_dict() == {"df_nano_detail": 3, "df_nano_exist": 3, "all questions": 6}
    assert set(paired["run"]) == {"killed"}
    assert not (two[1] / "budgets.csv").exists()  # moved boxes are no budget


def test_the_page_says_what_is_missing(two: tuple[Report, Path]):
    text = (two[1] / "report.html").read_text(encoding="utf-8")
    (notice,) = [one for one in re.findall(r'<p class="notice">(.*?)</p>', text) if "samples are here" in one]
    assert "df_nano_detail: 3 of 1,501" in notice
    assert "df_nano_exist: 3 of 1,020" in notice
    assert "cannot be read: 1" in notice


def test_no_heading_comes_twice(tmp_path: Path, nano_scripts: Scripts, two: tuple[Report, Path]):
    report([two[1].parent / "whole"], tmp_path, images=0)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    headings = [line.lstrip("# ") for line in lines if line.startswith("#")]
    assert len(set(headings)) == len(headings) > 8
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    seen = re.findall(r"<(?:h[1-3]|figcaption)>([^<]+)</", text)
    assert len(set(seen)) == len(seen) > 8


def test_the_page_draws_the_annotated_boxes(two: tuple[Report, Path]):
    text = (two[1] / "report.html").read_text(encoding="utf-8")
    rows = json.loads(re.search(r'id="rows-data">(.*?)</script>', text, re.DOTALL)[1])
    moved = [
        (box, annotated)
        for box, annotated, iou in zip(rows["box"], rows["annotated"], rows["iou"], strict=True)
        if iou is not None and iou > 0.9
    ]
    assert len(moved) > 5
    assert all(box == pytest.approx(annotated, abs=0.001) for box, annotated in moved)
    assert len(rows["details"]) == len(rows["id"])


def test_dates_are_those_of_the_host_in_singapore(two: tuple[Report, Path]):
    text = (two[1] / "report.html").read_text(encoding="utf-8")
    assert 'datetime="2026-11-22T00:00:00+08:00"' in text


def test_markdown_has_the_same_tables_and_its_plots(two: tuple[Report, Path]):
    text = (two[1] / "report.md").read_text(encoding="utf-8")
    assert "| df_nano_detail |        10 |          10 |" in text
    plots = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(plots) >= 6
    assert [name for name in plots if not (two[1] / name).exists()] == []


def test_kinds_come_from_the_first_column_that_names_some():
    assert reports.kinds([{"category": "a", "kind": "x"}, {"category": "b", "kind": "y"}]).tolist() == [
        "a",
        "b",
    ]
    assert reports.kinds([{"category": "", "kind": "x"}, {"category": "b", "kind": "y"}]).tolist() == [
        "x",
        "y",
    ]
    assert reports.kinds([{"category": str(n)} for n in range(41)]).tolist() == [None] * 41
    assert reports.kinds([{"other": "a"}]).tolist() == [None]


def test_mistakes_are_named(tmp_path: Path, write_nano: WriteRun, nano_scripts: Scripts):
    run = write_nano(tmp_path / "run", nano_scripts)
    with pytest.raises(UserError, match="twice"):
        report([run, run], tmp_path / "out", 0)
    with pytest.raises(UserError, match="--traces"):
        report([run, tmp_path], tmp_path / "out", 0, traces=run / "traces")
    with pytest.raises(UserError, match="--pictures"):
        report([run], tmp_path / "out", -1)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="--out"):
        report([run], tmp_path / "file" / "out", 0)
    for path in (run / "traces").glob("rank*.jsonl"):
        path.unlink()
    with pytest.raises(UserError, match="trace"):
        report([run], tmp_path / "out", 0)


def test_images_that_are_other_ones_are_not_shown(
    tmp_path: Path, write_nano: WriteRun, nano_scripts: Scripts
):
    run = write_nano(tmp_path / "run", {"detail": nano_scripts["detail"]}, drawn=False)
    written = report([run], tmp_path / "out", 5)
    assert (written.samples, written.images) == (10, 0)
    assert "The images are not available" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "ablation.csv").exists()  # no prefix: one run


def test_thousands_of_samples_take_seconds(
    tmp_path: Path, write_nano: WriteRun, random_scripts: Callable[..., Any]
):
    """All 1,501 details; 100,000 traces took 43 s of processor time and 1.6 GB."""
    run = write_nano(tmp_path / "run", {"detail": random_scripts(random.Random(0), "detail", 1501)})
    start = time.process_time()
    written = report([run], tmp_path / "out", 0)
    assert written.samples == 1501
    assert time.process_time() - start < 30
    assert (tmp_path / "out" / "report.html").stat().st_size < 1_500_000


def test_hostile_names_are_text_in_the_files(tmp_path: Path, nano_scripts: Scripts, write_nano: WriteRun):
    name = "<img src=x> ![y](z) `|"
    settings = {"pretrained": "<b>*bold*</b> | [x](http:y)"}
    write_nano(tmp_path / name, {kind: some[:2] for kind, some in nano_scripts.items()}, False, settings)
    report([tmp_path / name], tmp_path / "out", images=0)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt; ![y](z) `|" in page
    blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(
        (tmp_path / "out" / "report.md").read_text("utf-8")
    )
    children = [child for block in blocks for child in block.children or []]
    assert not {child.type for child in children} & {"html_inline", "link_open", "em_open"}
    assert {child.content for child in children if child.type == "code_inline"} == {"dualfocus calibrate"}
    images = {child.attrs["src"] for child in children if child.type == "image"}
    assert images == {path.name for path in (tmp_path / "out").glob("*.svg")}
    assert "".join(child.content for child in blocks[1].children) == name
    assert any("<b>*bold*</b> | [x](http:y)" in _text(block) for block in blocks)


def _text(block: Any) -> str:
    return "".join(child.content for child in block.children or [])
