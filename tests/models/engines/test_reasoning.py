"""Reasoning is no part of an answer, nor of its log-probabilities, whichever engine generates it.

Random weights write no tags, so here some of the tokens that they do write stand for tags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from same_traces import assert_same

from dualfocus_lmms import Answer, Box, Conversation, Question, Settings, StopCriteria, answer_batch
from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.engines.registry import ENGINES, make_engine
from dualfocus_lmms.models.tiny.llava import character_tokenizer, save_tiny
from dualfocus_lmms.types import Prompt

LENGTH = 8


def reply(backend: Any, limits: StopCriteria | None = None) -> Answer:
    question = Conversation().user("What is it?", Image.new("RGB", (60, 40), "red"))
    (answer,) = backend.generate(Prompt.batch("macro", [question], [limits or StopCriteria(LENGTH)]))
    return answer


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """An engine by name, on one random model; its replies end at their limit."""
    loaded = load_checkpoint(str(save_tiny(tmp_path_factory.mktemp("llava"))), device="cpu")

    def make(name: str) -> Any:
        backend = make_engine(name, loaded)
        backend.eos_ids = frozenset()
        return backend

    return make


@pytest.fixture(scope="module")
def plain(engine: Callable[[str], Any]) -> Answer:
    """What the model writes; it writes the third token once."""
    answer = reply(engine("naive"))
    assert len({*answer.tokens}) == len(answer.tokens) == LENGTH
    return answer


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_answer_begins_after_the_closing_tag(name: str, engine: Callable[[str], Any], plain: Answer):
    backend = engine(name)
    backend.closes_reasoning = frozenset({plain.tokens[2]})
    answer = reply(backend)
    assert answer.tokens == plain.tokens[3:]
    assert answer.logprobs == pytest.approx(plain.logprobs[3:], abs=1e-4)
    assert answer.text == backend.decode(plain.tokens[3:]).strip()
    if name != "naive":  # which reads everything twice
        assert answer.usage.tokens > LENGTH + len(answer.tokens)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_stop_strings_are_looked_for_in_the_answer_alone(
    name: str, engine: Callable[[str], Any], plain: Answer
):
    backend = engine(name)
    backend.opens_reasoning = frozenset({plain.tokens[0]})
    backend.closes_reasoning = frozenset({plain.tokens[2]})
    words = [backend.decode([token]) for token in plain.tokens]
    stops = (words[1], words[4])
    assert all(words[1] not in word for word in words[3:])
    answer = reply(backend, StopCriteria(LENGTH, stops))
    assert answer.tokens == plain.tokens[3:4]
    assert reply(engine(name), StopCriteria(LENGTH, stops)).tokens == plain.tokens[:1]


@pytest.mark.parametrize("tags", [("opens", 0), ("opens", 5), ("closes", LENGTH - 1)])
def test_reasoning_without_an_answer_is_the_models_failure(
    tags: tuple[str, int], engine: Callable[[str], Any], plain: Answer
):
    kind, place = tags
    backend = engine("batched")
    setattr(backend, f"{kind}_reasoning", frozenset({plain.tokens[place]}))
    with pytest.raises(GenerationError, match="max_new_tokens"):
        reply(backend)


def test_the_second_look_is_asked_after_the_reply_without_its_reasoning(engine: Callable[[str], Any]):
    class Everything:
        frame = "original"

        def read(self, *given: Any) -> Box:
            return Box(0.2, 0.2, 0.7, 0.8)

    questions = [
        Question(str(number), Image.new("RGB", (70, 50), tint), f"{tint}?", f"Is it {tint}?")
        for number, tint in enumerate(["red", "blue"])
    ]
    traces, settings = {}, Settings.of()
    settings = dataclasses.replace(settings, protocol=dataclasses.replace(settings.protocol, locate_tokens=9))
    for name in ("naive", "tree"):
        backend = engine(name)
        backend.box_format = Everything()
        if not traces:
            located = answer_batch(backend, questions, [StopCriteria(4)] * 2, settings)[0].locate
            tag = next(token for token in located.tokens if located.tokens.index(token) > 2)
        backend.closes_reasoning = frozenset({tag})
        traces[name] = answer_batch(backend, questions, [StopCriteria(4)] * 2, settings)
    for trace, other in zip(traces["tree"], traces["naive"], strict=True):
        assert_same(trace, other)
        assert tag not in trace.locate.tokens
        assert trace.micro is not None
    assert len(traces["tree"][0].locate.tokens) < len(located.tokens)


def test_tags_are_tokens_of_the_vocabulary(engine: Callable[[str], Any]):
    assert engine("naive").opens_reasoning == engine("naive").closes_reasoning == frozenset()
    words = character_tokenizer(specials=["<think>", "</think>", "<channel|>"])
    backend = ModelBackend(dataclasses.replace(engine("naive").checkpoint, tokenizer=words))
    assert backend.opens_reasoning == {words.convert_tokens_to_ids("<think>")}
    assert backend.closes_reasoning == {*words.convert_tokens_to_ids(["</think>", "<channel|>"])}
