"""Decoding steps of a fixed size equal the usual ones. Graphs need a GPU: examples/engine_agreement.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import SHARING

from dualfocus_lmms import Settings, UserError, answer_batch
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines import decoding_graphs
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.models.tiny.families import save_tiny_family

pytestmark = pytest.mark.seconds(20)

ENGINES = ("shared", "template", "tree")
Ragged = Callable[..., tuple[list[Any], list[Any]]]


def answers(engine: Any, questions: list[Any], limits: list[Any], size: int) -> list[Any]:
    found = []
    for start in range(0, len(questions), size):
        rows = slice(start, start + size)
        traces = answer_batch(engine, questions[rows], limits[rows], Settings.of())
        found += [(answer.tokens, answer.logprobs) for trace in traces for answer in trace.answers]
    return found


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    for (_, logprobs), (_, others) in zip(found, wanted, strict=True):
        assert logprobs == pytest.approx(others, abs=1e-4)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slots of all rows in each step of a fixed size that is taken."""
    taken: list[int] = []
    step = decoding_graphs.DecodingGraphs.step

    def counted(self: Any, *inputs: Any) -> torch.Tensor:
        taken.append(inputs[1].shape[0] * inputs[1].shape[-1])
        return step(self, *inputs)

    monkeypatch.setattr(decoding_graphs.DecodingGraphs, "step", counted)
    return taken


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("slots", "most"), [(256, 1 << 13), (16, 1 << 13), (16, 700)])
def test_steps_of_a_fixed_size_equal_the_usual_ones(
    checkpoint: Any,
    ragged: Ragged,
    steps: list[int],
    name: str,
    slots: int,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """Buffers that never grow, that grow while a batch decodes, and batches that become too large."""
    monkeypatch.setattr(decoding_graphs, "_SLOTS", slots)
    monkeypatch.setattr(decoding_graphs, "_MOST_SLOTS", most)
    questions, limits = ragged(15)
    usual, fixed = make_engine(name, checkpoint), make_engine(name, checkpoint, cuda_graphs=True)
    wanted = answers(usual, questions, limits, 7)  # batches of 7, 7 and 1 row
    assert steps == []
    assert_same(answers(fixed, questions, limits, 7), wanted)
    assert 0 < max(steps) <= most
    assert usual.counts == fixed.counts


@pytest.mark.parametrize("family", SHARING)
def test_every_family_that_a_fast_engine_runs_can_take_them(family: str, tmp_path: Any, ragged: Ragged):
    loaded = load_checkpoint(str(save_tiny_family(tmp_path, family)), device="cpu")
    questions, limits = ragged(4)
    wanted = answers(make_engine(None, loaded), questions, limits, 4)
    assert_same(answers(make_engine(None, loaded, cuda_graphs=True), questions, limits, 4), wanted)


def test_what_an_earlier_batch_left_in_the_buffers_is_not_seen(checkpoint: Any, ragged: Ragged):
    questions, limits = ragged(4)
    engine = make_engine("tree", checkpoint, cuda_graphs=True)
    wanted = answers(engine, questions, limits, 4)
    assert isinstance(engine, SharedBackend)
    assert engine.graphs is not None
    with torch.inference_mode():
        for buffer in engine.graphs._buffers:
            buffer.fill_(torch.nan)
    assert_same(answers(engine, questions, limits, 4), wanted)


def test_the_plain_engine_has_none(checkpoint: Any):
    assert not hasattr(make_engine("naive", checkpoint, cuda_graphs=True), "graphs")


def test_several_devices_and_other_attention_are_refused(checkpoint: Any, monkeypatch: pytest.MonkeyPatch):
    model = checkpoint.model
    monkeypatch.setattr(model, "hf_device_map", {"a": 0, "b": 1}, raising=False)
    with pytest.raises(UserError, match="device_map"):
        make_engine("tree", checkpoint, cuda_graphs=True)
    monkeypatch.setattr(model, "hf_device_map", {"a": 0, "b": 0})
    monkeypatch.setattr(model.model.language_model.config, "_attn_implementation", "eager")
    with pytest.raises(UserError, match="sdpa"):
        make_engine("tree", checkpoint, cuda_graphs=True)
