"""Several crops in one conversation and several looks: every engine against the naive one, and the costs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from PIL import Image
from same_traces import assert_same

from dualfocus_lmms import Box, Question, Settings, StopCriteria, Trace, answer_batch

pytestmark = pytest.mark.seconds(8)

LEFT, RIGHT = Box(0.05, 0.1, 0.35, 0.8), Box(0.5, 0.3, 0.9, 0.9)
SEPARATE = Settings.of(grounding="annotated", regions="separate")
QUESTION = "is it red?"


def pairs(questions: list[Question]) -> list[Question]:
    """The questions with two boxes each, and every third with one; all of an image of a pixel's width."""
    rng, found = random.Random(0), []
    for number, question in enumerate(questions):
        left, right = (Box(x, rng.uniform(0, 0.4), x + 0.3, rng.uniform(0.6, 1)) for x in (0.05, 0.6))
        boxes = (left, right)[: 1 if number % 3 == 2 else 2]
        thin = min(question.image.size) == 1
        boxes = (Box(0, 0, 1, 1),) if thin else boxes
        found.append(replace(question, box=Box.around(boxes), boxes=boxes))
    return found


def test_every_engine_equals_the_naive_one_with_two_crops(engine, ragged):
    questions, limits = ragged(9, seed=6)
    questions = pairs(questions)
    oracle = answer_batch(engine("naive"), questions, limits, SEPARATE)
    for name, size in [("shared", 9), ("template", 1), ("tree", 5), ("batched", 9)]:
        backend = engine(name)
        traces: list[Trace] = []
        for start in range(0, len(questions), size):
            batch = slice(start, start + size)
            traces += answer_batch(backend, questions[batch], limits[batch], SEPARATE)
        for trace, other in zip(traces, oracle, strict=True):
            assert_same(trace, other)
            assert (trace.boxes, trace.crops) == (other.boxes, other.crops)
    counts = [len(trace.crops) for trace in oracle]
    assert {1, 2} == set(counts)
    assert {trace.selection.pathway for trace in oracle} == {"macro", "micro"}


def asked(engine, name: str, settings: Settings, boxes: tuple[Box, ...]):
    """One question whose answers have one token: the engine and the trace."""
    image = Image.new("RGB", (120, 80), (200, 40, 30))
    backend = engine(name)
    one = Question("0", image, QUESTION, QUESTION, box=Box.around(boxes), boxes=boxes)
    (trace,) = answer_batch(backend, [one], [StopCriteria(1)], settings)
    return backend, trace


def test_a_second_crop_costs_its_own_tokens_one_encode_and_no_forward(engine):
    union, one = asked(engine, "tree", Settings.of(grounding="annotated"), (LEFT, RIGHT))
    backend, two = asked(engine, "tree", SEPARATE, (LEFT, RIGHT))
    more = two.micro.usage.tokens - one.micro.usage.tokens
    boxes, words = (
        len(backend.renderer.reply(two_text)) - len(backend.renderer.reply(one_text))
        for two_text, one_text in (
            (two.given_reply, one.given_reply),
            (two.prompts["micro"], one.prompts["micro"]),  # "three images" instead of "two images"
        )
    )
    image = len(backend.image_reader.ids(Image.new("RGB", (9, 9))))
    assert more == image + 1 + boxes + words  # 1: the line break after the image
    assert (two.micro.usage.encodes, one.micro.usage.encodes) == (2, 1)
    assert backend.counts.encodes == union.counts.encodes + 1 == 3
    assert backend.counts.forwards == union.counts.forwards == 2
    assert backend.counts.tokens == sum(answer.usage.tokens for answer in two.answers)


def test_the_naive_engine_encodes_all_three_images_twice(engine):
    backend, trace = asked(engine, "naive", SEPARATE, (LEFT, RIGHT))
    assert (trace.macro.usage.encodes, trace.micro.usage.encodes) == (2, 6)
    assert backend.counts.encodes == 8


def test_the_reply_to_the_first_question_may_hold_four_boxes(engine):
    """A model with random replies: the limit is what is counted."""
    backend = engine("tree")
    backend.eos_ids = frozenset()
    image = Image.new("RGB", (120, 80), (200, 40, 30))
    question = Question("0", image, QUESTION, QUESTION)
    for settings, most in ((Settings.of(), 64), (Settings.of(regions="separate"), 256)):
        (trace,) = answer_batch(backend, [question], [StopCriteria(1)], settings)
        assert len(trace.locate.tokens) == most


# --- several looks -----------------------------------------------------------------------------------------


def in_batches(backend, questions, limits, settings: Settings, size: int) -> list[Trace]:
    return [
        trace
        for start in range(0, len(questions), size)
        for trace in answer_batch(
            backend, questions[start : start + size], limits[start : start + size], settings
        )
    ]


def test_every_engine_equals_the_naive_one_with_several_looks(engine, ragged):
    questions, limits = ragged(12, seed=7)
    settings = Settings.of(looks=3)
    oracle = in_batches(engine("naive"), questions, limits, settings, 12)
    for name, size in [("shared", 12), ("template", 1), ("tree", 5), ("batched", 12)]:
        for trace, other in zip(
            in_batches(engine(name), questions, limits, settings, size), oracle, strict=True
        ):
            assert_same(trace, other)
            looks = [[(one.box, one.crop) for one in each.looks or ()] for each in (trace, other)]
            assert looks[0] == looks[1]
    made = [len(trace.looks or [trace]) for trace in oracle]
    assert {1, 2, 3} == set(made)
    assert any(trace.micro != trace.looks[-1].micro for trace in oracle if trace.looks)


def test_a_further_look_costs_one_encode_and_reads_one_crop_again(engine):
    """The crop of the first look is encoded already; a second conversation begins with it."""
    image = Image.new("RGB", (120, 80), (200, 40, 30))
    question = Question("0", image, QUESTION, QUESTION)
    backend, plain = engine("tree"), engine("tree")
    (trace,) = answer_batch(backend, [question], [StopCriteria(8)], Settings.of(looks=2))
    answer_batch(plain, [question], [StopCriteria(8)], Settings.of())
    assert backend.counts.encodes == plain.counts.encodes + 1 == 3
    assert backend.counts.forwards == 2 * plain.counts.forwards == 14  # a box of 25 tokens and 4 of an answer
    assert backend.counts.tokens == sum(answer.usage.tokens for answer in trace.answers)
    first, second = trace.looks
    trunk = 35  # up to the end of the image, which the first look shares with the macro answer
    assert second.locate.usage.tokens == first.locate.usage.tokens + trunk == 90
    assert second.micro.usage == replace(first.micro.usage, seconds=second.micro.usage.seconds)
    assert backend.counts.tokens - plain.counts.tokens == 90 + second.micro.usage.tokens
