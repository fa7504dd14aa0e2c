"""The engine for any model: whole batches through transformers' generate, against one question at a time."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

from dualfocus_lmms import Box, Question, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import MAKERS, save_tiny_family
from dualfocus_lmms.models.tiny.llava import character_tokenizer, save_tiny

pytestmark = pytest.mark.seconds(40)

WINDOW = 8  # tokens that a sliding layer attends to, far fewer than a prompt has
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<turn>' }}{% for part in message['content'] %}"
    "{{ '<boi>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ eos_token }}{% endfor %}"
)


def gemma3(folder: Path) -> None:
    """Write a tiny Gemma 3: sliding windows, and image tokens that attend to later ones."""
    specials = ["<turn>", "<boi>", "<eoi>", "<image_soft_token>"]
    named = dict(zip(("boi_token", "eoi_token", "image_token"), specials[1:], strict=True))
    tokenizer = character_tokenizer(specials=specials, extra_special_tokens=named)
    ids = dict(zip(specials, tokenizer.convert_tokens_to_ids(specials), strict=True))
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2, query_pre_attn_scalar=16,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=ids["<boi>"],
        eoi_token_index=ids["<eoi>"], image_token_index=ids["<image_soft_token>"],
    )  # fmt: skip
    torch.manual_seed(0)
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = Gemma3Processor(images, tokenizer, chat_template=TEMPLATE, image_seq_length=4)
    for part in (Gemma3ForConditionalGeneration(config), processor):
        part.save_pretrained(folder)


def ragged(count: int = 10) -> tuple[list[Question], list[StopCriteria]]:
    """Questions of many lengths about images of many shapes, with boxes; some stop at a letter."""
    rng = random.Random(1)
    questions, limits = [], []
    for number in range(count):
        image = Image.frombytes("RGB", (4, 4), rng.randbytes(48)).resize(
            (rng.choice([30, 64, 200]), rng.choice([30, 64, 150]))
        )
        text = " ".join(["what"] * rng.randint(1, 9)) + "?"
        x, y = rng.uniform(0, 0.6), rng.uniform(0, 0.6)
        questions.append(Question(str(number), image, text, text, box=Box(x, y, x + 0.3, y + 0.4)))
        limits.append(StopCriteria(rng.randint(1, 8), tuple(rng.sample("aeiot", rng.randint(0, 2)))))
    return questions, limits


def assert_equal_answers(ours: Any, naive: Any, *asked: Any) -> list[Any]:
    settings = Settings.of(grounding="annotated")
    traces = answer_batch(ours, *asked, settings)
    for trace, other in zip(traces, answer_batch(naive, *asked, settings), strict=True):
        for answer, expected in zip(trace.answers, other.answers, strict=True):
            assert (answer.tokens, answer.text, answer.ended) == (
                expected.tokens,
                expected.text,
                expected.ended,
            )
            assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert trace.selection == other.selection or trace.ppl == pytest.approx(other.ppl, rel=1e-4)
    return traces


@pytest.mark.parametrize("family", ["llava", *sorted(MAKERS)])
def test_answers_are_those_of_the_naive_engine_for_every_family(family: str, tmp_path: Path):
    save_tiny(tmp_path) if family == "llava" else save_tiny_family(tmp_path, family)
    loaded = load_checkpoint(str(tmp_path), device="cpu")
    batched = make_engine("batched", loaded)
    many_tokens = family.startswith(("gemma4", "idefics3", "qwen3_5"))  # an image
    count = 5 if many_tokens else 10
    assert_equal_answers(batched, make_engine("naive", loaded), *ragged(count))


def test_a_model_with_sliding_windows_is_answered_in_batches(tmp_path: Path):
    gemma3(tmp_path)
    with pytest.raises(UserError):
        load_checkpoint(str(tmp_path), device="cpu")
    loaded = load_checkpoint(str(tmp_path), device="cpu", family="generic")
    with pytest.raises(UserError):
        make_engine("shared", loaded)
    batched = make_engine(None, loaded)
    traces = assert_equal_answers(batched, make_engine("naive", loaded), *ragged())
    assert all(trace.micro is not None for trace in traces)


def test_one_batch_takes_one_call_of_the_model_for_each_token(tmp_path: Path):
    """Macro and micro are a batch each; images are encoded for each of them."""
    save_tiny(tmp_path)
    batched = make_engine("batched", load_checkpoint(str(tmp_path), device="cpu"))
    batched.eos_ids = frozenset()
    questions, _ = ragged(6)
    limits = [StopCriteria(3 + number) for number in range(6)]
    traces = answer_batch(batched, questions, limits, Settings.of(grounding="annotated"))
    assert [len(trace.macro.tokens) for trace in traces] == [3, 4, 5, 6, 7, 8]
    assert batched.counts.forwards == 2 * 8
    assert batched.counts.encodes == 6 + 12
    assert batched.counts.tokens == sum(answer.usage.tokens for trace in traces for answer in trace.answers)


def test_an_image_token_is_never_generated_but_counts_in_the_probabilities(tmp_path: Path):
    save_tiny(tmp_path)
    loaded = load_checkpoint(str(tmp_path), device="cpu")
    batched, naive = make_engine("batched", loaded), make_engine("naive", loaded)
    head = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        head[batched.image_token_id] = head.abs().max(0).values * 9 * head[5].sign()
    traces = assert_equal_answers(batched, naive, *ragged(4))
    assert all(batched.image_token_id not in answer.tokens for trace in traces for answer in trace.answers)


def test_logits_that_are_not_numbers_stop_the_run(tmp_path: Path):
    save_tiny(tmp_path)
    loaded = load_checkpoint(str(tmp_path), device="cpu")
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(GenerationError):
        answer_batch(make_engine("batched", loaded), *ragged(2), Settings.of(pathway="macro"))


def test_generic_takes_this_engine(tmp_path: Path):
    save_tiny_family(tmp_path, "qwen2_vl")
    loaded = load_checkpoint(str(tmp_path), device="cpu")
    unknown = dataclasses.replace(
        loaded, family=dataclasses.replace(loaded.family, name="generic", engine="batched")
    )
    assert type(make_engine(None, unknown)).__name__ == "BatchedBackend"
