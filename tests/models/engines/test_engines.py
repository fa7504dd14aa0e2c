"""The shared-prefix engine against the naive oracle, and how much work each does."""

import dataclasses
import math
import random
from functools import partial

import pytest
import torch
from PIL import Image

from dualfocus_lmms import (
    Box,
    BoxFormat,
    Conversation,
    GenerationError,
    Question,
    Settings,
    StopCriteria,
    answer_batch,
)
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.models.tiny.llava import character_tokenizer, llava_config
from dualfocus_lmms.types import Prompt

pytestmark = pytest.mark.seconds(70)

TOLERANCE = 1e-4  # nats, float32
FASTER = [("template", 1), ("template", 7), ("tree", 1), ("tree", 7)]  # engines and batch sizes


def assert_same_answers(traces, others):
    assert [trace.key for trace in traces] == [other.key for other in others]
    for trace, other in zip(traces, others, strict=True):
        assert (trace.selection.pathway, trace.selection.text) == (
            other.selection.pathway,
            other.selection.text,
        )
        assert (trace.box, trace.crop, trace.fallback) == (other.box, other.crop, other.fallback)
        assert [answer.pathway for answer in trace.answers] == [answer.pathway for answer in other.answers]
        for answer, oracle in zip(trace.answers, other.answers, strict=True):
            assert (answer.text, answer.tokens, answer.ended) == (oracle.text, oracle.tokens, oracle.ended)
            assert answer.logprobs == pytest.approx(oracle.logprobs, abs=TOLERANCE)


def in_batches(backend, questions, limits, settings, size):
    traces = []
    for start in range(0, len(questions), size):
        batch = slice(start, start + size)
        traces += answer_batch(backend, questions[batch], limits[batch], settings)
    return traces


def test_shared_prefixes_equal_the_naive_engine_on_100_ragged_samples(engine, ragged):
    questions, limits = ragged(100)
    settings = Settings.of()
    oracle = in_batches(engine("naive"), questions, limits, settings, 100)
    for name, size in [("shared", 1), ("shared", 7), ("shared", 100), *FASTER]:
        assert_same_answers(in_batches(engine(name), questions, limits, settings, size), oracle)
    # The comparison is worth something: regions differ, both pathways win, some samples have no region.
    assert len({trace.box for trace in oracle}) >= 4
    assert {trace.selection.pathway for trace in oracle} == {"macro", "micro"}
    assert sum(trace.micro is not None for trace in oracle) >= 50


def test_engines_agree_where_some_samples_are_skipped_and_under_the_release_protocol(engine, ragged):
    questions, limits = ragged(40, seed=1)
    confidences = sorted(
        trace.macro.confidence() for trace in answer_batch(engine("shared"), questions, limits, Settings.of())
    )
    middle = (confidences[19] + confidences[20]) / 2
    for settings in (Settings.of(skip_confidence=middle), Settings.of(protocol="release")):
        oracle = in_batches(engine("naive"), questions, limits, settings, 8)
        for name in ("shared", "template", "tree"):
            traces = in_batches(engine(name), questions, limits, settings, 8)
            assert_same_answers(traces, oracle)
            if settings.skip_confidence < 1:
                assert sum(trace.fallback == "skip_confidence" for trace in traces) == 20


def test_every_image_is_encoded_once(engine, ragged):
    questions, limits = ragged(12)
    backend = engine("shared")
    traces = answer_batch(backend, questions, limits, Settings.of())
    micros = sum(trace.micro is not None for trace in traces)
    assert backend.counts.encodes == len(questions) + micros
    for trace in traces:
        assert [answer.usage.encodes for answer in trace.answers] == [1, 0, 1][: len(trace.answers)]


def test_tokens_are_counted_without_padding_and_shared_prefixes_cost_nothing(engine, ragged):
    questions, limits = ragged(12)
    backend = engine("shared")
    traces = answer_batch(backend, questions, limits, Settings.of())
    per_sample = sum(answer.usage.tokens for trace in traces for answer in trace.answers)
    assert backend.counts.tokens == per_sample
    for trace, question in zip(traces, questions, strict=True):
        one = engine("shared")
        answer_batch(one, [question], [limits[questions.index(question)]], Settings.of())
        assert one.counts.tokens == sum(answer.usage.tokens for answer in trace.answers)


