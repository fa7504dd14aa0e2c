"""Coverage of annotated regions by crops, against areas worked out by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from dualfocus_lmms.results.coverage import annotated_regions, coverage, should_have_looked

SIZE = (100, 50)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("crops", "regions", "share"),
    [
        ([(0, 0, 50, 50)], [LEFT], 1),
        ([(0, 0, 100, 50)], [LEFT], 1),
        ([(50, 0, 100, 50)], [LEFT], 0),
        ([(25, 0, 100, 50)], [LEFT], 0.5),
        ([(10, 10, 35, 20)], [LEFT], 0.1),  # 25 x 10 of 50 x 50 pixels
        ([(0, 0, 50, 50)], [LEFT, RIGHT], 0.5),
        ([(0, 0, 50, 50), (75, 0, 100, 50)], [LEFT, RIGHT], 0.75),
        ([(0, 0, 50, 50), (0, 0, 50, 50)], [LEFT, (0.25, 0.0, 0.75, 1.0)], 2 / 3),  # each pixel once
        ([(-20, -20, 25, 70)], [LEFT], 0.5),  # a padded crop
        ([(0, 0, 50, 50)], [(-1.0, 0.0, 0.5, 1.0)], 1),  # what lies outside the image does not count
    ],
)
def test_the_share_of_the_regions_that_is_shown(crops: list, regions: list, share: float):
    assert coverage(crops, SIZE, regions) == pytest.approx(share)


@pytest.mark.parametrize(
    ("crops", "regions"), [([], [LEFT]), ([(0, 0, 9, 9)], []), ([(0, 0, 9, 9)], [(0.1, 0.2, 0.1, 0.9)])]
)
def test_no_share_without_a_crop_or_an_area(crops: list, regions: list):
    assert math.isnan(coverage(crops, SIZE, regions))


def test_a_task_names_one_box_several_or_both():
    doc = {"one": [0.0, 0.0, 1.0, 1.0], "some": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.6, 0.2]], "none": None}
    some = [(0.1, 0.2, 0.3, 0.4), (0.5, 0.1, 0.6, 0.2)]
    assert annotated_regions(doc, {"box": "one"}) == ((0, 0, 1, 1), [(0, 0, 1, 1)])
    assert annotated_regions(doc, {"boxes": "some"}) == ((0.1, 0.1, 0.6, 0.4), some)
    assert annotated_regions(doc, {"box": "one", "boxes": "some"}) == ((0, 0, 1, 1), some)
    assert annotated_regions(doc, {"box": "one", "boxes": "none"}) == ((0, 0, 1, 1), [(0, 0, 1, 1)])
    for columns in ({}, {"box": "none"}, {"boxes": "none"}):
        assert annotated_regions(doc, columns) == (None, [])


def test_questions_that_were_not_to_have_a_second_look_do_not_count():
    table = pd.DataFrame(
        {
            "annotated": [True, True, True, True, False],
            "fallback": [None, "no_box", "skip_confidence", "pathway_macro", None],
        }
    )
    assert should_have_looked(table).index.tolist() == [0, 1]
