"""The server's client against a local server over HTTP, which answers with the reference engine."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import (
    Box,
    BoxFormat,
    Conversation,
    GenerationError,
    Limits,
    Question,
    Settings,
    UserError,
    answer_batch,
)
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.server import CLIP_MEAN, ServerBackend, box_pattern

QUICK = {"retry-after-ms": "5"}  # the client obeys it instead of its own pauses


@pytest.fixture
def backend(client: Callable[..., Any]) -> Callable[..., ServerBackend]:
    def make(family: Any = LLAVA, model: str = "tiny", retries: int = 0, **options: Any) -> ServerBackend:
        return ServerBackend(client(retries), model, family, **options)

    return make


def questions(count: int) -> list[Question]:
    names = ["cat", "dog", "tv", "car", "person", "bus"]
    return [
        Question(
            str(number),
            Image.new("RGB", (40 + 9 * number, 30), (number * 37 % 256, 90, 255 - number * 51 % 256)),
            f"Is there a {names[number % 6]}?",
            f"Is there a {names[number % 6]}?\nAnswer the question using a single word or phrase.",
        )
        for number in range(count)
    ]


def ask(backend: Any, count: int = 1, **settings: Any) -> list[Any]:
    return answer_batch(backend, questions(count), [Limits(8)] * count, Settings.of(**settings))


# --- what comes back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_a_server_of_the_same_checkpoint_gives_the_local_answers_on_ragged_questions(
    backend, engine, ragged, protocol
):
    asked, limits = ragged(20, seed=3)
    settings = Settings.of(protocol=protocol, select="ppl_tie_macro")
    local = answer_batch(engine("naive"), asked, limits, settings)
    served = answer_batch(backend(count_eos=settings.count_eos), asked, limits, settings)
    assert sum(trace.micro is not None for trace in local) > 5
    for trace, other in zip(served, local, strict=True):
        assert (trace.selection.pathway, trace.selection.text) == (
            other.selection.pathway,
            other.selection.text,
        )
        assert (trace.box, trace.crop, trace.fallback) == (other.box, other.crop, other.fallback)
        assert trace.prompts == other.prompts
        assert trace.ppl == pytest.approx(other.ppl, rel=1e-4)
        for answer, same in zip(trace.answers, other.answers, strict=True):
            assert (answer.text, answer.tokens, answer.ended) == (same.text, same.tokens, same.ended)
            assert answer.logprobs == pytest.approx(same.logprobs, abs=1e-4)


def test_a_box_that_is_given_stands_in_the_conversation_as_it_does_locally(backend, engine):
    local, served = (ask(one, 3, grounding="center") for one in (engine("naive"), backend()))
    for trace, other in zip(served, local, strict=True):
        assert trace.given_reply == other.given_reply == "[0.25, 0.25, 0.75, 0.75]"
        assert trace.micro.text == other.micro.text
        assert trace.micro.logprobs == pytest.approx(other.micro.logprobs, abs=1e-4)


def test_usage_is_what_the_server_counted(stub, backend):
    def cached(reply):
        reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 60}
        return reply

    (trace,) = ask(backend(), pathway="macro")
    whole = trace.macro.usage
    assert (whole.tokens, whole.encodes) == (100 + len(trace.macro.logprobs) - 1, 1)
    assert whole.seconds > 0
    stub.alter = cached
    (trace,) = ask(backend(), pathway="macro")
    assert trace.macro.usage.tokens == whole.tokens - 60


# --- what is sent ------------------------------------------------------------------------------------------


def readable(body: dict[str, Any], images: list[Image.Image]) -> dict[str, Any]:
    """A request with the size of every picture in its place."""
    body, sizes = json.loads(json.dumps(body)), iter(images)
    for message in body["messages"]:
        for part in message["content"]:
            if part["type"] == "image_url":
                part["image_url"]["url"] = "a PNG of {} x {}".format(*next(sizes).size)
    return body


def test_requests_are_those_of_the_golden_file(stub, backend, sent, golden):
    limits = [Limits(8, ("\n\n", "###"))]
    answer_batch(backend(guided_box=True), questions(1), limits, Settings.of())
    assert len(stub.bodies) == 3
    bodies = [readable(body, sent(body)) for body in stub.bodies]
    golden("server_requests.json", json.dumps(bodies, indent=2) + "\n")


def test_picture_and_crop_are_padded_to_a_square_before_they_are_sent(stub, backend, sent):
    """LLaVA-1.5's own processor, which servers use, would cut their sides away."""
    image = Image.new("RGB", (60, 20), (9, 200, 30))
    question = Question("0", image, "Where?", "Where?", box=Box(0.5, 0.0, 1.0, 1.0))
    (trace,) = answer_batch(backend(), [question], [Limits(4)], Settings.of(grounding="annotated"))
    assert trace.crop == (30, 0, 60, 20)
    whole, crop = sent(stub.bodies[-1])
    assert (whole.size, crop.size) == ((60, 60), (30, 30))
    for picture, height in ((whole, 20), (crop, 20)):
        top = (picture.height - height) // 2
        colors = [picture.getpixel((x, y)) for x in (0, 29) for y in (0, top - 1, top + 20)]
        assert colors == [CLIP_MEAN] * 6
        assert {picture.getpixel((x, y)) for x in (0, 29) for y in (top, top + 19)} == {(9, 200, 30)}