def llava_with_576_image_tokens(checkpoint):
    """A tiny language model behind LLaVA-1.5's number of image tokens."""
    from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

    words = character_tokenizer()
    config = llava_config("tiny", words)
    config.vision_config.image_size, config.image_seq_length = 336, 576
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = words.eos_token_id
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return Checkpoint(model, words, processor, checkpoint.family)


class FixedBox(BoxFormat):
    """A model with random weights writes no box: this one is read from any reply."""

    def read(self, text, image_size, input_size=None):
        return super().read("[0.20, 0.20, 0.60, 0.60]", image_size)


@pytest.mark.parametrize(("name", "most"), [("shared", 30), ("template", 30), ("tree", 27)])
def test_dualfocus_computes_at_most_2_1_times_the_tokens_of_macro_at_576_image_tokens(checkpoint, name, most):
    """A 24-token box and 3-token answers, counts alone: 2.07 is the floor. No draft is right here."""
    backend = make_engine(name, llava_with_576_image_tokens(checkpoint))
    backend.eos_ids = frozenset()
    backend.box_format = FixedBox()
    prompt = "Is there a snowboard in the image?\nAnswer the question using a single word or phrase."
    questions = [
        Question(
            str(number), Image.new("RGB", (64, 48), (number * 60, 90, 200)), prompt.split("\n")[0], prompt
        )
        for number in range(4)
    ]
    settings = Settings.of()
    settings = dataclasses.replace(
        settings, protocol=dataclasses.replace(settings.protocol, locate_tokens=24)
    )
    limits = [StopCriteria(3)] * 4
    answer_batch(backend, questions, limits, Settings.of(pathway="macro"))
    macro = dataclasses.replace(backend.counts)
    traces = answer_batch(backend, questions, limits, settings)
    both = backend.counts.tokens - macro.tokens
    assert all(trace.micro is not None and len(trace.locate.tokens) == 24 for trace in traces)
    assert both / macro.tokens <= 2.1
    assert macro.forwards == 3  # one to read, two to speak three tokens
    assert most - 2 <= backend.counts.forwards - macro.forwards <= most
    assert backend.counts.encodes - macro.encodes == 2 * macro.encodes


def test_keep_is_a_hint_that_never_changes_an_answer(engine, ragged):
    questions, limits = ragged(6)
    conversations = [Conversation().user(question.prompt, question.image) for question in questions]
    backend = engine("shared")
    plain = backend.generate(Prompt.batch("macro", conversations, limits))
    backend.forget()
    kept = backend.generate(Prompt.batch("macro", conversations, limits, keep="image"))
    others = [Conversation().user("else " + question.prompt, question.image) for question in questions]
    used = backend.generate(Prompt.batch("locate", others[::-1], limits[::-1], keep="conversation"))[::-1]
    backend.forget()
    fresh = backend.generate(Prompt.batch("locate", others, limits))
    for one, other in zip([*plain, *used], [*kept, *fresh], strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
    assert sum(answer.usage.tokens for answer in used) < sum(answer.usage.tokens for answer in fresh)


def test_a_conversation_that_extends_nothing_kept_is_read_from_its_start(engine, ragged):
    questions, limits = ragged(4)
    backend = engine("shared")
    first, second = (
        [Conversation().user(question.prompt, question.image) for question in pair]
        for pair in (questions[:2], questions[2:])
    )
    backend.generate(Prompt.batch("macro", first, limits[:2], keep="conversation"))
    answers = backend.generate(Prompt.batch("macro", second, limits[2:]))
    backend.forget()
    again = backend.generate(Prompt.batch("macro", second, limits[2:]))
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in again]
    assert [answer.usage.tokens for answer in answers] == [answer.usage.tokens for answer in again]


@pytest.mark.parametrize("name", ["shared", "naive"])
def test_stop_strings_cut_the_text_and_what_follows(engine, ragged, name):
    questions, _ = ragged(1)
    backend = engine(name)
    conversation = Conversation().user(questions[0].prompt, questions[0].image)
    whole = backend.generate(Prompt.batch("macro", [conversation], [StopCriteria(12)]))[0]
    backend.forget()
    stop = whole.text[1:]
    cut = backend.generate(Prompt.batch("macro", [conversation], [StopCriteria(12, (stop,))]))[0]
    assert whole.text.startswith(cut.text)
    assert stop not in cut.text
    assert cut.logprobs == pytest.approx(whole.logprobs[: len(cut.tokens)], abs=TOLERANCE)
    assert not cut.ended


