"""The macro answer and the box as two branches of one row: the same answers, in fewer forwards."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from dualfocus_lmms import Box, Question, Settings, StopCriteria, answer_batch
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.kv_cache import SHARED, PrefixCache
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.engines.tree import TreeBackend
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.models.tiny.families import save_tiny_family

TOLERANCE = 1e-4  # nats, float32


def assert_same(traces, others):
    for trace, other in zip(traces, others, strict=True):
        assert (trace.box, trace.crop, trace.fallback) == (other.box, other.crop, other.fallback)
        for answer, oracle in zip(trace.answers, other.answers, strict=True):
            assert (answer.tokens, answer.ended, answer.text) == (oracle.tokens, oracle.ended, oracle.text)
            assert answer.logprobs == pytest.approx(oracle.logprobs, abs=TOLERANCE)


class AlwaysABox:
    """The family's own notation, in which any reply is read as the same box."""

    def __init__(self, box_format):
        self.frame = box_format.frame
        self._text = lambda *sizes: box_format.write(Box(0.2, 0.25, 0.75, 0.9), *sizes)
        self._read = box_format.read

    def read(self, text, *sizes):
        return self._read(self._text(*sizes), *sizes)


@pytest.fixture(scope="module", params=["llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def family(request, tmp_path_factory):
    folder = save_tiny_family(tmp_path_factory.mktemp(request.param), request.param)
    return load_checkpoint(str(folder), device="cpu")


def boxed(name, checkpoint):
    backend = make_engine(name, checkpoint)
    backend.box_format = AlwaysABox(backend.box_format)
    return backend


def of_some_size(ragged, count):
    """Ragged questions about images that every family's processor takes."""
    pairs = zip(*ragged(60), strict=True)
    chosen = [pair for pair in pairs if min(pair[0].image.size) >= 30][:count]
    return [question for question, _ in chosen], [limits for _, limits in chosen]


def test_branches_are_exact_in_other_families(family, ragged):
    questions, limits = of_some_size(ragged, 6)
    oracle = answer_batch(boxed("naive", family), questions, limits, Settings.of())
    backend = boxed("tree", family)
    traces = answer_batch(backend, questions, limits, Settings.of())
    assert_same(traces, oracle)
    assert all(trace.micro is not None for trace in traces)
    assert backend.counts.encodes == 12
    assert backend.counts.tokens == sum(answer.usage.tokens for trace in traces for answer in trace.answers)


def test_eager_attention_takes_the_branches_too(tiny_checkpoint, engine, ragged):
    questions, limits = ragged(12)
    loaded = load_checkpoint(str(tiny_checkpoint), device="cpu", attn_implementation="eager")
    backend = make_engine("tree", loaded)
    traces = answer_batch(backend, questions, limits, Settings.of())
    assert_same(traces, answer_batch(engine("naive"), questions, limits, Settings.of()))


def test_a_batch_takes_7_forwards_and_as_many_tokens_as_without_branches(engine):
    """Boxes of 25 tokens and answers of 4, a blank before each included, and no guess is wrong."""
    questions = [
        Question(str(number), Image.new("RGB", (40 + number, 30), color), "is it red?", "is it red?")
        for number, color in enumerate([(220, 40, 30), (240, 200, 10), (200, 10, 90)])
    ]
    tree, template = engine("tree"), engine("template")
    traces = answer_batch(tree, questions, [StopCriteria(8)] * 3, Settings.of())
    assert_same(traces, answer_batch(template, questions, [StopCriteria(8)] * 3, Settings.of()))
    assert {(trace.macro.text, trace.micro.text) for trace in traces} == {("Yes", "Yes")}
    assert {len(trace.locate.tokens) for trace in traces} == {25}
    assert tree.counts.forwards == 7
    assert template.counts.forwards == 5 + 6 + 1
    assert (tree.counts.tokens, tree.counts.encodes) == (template.counts.tokens, template.counts.encodes)


def test_attention_code_that_takes_no_mask_of_ones_own_says_one_after_the_other(engine, ragged, monkeypatch):
    questions, limits = ragged(8)
    expected = answer_batch(engine("naive"), questions, limits, Settings.of())
    monkeypatch.setattr(TreeBackend, "_attention", "flash_attention_2")
    backend, template = engine("tree"), engine("template")
    assert_same(answer_batch(backend, questions, limits, Settings.of()), expected)
    answer_batch(template, questions, limits, Settings.of())
    assert backend.counts == template.counts


def test_what_may_be_skipped_is_not_asked_beforehand(engine, ragged):
    questions, limits = ragged(8)
    backend = engine("tree")
    traces = answer_batch(backend, questions, limits, Settings.of(skip_confidence=0))
    assert all(trace.fallback == "skip_confidence" and trace.locate is None for trace in traces)
    plain = engine("template")
    answer_batch(plain, questions, limits, Settings.of(skip_confidence=0))
    assert backend.counts == plain.counts


def test_questions_about_one_image_read_it_once_for_all_branches(engine):
    image = Image.new("RGB", (40, 30), "red")
    questions = [
        Question(str(n), image, text, text) for n, text in enumerate(["is it?", "what?", "where now?"])
    ]
    backend, one = engine("tree"), engine("tree")
    traces = answer_batch(backend, questions, [StopCriteria(8)] * 3, Settings.of())
    assert_same(traces, answer_batch(engine("naive"), questions, [StopCriteria(8)] * 3, Settings.of()))
    (alone,) = answer_batch(one, questions[1:2], [StopCriteria(8)], Settings.of())
    assert alone.macro.usage.tokens - traces[1].macro.usage.tokens > 16  # the image and what stands before it
    assert alone.locate.usage.tokens == traces[1].locate.usage.tokens
    assert backend.counts.encodes == 4


def test_a_branch_sees_the_trunk_and_itself():
    """Slots: trunk, hole, trunk, then columns of two branches, the last one a hole."""
    held = torch.tensor([[1, 0, 1, 2, 3, 2, 0]])
    state = PrefixCache(DynamicCache(), held, [()])
    backend = SimpleNamespace(_attention="sdpa")
    mask = TreeBackend._mask(backend, state, held[:, 3:])
    assert mask.shape == (1, 1, 4, 7)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0, 1, 0],
        [1, 0, 1, 0, 0, 0, 0],
    ]
    assert SHARED == 1


@pytest.mark.parametrize("name", ["shared", "tree"])
def test_second_looks_from_several_batches_see_no_padding(tmp_path, ragged, name):
    """Caches of different lengths are joined: their padding must not be visible.

    Qwen2.5-VL has attention biases, so that a zero key would have weight.
    """
    loaded = load_checkpoint(str(save_tiny_family(tmp_path, "qwen2_5_vl")), device="cpu")
    questions, limits = of_some_size(ragged, 8)
    questions = [
        replace(one, id=str(n), key={"task": "t", "split": "s", "doc_id": n})
        for n, one in enumerate(questions)
    ]
    traces = answer_batch(boxed("naive", loaded), questions, limits, Settings.of())
    confidences = sorted(trace.macro.confidence() for trace in traces)
    settings = Settings.of(skip_confidence=(confidences[5] + confidences[6]) / 2)
    requests = [
        Request(question.key, limit, partial(lambda one: one, question))
        for question, limit in zip(questions, limits, strict=True)
    ]
    pooled = Runner(boxed(name, loaded), settings, 3).run(requests)
    assert_same(pooled, answer_batch(boxed("naive", loaded), questions, limits, settings))
    assert sum(trace.micro is not None for trace in pooled) == 6
