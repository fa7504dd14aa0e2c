"""The benchmark at the size of a toy: what it counts, what it reports. Times are not judged here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

from dualfocus_lmms import UserError
from dualfocus_lmms.models import bench as benchmark
from dualfocus_lmms.models.bench import DUAL, MACRO, NAIVE, SKIPPING, Plan
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.loading import Checkpoint
from dualfocus_lmms.models.tiny import character_tokenizer, llava_config

PLAN = Plan(batch_sizes=(2,), samples=4, repeats=1, new_tokens=3, box_tokens=24, skip_share=0.5)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a run returns, and the JSON it writes."""
    out = tmp_path_factory.mktemp("bench")
    text = benchmark.bench("tiny", [1], samples=2, repeats=2, skip_share=0.5, out=str(out))
    assert (out / "report.md").read_text(encoding="utf-8") == text
    return text, json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_every_mode_is_measured(report: tuple[str, dict[str, Any]]):
    rows = {row["mode"]: row for row in report[1]["rows"]}
    assert list(rows) == [MACRO, DUAL, SKIPPING, NAIVE]
    assert rows[MACRO]["time_ratio"] == rows[MACRO]["token_ratio"] == 1
    assert [rows[mode]["skipped"] for mode in rows] == [0, 0, 0.5, 0]
    assert [rows[mode]["forwards_per_batch"] for mode in rows] == [3, 30, 16.5, 33]
    assert [rows[mode]["encodes_per_sample"] for mode in rows] == [1, 2, 1.5, 8]
    assert 1 < rows[SKIPPING]["token_ratio"] < rows[DUAL]["token_ratio"] < rows[NAIVE]["token_ratio"]
    for row in rows.values():
        assert row["time_ratio_min"] <= row["time_ratio"] <= row["time_ratio_max"]


def test_the_page_shows_the_figures_of_the_json(report: tuple[str, dict[str, Any]]):
    text, data = report
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert [line[1] for line in cells[2:]] == [row["mode"] for row in data["rows"]]
    for line, row in zip(cells[2:], data["rows"], strict=True):
        ratio, low, high = (row[f"time_ratio{end}"] for end in ("", "_min", "_max"))
        assert line[0] == str(row["batch_size"])
        assert line[3] == f"{ratio:.2f} ({low:.2f} to {high:.2f})"
        assert line[6:8] == [f"{row['tokens_per_sample']:.1f}", f"{row['token_ratio']:.3f}"]
    for word in (data["setup"]["date"], data["setup"]["hardware"], torch.__version__, "float32", "tiny"):
        assert word in text


def test_the_page_says_what_was_checked(report: tuple[str, dict[str, Any]]):
    text, data = report
    assert data["tokens"]["holds"] is None  # 16 tokens an image
    assert data["engines"]["holds"] is True
    assert data["engines"]["answers"] == data["engines"]["same_tokens"] == 12
    assert f"differ by at most {data['engines']['largest_gap']:.1e}" in text
    [memory] = data["memory"]
    assert (
        memory["second_image_bytes"] == 16 * 2 * 2 * 64 * 4
    )  # tokens, keys and values, layers, width, float32
    if memory["holds"] is None:
        assert "not measured" in text
    else:
        assert memory["bound_bytes"] == round(1.3 * memory["macro_bytes"] + memory["second_image_bytes"])
        assert memory["holds"] == (memory["dualfocus_bytes"] <= memory["bound_bytes"])


def test_at_576_tokens_an_image_two_passes_cost_at_most_2_1_times_the_tokens():
    config = llava_config("tiny", words := character_tokenizer())
    config.vision_config.image_size, config.image_seq_length = 336, 576
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    macro, dual, skipping = benchmark.measure(Checkpoint(model, words, processor, LLAVA), PLAN)
    assert (
        576 + 40 < macro["tokens_per_sample"] < 576 + 70
    )  # POPE's prompts are some 60 tokens with Llama's words
    assert 2 < dual["token_ratio"] <= 2.1
    assert skipping["token_ratio"] == pytest.approx(1 + (dual["token_ratio"] - 1) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("share", "skipped"), [(0, 0), (0.2, 1), (0.5, 2), (0.58, 2), (0.75, 3), (0.9, 4), (1, 4)]
)
def test_the_threshold_lets_the_share_skip(share: float, skipped: int):
    confidences = [0.3, 0.9, 0.5, 0.7]
    threshold = benchmark.skip_threshold(confidences, share)
    assert sum(confidence > threshold for confidence in confidences) == skipped


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 3}, "fill whole batches"),
        ({"repeats": 0}, "whole numbers from 1"),
        ({"batch_sizes": ()}, "whole numbers from 1"),
        ({"box_tokens": 0.58}, "whole numbers from 1"),
        ({"skip_share": 58}, "share from 0 to 1"),
    ],
)
def test_an_impossible_plan_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        replace(PLAN, **values)


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match=r"Unknown size '1t': choose one of tiny, 100m, 7b\."):
        benchmark.bench("1t")