@pytest.mark.parametrize("name", ["shared", "naive"])
def test_logits_that_are_not_numbers_stop_the_run(checkpoint, ragged, name):
    questions, limits = ragged(2)
    backend = make_engine(name, checkpoint)
    weight = checkpoint.model.lm_head.weight
    healthy = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[5, 0] = math.nan
        with pytest.raises(GenerationError):
            answer_batch(backend, questions, limits, Settings.of())
    finally:
        with torch.no_grad():
            weight.copy_(healthy)


def test_padding_to_a_square_uses_the_mean_colour_and_keeps_the_sides_of_wide_images(checkpoint):
    backend = SharedBackend(checkpoint)
    wide = Image.new("RGB", (100, 20), (255, 0, 0))
    pixels = backend.pixels([wide])
    assert tuple(pixels.shape) == (1, 3, 56, 56)
    assert pixels[0, :, 0, 0].abs().max() < 0.02  # mean colour: zero once normalised, up to rounding
    left, right = pixels[0, :, 28, 1], pixels[0, :, 28, -2]
    assert torch.allclose(left, right)
    assert left[0] > 1.5


@pytest.mark.parametrize("choice", [{"attn_implementation": "eager"}, {"dtype": "bfloat16"}])
def test_other_attention_code_and_half_precision_run_the_same_way(tiny_checkpoint, engine, ragged, choice):
    questions, limits = ragged(12)
    loaded = load_checkpoint(str(tiny_checkpoint), device="cpu", **choice)
    traces = answer_batch(make_engine("shared", loaded), questions, limits, Settings.of())
    plain = answer_batch(engine("shared"), questions, limits, Settings.of())
    if "dtype" not in choice:
        assert_same_answers(traces, plain)
    for trace, other in zip(traces, plain, strict=True):
        assert trace.macro.logprobs[0] == pytest.approx(other.macro.logprobs[0], abs=0.2)


def annotate(questions, seed=0):
    """The questions with boxes of their own; where an image is one pixel wide or high, all of it."""
    rng = random.Random(seed)
    boxes = []
    for question in questions:
        xs, ys = sorted(rng.uniform(0, 1) for _ in range(2)), sorted(rng.uniform(0, 1) for _ in range(2))
        boxes.append(Box(xs[0], ys[0], xs[1], ys[1]) if min(question.image.size) > 1 else Box(0, 0, 1, 1))
    return [dataclasses.replace(question, box=box) for question, box in zip(questions, boxes, strict=True)]


@pytest.mark.parametrize("grounding", ["annotated", "whole"])
def test_engines_agree_on_given_boxes(engine, ragged, grounding):
    questions, limits = ragged(40, seed=2)
    questions = annotate(questions)
    settings = Settings.of(grounding=grounding, box_shift=3 if grounding == "annotated" else 0)
    oracle = in_batches(engine("naive"), questions, limits, settings, 40)
    for size in (1, 7, 40):
        assert_same_answers(in_batches(engine("shared"), questions, limits, settings, size), oracle)
    assert {trace.selection.pathway for trace in oracle} == {"macro", "micro"}
    if grounding == "annotated":
        assert len({trace.given_reply for trace in oracle}) >= 20


def test_engines_agree_on_given_boxes_where_some_samples_are_skipped(engine, ragged):
    questions, limits = ragged(30, seed=3)
    macros = answer_batch(engine("shared"), questions, limits, Settings.of(pathway="macro"))
    confidences = sorted(trace.macro.confidence() for trace in macros)
    settings = Settings.of(grounding="center", skip_confidence=(confidences[14] + confidences[15]) / 2)
    traces = in_batches(engine("shared"), questions, limits, settings, 8)
    assert_same_answers(traces, in_batches(engine("naive"), questions, limits, settings, 8))
    assert sum(trace.fallback == "skip_confidence" for trace in traces) == 15


