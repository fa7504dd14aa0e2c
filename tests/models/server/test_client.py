"""The server's client against a local server over HTTP, which answers with the reference engine."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from server_questions import answered, ask, questions

from dualfocus_lmms import Box, BoxFormat, Question, Settings, StopCriteria, answer_batch
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.server.client import box_pattern
from dualfocus_lmms.models.server.images import CLIP_MEAN, DataUrls

pytestmark = pytest.mark.seconds(20)


@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_a_server_of_the_same_checkpoint_gives_the_local_answers_on_ragged_questions(
    backend, engine, ragged, protocol
):
    asked, limits = ragged(20, seed=3)
    settings = Settings.of(protocol=protocol, select="ppl_tie_macro")
    local = answer_batch(engine("naive"), asked, limits, settings)
    served = answered(backend(count_eos=settings.count_eos), asked, limits, settings)
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
    settings = Settings.of(grounding="center")
    local = answer_batch(engine("naive"), questions(3), [StopCriteria(8)] * 3, settings)
    served = ask(backend(), 3, grounding="center")
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


def readable(body: dict[str, Any], images: list[Image.Image]) -> dict[str, Any]:
    """A request with the size of every image in its place."""
    body, sizes = json.loads(json.dumps(body)), iter(images)
    for message in body["messages"]:
        for part in message["content"]:
            if part["type"] == "image_url":
                part["image_url"]["url"] = "a PNG of {} x {}".format(*next(sizes).size)
    return body


def test_requests_are_those_of_the_golden_file(stub, backend, sent, golden):
    limits = [StopCriteria(8, ("\n\n", "###"))]
    answered(backend(guided_box=True), questions(1), limits, Settings.of())
    assert len(stub.bodies) == 3
    bodies = [readable(body, sent(body)) for body in stub.bodies]
    golden("server_requests.json", json.dumps(bodies, indent=2) + "\n")


def test_image_and_crop_are_padded_to_a_square_before_they_are_sent(stub, backend, sent):
    """LLaVA-1.5's own processor, which servers use, would cut their sides away."""
    image = Image.new("RGB", (60, 20), (9, 200, 30))
    question = Question("0", image, "Where?", "Where?", box=Box(0.5, 0.0, 1.0, 1.0))
    (trace,) = answered(backend(), [question], [StopCriteria(4)], Settings.of(grounding="annotated"))
    assert trace.crop == (30, 0, 60, 20)
    whole, crop = sent(stub.bodies[-1])
    assert (whole.size, crop.size) == ((60, 60), (30, 30))
    for shown, height in ((whole, 20), (crop, 20)):
        top = (shown.height - height) // 2
        colors = [shown.getpixel((x, y)) for x in (0, 29) for y in (0, top - 1, top + 20)]
        assert colors == [CLIP_MEAN] * 6
        assert {shown.getpixel((x, y)) for x in (0, 29) for y in (top, top + 19)} == {(9, 200, 30)}


def test_the_colour_of_the_padding_is_that_of_the_local_engine(checkpoint):
    mean = checkpoint.image_processor.image_mean
    assert tuple(int(value * 255) for value in mean) == CLIP_MEAN


def test_a_family_that_takes_images_as_they_are_gets_them_so(stub, backend, sent):
    ask(backend(replace(LLAVA, image="as_is")), pathway="macro")
    assert sent(stub.bodies[0])[0].size == (40, 30)


def test_an_image_is_encoded_once_for_all_stages_and_questions(stub, backend, monkeypatch):
    saved = []
    save = Image.Image.save
    monkeypatch.setattr(
        Image.Image, "save", lambda self, *a, **k: (saved.append(self.size), save(self, *a, **k))
    )
    asked = questions(8)
    asked = [replace(question, image=asked[number // 2].image) for number, question in enumerate(asked)]
    traces = answered(backend(), asked, [StopCriteria(8)] * 8, Settings.of(), concurrency=8)
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
    assert len(urls) == 8 + 8 + 2 * crops


def test_what_was_made_of_an_image_goes_with_it():
    urls, images = DataUrls(square=False), [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert len({urls(image) for image in images * 2}) == len(urls) == 2
    del images[0]
    assert len(urls) == 1


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
        (
            BoxFormat('{{"bbox": [{:d}, {:d}, {:d}, {:d}]}}', frame="resized"),
            ['{"bbox": [0, 7, 84, 1260]}', '{"bbox": [0, 0, 12348, 56]}'],
            ['{"bbox": [0, 7, 84]}', "[0, 7, 84, 1260]", '{"bbox": [0.5, 7, 84, 126]}'],
        ),
    ],
)
def test_the_pattern_of_a_guided_box_is_the_notation_of_the_family(box_format, written, not_written):
    pattern = re.compile(box_pattern(box_format))
    assert all(pattern.fullmatch(text) for text in written)
    assert not any(pattern.fullmatch(text) for text in not_written)
    assert pattern.fullmatch(box_format.write(Box(0.25, 0.5, 0.75, 1.0), (640, 480), (644, 476)))
