"""The attention that a trace keeps: its values, its place on the image, its size, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from PIL import Image

from dualfocus_lmms import Trace
from dualfocus_lmms.api import DualFocusModel
from dualfocus_lmms.attention_map import MOST_BYTES, SIDE, AttentionMap
from dualfocus_lmms.testing import FakeBackend

WHOLE = (0.0, 0.0, 1.0, 1.0)


def weights(rows: int, columns: int, value: Callable[[int, int], float]) -> Image.Image:
    image = Image.new("F", (columns, rows))
    image.putdata([value(row, column) for row in range(rows) for column in range(columns)])
    return image


def flat(found: AttentionMap) -> list[float]:
    return [value for row in found.values for value in row]


@pytest.mark.parametrize(("low", "high"), [(1e-8, 3e-4), (0.2, 70.0), (-2.0, -1.0)])
def test_values_are_kept_to_half_a_step_of_255(low: float, high: float):
    chance = random.Random(0)
    given = [low, high, *(chance.uniform(low, high) for _ in range(598))]
    found = AttentionMap.of(weights(20, 30, lambda row, column: given[30 * row + column]), WHOLE)
    assert (found.rows, found.columns) == (20, 30)
    assert (found.lowest, found.highest) == pytest.approx((low, high), rel=1e-5)
    assert flat(found) == pytest.approx(given, abs=0.51 * (high - low) / 255)


def test_more_cells_than_a_side_holds_become_their_means():
    found = AttentionMap.of(weights(3, 2 * SIDE, lambda row, column: 10.0 * row + column), WHOLE)
    assert (found.rows, found.columns) == (3, SIDE)
    expected = [10.0 * row + 2 * column + 0.5 for row in range(3) for column in range(SIDE)]
    assert flat(found) == pytest.approx(expected, abs=0.2)


def test_equal_weights_have_no_range():
    found = AttentionMap.of(weights(2, 3, lambda row, column: 0.25), WHOLE)
    assert flat(found) == [0.25] * 6
    assert found.image((30, 20)).getextrema() == (0, 0)


def test_a_map_in_a_trace_takes_no_more_than_its_bound():
    """The largest one, with the longest numbers: the border of a very thin image lies far outside of it."""
    chance = random.Random(0)
    area = (-41666.1666671, -41666.1666671, 41667.1666671, 41667.1666671)
    found = AttentionMap.of(weights(99, 99, lambda row, column: chance.uniform(-1.23e-7, 1e-8)), area)
    assert (found.rows, found.columns) == (SIDE, SIDE)
    assert SIDE * SIDE < len(json.dumps({"attention": asdict(found)})) <= MOST_BYTES


def test_the_image_of_a_map_covers_the_whole_image_and_nothing_beside_it():
    """4 x 4 cells on the middle half of the height: the image shows the two rows between."""
    found = AttentionMap.of(weights(4, 4, lambda row, column: float(row)), (0.0, -0.5, 1.0, 1.5))
    shown = found.image((40, 200))
    assert (shown.mode, shown.size) == ("L", (40, 200))
    assert [shown.getpixel((20, y)) for y in (50, 150)] == pytest.approx([85, 170], abs=1)
    assert shown.getextrema()[0] > 0
    assert shown.getextrema()[1] < 255


def test_a_map_of_an_image_that_is_next_to_nothing_beside_its_padding():
    area = (-5e7, 0.0, 5e7, 1.0)
    assert AttentionMap.of(weights(4, 2, lambda row, column: float(row)), area).image((1, 9)).size == (1, 9)


def traced() -> Trace:
    trace = DualFocusModel.on(FakeBackend({"macro": "red"}), pathway="macro").ask(
        Image.new("RGB", (9, 9)), "?"
    )
    return replace(trace, attention=AttentionMap.of(weights(2, 2, lambda row, column: row + column), WHOLE))


def test_a_trace_has_it_only_where_it_is_kept():
    kept = traced()
    assert Trace.from_json(kept.to_json()) == kept
    older = json.loads(kept.to_json())
    del older["attention"]
    assert json.loads(replace(kept, attention=None).to_json()) == older
    assert Trace.from_json(json.dumps(older)).attention is None


@pytest.mark.parametrize(
    "damage",
    [
        {"rows": 3},
        {"rows": 0},
        {"rows": 64, "columns": 64, "cells": "A" * 5464},
        {"cells": "AAAA"},
        {"cells": "not base64"},
        {"cells": "é" * 8},
        {"area": [0.0, 0.0, 0.0, 1.0]},
        {"area": [1.0, 0.0, 0.0, 1.0]},
        {"area": [0.0, 0.0, 1.0]},
        {"lowest": "0"},
        {"more": 1},
    ],
)
def test_a_damaged_map_is_a_damaged_trace(damage: dict[str, object]):
    values = json.loads(traced().to_json())
    values["attention"] |= damage
    with pytest.raises(ValueError, match="attention"):
        Trace.from_json(json.dumps(values))
