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
    Question,
    Settings,
    StopCriteria,
    Trace,
    UserError,
    answer_batch,
)
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.server.client import ServerBackend, SharedClock, answer_each, box_pattern
from dualfocus_lmms.models.server.images import CLIP_MEAN, DataUrls

pytestmark = pytest.mark.seconds(30)

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


def answered(
    backend: Any, asked: list[Question], limits: list[StopCriteria], settings: Settings, concurrency: int = 16
) -> list[Trace]:
    """One trace for each question, in order, where `concurrency` are under way at once."""
    traces = answer_each(backend, asked, limits, settings, concurrency)
    done = {trace.question_id: trace for trace in traces}
    return [done[question.id] for question in asked]


def ask(backend: Any, count: int = 1, **settings: Any) -> list[Trace]:
    return answered(backend, questions(count), [StopCriteria(8)] * count, Settings.of(**settings))


# --- what comes back ---------------------------------------------------------------------------------------


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


# --- what is sent ------------------------------------------------------------------------------------------


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


def test_picture_and_crop_are_padded_to_a_square_before_they_are_sent(stub, backend, sent):
    """LLaVA-1.5's own processor, which servers use, would cut their sides away."""
    image = Image.new("RGB", (60, 20), (9, 200, 30))
    question = Question("0", image, "Where?", "Where?", box=Box(0.5, 0.0, 1.0, 1.0))
    (trace,) = answered(backend(), [question], [StopCriteria(4)], Settings.of(grounding="annotated"))
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


def test_a_picture_is_encoded_once_for_all_stages_and_questions(stub, backend, monkeypatch):
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


def test_what_was_made_of_a_picture_goes_with_it():
    urls, pictures = DataUrls(square=False), [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert len({urls(picture) for picture in pictures * 2}) == len(urls) == 2
    del pictures[0]
    assert len(urls) == 1


# --- many at a time ----------------------------------------------------------------------------------------


@pytest.fixture
def about(sent) -> Callable[[dict[str, Any]], tuple[int, str]]:
    """The number of the question that a request is about, and its stage where a grounding gives the box."""

    def read(body: dict[str, Any]) -> tuple[int, str]:
        number = (sent(body)[0].width - 40) // 9
        return number, "macro" if len(body["messages"]) == 1 else "micro"

    return read


@pytest.mark.parametrize("concurrency", [1, 5])
def test_no_more_questions_are_under_way_than_allowed(stub, backend, concurrency):
    answered(backend(), questions(7), [StopCriteria(8)] * 7, Settings.of(), concurrency)
    assert stub.peak == concurrency


def test_a_second_look_does_not_wait_for_the_first_ones_of_others(stub, backend, about, engine):
    """Question 0 stays in its second look until 4 requests are open. The others are first looks at questions
    that can only have begun after all those between them came to their end."""
    together = {(0, "micro"), (5, "macro"), (6, "macro"), (7, "macro")}
    met = []

    def holds(body):
        if together <= {about(other) for other in stub.open}:
            met.append(len(stub.open))
        return about(body) in together and not met

    stub.holds = holds
    settings = Settings.of(grounding="center")
    served = answered(backend(), questions(8), [StopCriteria(8)] * 8, settings, concurrency=4)
    assert met[0] == stub.peak == 4
    local = answer_batch(engine("naive"), questions(8), [StopCriteria(8)] * 8, settings)
    assert [trace.micro.tokens for trace in served] == [trace.micro.tokens for trace in local]


@pytest.mark.parametrize(("status", "error"), [(400, UserError), (500, GenerationError)])
def test_a_question_that_fails_loses_none_that_is_under_way_and_lets_none_begin(
    stub, backend, about, status, error
):
    """4 fails in its second look, 0 has been in its own since the beginning, 5 and 6 are in their first."""
    under_way = {(0, "micro"), (5, "macro"), (6, "macro")}
    failed = []

    def fail(number):
        if about(stub.bodies[number - 1]) != (4, "micro"):
            return None
        failed.append(time.monotonic())
        return status, QUICK

    def holds(body):
        if about(body) == (4, "macro"):
            return not under_way <= {about(other) for other in stub.open}
        return about(body) in under_way and not (failed and time.monotonic() > failed[0] + 0.5)

    stub.fail, stub.holds = fail, holds
    settings = Settings.of(grounding="center")
    traces = answer_each(backend(), questions(20), [StopCriteria(8)] * 20, settings, concurrency=4)
    finished = []
    with pytest.raises(error, match=f"refused with {status}"):
        finished.extend(int(trace.question_id) for trace in traces)
    assert {about(body)[0] for body in stub.bodies} == set(range(7))
    assert sorted(finished) == [0, 1, 2, 3, 5, 6]


def test_who_stops_listening_stops_the_questions_that_have_not_begun(stub, backend, about):
    traces = answer_each(backend(), questions(20), [StopCriteria(8)] * 20, Settings.of(), concurrency=2)
    next(traces)
    traces.close()
    assert stub.open == []
    assert len({about(body)[0] for body in stub.bodies}) < 20


def test_a_grounder_gets_one_question_at_a_time(backend):
    busy, most = [], []

    def grounder(question):
        busy.append(question.id)
        most.append(len(busy))
        time.sleep(0.01)
        busy.remove(question.id)
        return Box(0.25, 0.25, 0.75, 0.75)

    settings = replace(Settings.of(grounding="center"), grounder=grounder)
    traces = answered(backend(), questions(6), [StopCriteria(4)] * 6, settings)
    assert all(trace.micro is not None for trace in traces)
    assert most == [1] * 6


def test_seconds_are_shared_among_what_runs_at_the_same_time():
    clock, started = SharedClock(), time.perf_counter()
    with clock.share() as first:
        time.sleep(0.02)
        with clock.share() as second:
            time.sleep(0.04)
    spent = time.perf_counter() - started
    assert 0.019 < second() < first()
    assert first() + second() == pytest.approx(spent, abs=0.01)


# --- boxes -------------------------------------------------------------------------------------------------


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


def test_a_server_that_ignores_the_guide_is_found_out(stub, backend):
    def talk(reply):
        choice = reply["choices"][0]
        choice["message"]["content"] = "over there"
        entries = choice["logprobs"]["content"]
        entries[:-1] = [entries[0] | {"token": "over there", "bytes": list(b"over there")}]
        choice["token_ids"] = [7] * len(entries)
        reply["usage"]["completion_tokens"] = len(entries)
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