def test_the_colour_of_the_padding_is_that_of_the_local_engine(checkpoint):
    mean = checkpoint.image_processor.image_mean
    assert tuple(int(value * 255) for value in mean) == CLIP_MEAN


def test_a_family_that_takes_pictures_as_they_are_gets_them_so(stub, backend, sent):
    ask(backend(replace(LLAVA, image="as_is")), pathway="macro")
    assert sent(stub.bodies[0])[0].size == (40, 30)


def test_a_picture_is_encoded_once_for_all_stages(stub, backend, monkeypatch):
    saved = []
    save = Image.Image.save
    monkeypatch.setattr(
        Image.Image, "save", lambda self, *a, **k: (saved.append(self.size), save(self, *a, **k))
    )
    traces = ask(backend(), 4)
    crops = sum(trace.crop is not None for trace in traces)
    assert crops > 0
    assert len(saved) == 4 + crops
    urls = [
        part["image_url"]["url"]
        for body in stub.bodies
        for message in body["messages"]
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    assert len(urls) == 4 + 4 + 2 * crops
    assert len(set(urls)) == len(saved)


def test_requests_of_a_stage_are_open_together_and_no_more_than_allowed(stub, backend):
    ask(backend(concurrency=5), 12)
    assert stub.peak == 5
    stub.peak = 0
    ask(backend(concurrency=1), 3)
    assert stub.peak == 1


@pytest.mark.parametrize(
    ("box_format", "written", "not_written"),
    [
        (
            LLAVA.box_format,
            ["[0.10, 0.20, 1.00, 0.40]", " [0.00, 0.00, 1.00, 1.00]"],
            ["[0.1, 0.2, 0.3, 0.4]", "x"],
        ),
        (
            BoxFormat("<box>({:d},{:d}),({:d},{:d})</box>", scale=1000),
            ["<box>(1,20),(300,1000)</box>"],
            ["<box>(0.1,20),(300,1000)</box>", "<box>(1,20)(300,1000)</box>"],
        ),
    ],
)
def test_the_pattern_of_a_guided_box_is_the_notation_of_the_family(box_format, written, not_written):
    pattern = re.compile(box_pattern(box_format))
    assert all(pattern.fullmatch(text) for text in written)
    assert not any(pattern.fullmatch(text) for text in not_written)
    assert pattern.fullmatch(box_format.write(Box(0.25, 0.5, 0.75, 1.0), (640, 480)))


def test_a_server_that_ignores_the_guide_is_found_out(stub, backend):
    def talk(reply):
        reply["choices"][0]["message"]["content"] = "over there"
        return reply

    stub.alter = talk
    with pytest.raises(GenerationError):
        ask(backend(guided_box=True))
    (trace,) = ask(backend())
    assert trace.fallback == "no_box"


# --- what fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_that_was_refused_or_failed_is_repeated(stub, backend, status):
    (expected,) = ask(backend())
    stub.bodies.clear()
    stub.fail = lambda number: (status, QUICK) if number <= 2 else None
    (trace,) = ask(backend(retries=2))
    assert trace.selection == expected.selection
    assert len(stub.bodies) == 3 + 2
    assert stub.bodies[0] == stub.bodies[2]


def test_pauses_between_tries_grow(stub, backend):
    times = []
    stub.fail = lambda number: (times.append(time.monotonic()), (500, {}))[1]
    with pytest.raises(GenerationError):
        ask(backend(retries=2))
    first, second = (after - before for before, after in itertools.pairwise(times))
    assert 0.3 < first < second


def test_a_failure_that_stays_ends_the_run_and_no_answer_is_made_up(stub, backend):
    stub.fail = lambda number: (500, QUICK)
    with pytest.raises(GenerationError, match="refused with 500"):
        ask(backend(retries=3))
    assert len(stub.bodies) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_the_server_refuses_is_the_users_mistake_and_is_not_repeated(stub, backend, status):
    stub.fail = lambda number: (status, QUICK)
    with pytest.raises(UserError, match=f"refused with {status}"):
        ask(backend(retries=3))
    assert len(stub.bodies) == 1


def test_a_model_that_the_server_does_not_have_is_the_users_mistake(backend):
    with pytest.raises(UserError):
        ask(backend(model="huge"))


def test_a_server_that_is_gone_is_a_failure(stub, backend):
    stub.dies_after = 2
    with pytest.raises(GenerationError):
        ask(backend(retries=1), 4)


def test_pages_that_are_no_completion_are_a_failure(stub, backend):
    stub.alter = lambda reply: {"detail": "hello"}
    with pytest.raises(GenerationError):
        ask(backend())


def test_a_server_scores_no_given_text(backend):
    with pytest.raises(UserError):
        backend().score([Conversation().user("What?").assistant("That.")])


def test_a_family_whose_boxes_refer_to_the_resized_picture_is_refused(backend):
    with pytest.raises(UserError):
        backend(replace(LLAVA, box_format=BoxFormat("({:d},{:d}),({:d},{:d})", frame="resized")))
