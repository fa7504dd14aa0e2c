"""Samples of the page: their outcomes, which of them have an image, and what the images are."""

from __future__ import annotations

import base64
import io
import json
import random

import pandas as pd
import pytest
from PIL import Image

from dualfocus_lmms import Answer, Selection, Trace
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.results.report import gallery

NAN = float("nan")


def drawn(number: int) -> Image.Image:
    return Image.new("RGB", (600, 300), (number, 0, 0))


def trace(number: int) -> Trace:
    answer = Answer("macro", "yes", (1,), (-0.1,), ended=False)
    return Trace(
        key={},
        question_id="",
        prompts={},
        image_size=(600, 300),
        image_hash=image_hash(drawn(number)),
        selection=Selection("macro", "yes", "ppl"),
        macro=answer,
        box=(0.0, 0.0, 0.5, 0.5),
        crop=(0, 0, 300, 150),
    )


def samples(outcomes: list[str]) -> pd.DataFrame:
    rows = [
        {
            "run": "r",
            "task": "t",
            "outcome": outcome,
            "doc_id": number,
            "trace": trace(number % 200),
            "question": "</script><b>?",
            "answers": ["yes", "yes", "maybe"],
            "text_macro": "x" * 900,
            "text_micro": None if number % 2 else "no",
            "macro": 100.0,
            "micro": NAN,
            "ppl_macro": 1.5,
            "ppl_micro": float("inf"),
            "pathway": "macro",
            "iou": NAN,
        }
        for number, outcome in enumerate(outcomes)
    ]
    return pd.DataFrame(rows)


OPEN = {("r", "t"): lambda doc_id: drawn(doc_id % 200)}


@pytest.mark.parametrize(
    ("macro", "micro", "selected", "expected"),
    [
        (100.0, 100.0, 100.0, "both right"),
        (0.0, 100.0, 100.0, "rescued"),
        (0.0, 100.0, 0.0, "missed"),
        (100.0, 0.0, 100.0, "kept"),
        (100.0, 0.0, 0.0, "spoiled"),
        (0.0, 0.0, 0.0, "both wrong"),
        (100.0, NAN, 100.0, "both right"),
        (0.0, NAN, 0.0, "both wrong"),
        (30.0, 60.0, 60.0, "rescued"),
    ],
)
def test_outcomes(macro: float, micro: float, selected: float, expected: str):
    frame = pd.DataFrame({"macro": [macro], "micro": [micro], "selected": [selected]})
    assert gallery.outcome_names(frame) == [expected]


def test_images_come_evenly_from_every_outcome():
    frame = samples(["both right"] * 100 + ["spoiled"] * 3 + ["rescued"] * 20)
    chosen = frame.iloc[gallery.choose(frame, 23)]["outcome"].value_counts().to_dict()
    assert chosen == {"both right": 10, "rescued": 10, "spoiled": 3}
    assert list(gallery.choose(frame, 23)) == list(gallery.choose(frame, 23))
    assert len(gallery.choose(frame, 1000)) == 123
    assert len(gallery.choose(frame, 0)) == 0


def test_images_are_small_and_each_photo_is_there_once():
    frame = samples(["both right"] * 3)
    frame["trace"] = [trace(7), trace(7), trace(8)]
    opened = {("r", "t"): lambda doc_id: drawn(8 if doc_id == 2 else 7)}
    rows, images = gallery.collect(frame, 3, opened)
    assert (len(images.photos), len(images.crops)) == (2, 3)
    assert rows["photo"][0] == rows["photo"][1] != rows["photo"][2]
    image = Image.open(io.BytesIO(base64.b64decode(images.photos[0].partition(",")[2])))
    assert (image.format, image.size) == ("JPEG", (gallery.PHOTO, gallery.PHOTO // 2))
    assert images.size == sum(map(len, images.photos + images.crops))


def test_an_image_that_is_missing_or_another_one_is_not_shown():
    frame = samples(["both right"] * 3)

    def open_image(doc_id: int) -> Image.Image:
        if doc_id == 0:
            raise UserError("it is gone")
        return drawn(199 if doc_id == 1 else doc_id)

    rows, images = gallery.collect(frame, 3, {("r", "t"): open_image})
    assert [place >= 0 for place in rows["photo"]] == [False, False, True]
    assert sorted(images.problems.values()) == [1, 1]
    assert "it is gone" in images.problems


def test_no_more_images_than_the_page_may_hold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gallery, "MOST_BYTES", 5000)
    rows, images = gallery.collect(samples(["both right"] * 50), 50, OPEN)
    assert images.full
    assert 0 < sum(place >= 0 for place in rows["photo"]) < 50


def test_more_samples_than_the_page_may_list(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gallery, "MOST_ROWS", 10)
    rows, _ = gallery.collect(samples(["both right"] * 50 + ["spoiled"] * 4), 0, OPEN)
    assert len(rows["id"]) == 10
    assert rows["id"] == sorted(rows["id"])
    assert sum(number >= 50 for number in rows["id"]) == 4


def test_rows_are_plain_json():
    rows, _ = gallery.collect(samples(["both right", "both wrong"]), 0, OPEN)
    assert json.loads(json.dumps(rows, allow_nan=False))["photo"] == [-1, -1]
    assert rows["answers"][0] == "yes / maybe"
    assert rows["micro"] == ["no", None]
    assert rows["ppl"][0] == [1.5, None]
    assert len(rows["macro"][0]) == gallery.LONGEST_TEXT
    assert {
        len(values) for name, values in rows.items() if name in ("id", "box", "iou", "photo", "chosen")
    } == {2}


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 500), (256, 128)), ((100, 50), (200, 100)), ((3, 2), (255, 170)), ((5000, 1), (256, 1))],
)
def test_sizes_of_images(size: tuple[int, int], expected: tuple[int, int]):
    noise = Image.frombytes("RGB", size, random.Random(0).randbytes(3 * size[0] * size[1]))
    uri = gallery.data_uri(noise, 256)
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == expected