@pytest.mark.parametrize("name", ["shared", "naive"])
def test_a_given_box_is_read_as_if_the_model_had_said_it(engine, ragged, name):
    """Given the very box that the model writes itself, the micro answer is the same to the token."""
    questions, limits = ragged(30, seed=4)
    backend = engine(name)
    own = answer_batch(backend, questions, limits, Settings.of())
    rows = [
        row
        for row, trace in enumerate(own)
        if trace.micro is not None
        and trace.locate.text == backend.box_format.write(Box(*trace.box), trace.image_size)
    ]
    assert len(rows) >= 10
    boxed = [dataclasses.replace(questions[row], box=Box(*own[row].box)) for row in rows]
    given = answer_batch(backend, boxed, [limits[row] for row in rows], Settings.of(grounding="annotated"))
    for row, trace in zip(rows, given, strict=True):
        assert (trace.given_reply, trace.crop) == (own[row].locate.text, own[row].crop)
        assert trace.micro.tokens == own[row].micro.tokens
        assert trace.micro.logprobs == pytest.approx(own[row].micro.logprobs, abs=TOLERANCE)


def test_a_given_box_costs_no_locate_forward(engine, ragged):
    questions, _ = ragged(6)
    questions, limits = annotate(questions), [StopCriteria(1)] * 6
    backend = engine("shared")
    traces = answer_batch(backend, questions, limits, Settings.of(grounding="annotated"))
    assert all(trace.locate is None and trace.micro is not None for trace in traces)
    assert backend.counts.forwards == 2  # macro and micro, one token each
    assert backend.counts.encodes == 12
    assert backend.counts.tokens == sum(answer.usage.tokens for trace in traces for answer in trace.answers)
    assert [[answer.usage.encodes for answer in trace.answers] for trace in traces] == [[1, 1]] * 6


def as_requests(questions, limits):
    return [
        Request(question.key, limit, partial(lambda one: one, question))
        for question, limit in zip(questions, limits, strict=True)
    ]


@pytest.mark.parametrize("name", ["shared", "tree"])
@pytest.mark.parametrize("grounding", ["model", "annotated"])
def test_questions_that_wait_for_a_full_batch_cost_no_token_more(engine, ragged, name, grounding):
    """The prefixes of several batches are extended together."""
    questions, limits = ragged(40, seed=5)
    questions = annotate(questions)
    macros = answer_batch(engine("shared"), questions, limits, Settings.of(pathway="macro"))
    confidences = sorted(trace.macro.confidence() for trace in macros)
    settings = Settings.of(grounding=grounding, skip_confidence=(confidences[14] + confidences[15]) / 2)
    pooled, apart = engine(name), engine(name)
    traces = Runner(pooled, settings, 8).run(as_requests(questions, limits))
    plain = in_batches(apart, questions, limits, settings, 8)
    assert_same_answers(traces, in_batches(engine("naive"), questions, limits, settings, 8))
    assert sum(trace.fallback == "skip_confidence" for trace in traces) == 25
    assert (pooled.counts.tokens, pooled.counts.encodes) == (apart.counts.tokens, apart.counts.encodes)
    assert pooled.counts.forwards < (0.75 if grounding == "model" else 0.9) * apart.counts.forwards
    assert [trace.macro.usage.tokens for trace in traces] == [trace.macro.usage.tokens for trace in plain]
    assert pooled._kept == []
    assert pooled._images.encoded == {}


def test_forgetting_leaves_what_begins_with_the_images_named(engine, ragged):
    questions, limits = ragged(6)
    backend = engine("shared")
    conversations = [Conversation().user(question.prompt, question.image) for question in questions]
    others = [Conversation().user("else " + question.prompt, question.image) for question in questions]
    for part in (slice(3), slice(3, 6)):
        backend.generate(Prompt.batch("macro", conversations[part], limits[part], keep="image"))
    backend.forget(but=[questions[row].image for row in (4, 1)])
    before = backend.counts.encodes
    kept = backend.generate(Prompt.batch("locate", [others[4], others[1]], [limits[4], limits[1]]))
    assert backend.counts.encodes == before
    backend.forget()
    fresh = backend.generate(Prompt.batch("locate", [others[4], others[1]], [limits[4], limits[1]]))
    assert backend.counts.encodes == before + 2
    for one, other in zip(kept, fresh, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
        assert one.usage.tokens < other.usage.tokens
