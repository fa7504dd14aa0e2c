"""Long queries in pieces give what one call of torch's attention gives."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dualfocus_lmms import Box, BoxFormat, Question, Settings, StopCriteria, answer_batch
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.engines.attention import IN_PIECES, attention_in_pieces, divide_long_queries
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.llava import character_tokenizer, llava_config


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("tokens", "held"), [(1, 0), (192, 0), (193, 0), (400, 0), (191, 90), (390, 411)])
def test_pieces_equal_one_call(tokens: int, held: int, groups: int):
    torch.manual_seed(tokens)
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True, training=False)
    query = torch.randn(2, 4, tokens, 8)
    key, value = (torch.randn(2, 4 // groups, held + tokens, 8) for _ in range(2))
    seen = torch.ones(tokens, held + tokens, dtype=torch.bool).tril(held).expand(2, 1, -1, -1).clone()
    seen[1, 0, :, 1 : held // 2] = False  # holes of one row
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected, _ = sdpa_attention_forward(module, query, key, value, seen, scaling=0.3)
    for given in (seen, mask):
        found, weights = attention_in_pieces(module, query, key, value, given, scaling=0.3)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert weights is None
    if held == 0:
        found, _ = attention_in_pieces(module, query, key, value, None, scaling=0.3)
        expected, _ = sdpa_attention_forward(module, query, key, value, None, scaling=0.3)
        assert torch.equal(found, expected)


def test_only_torchs_attention_on_a_cpu_is_changed(tiny_checkpoint):
    for name, expected in [("sdpa", IN_PIECES), ("eager", "eager")]:
        model = load_checkpoint(str(tiny_checkpoint), device="cpu", attn_implementation=name).model.model
        divide_long_queries(model.language_model)
        assert model.language_model.config._attn_implementation == expected
        assert model.vision_tower.config._attn_implementation == name


class FixedBox(BoxFormat):
    """A model with random weights writes no box: this one is read from any reply."""

    def read(self, text, image_size, input_size=None):
        return Box(0.2, 0.2, 0.6, 0.6)


def test_engines_are_exact_on_prompts_of_several_pieces(checkpoint):
    """256 tokens an image, questions of several lengths, and one image that opens two rows."""
    words = character_tokenizer()
    config = llava_config("tiny", words)
    config.vision_config.image_size, config.image_seq_length = 224, 256
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    long = Checkpoint(model, words, processor, replace(checkpoint.family))
    red, blue = (Image.new("RGB", (64, 48), color) for color in ("red", "blue"))
    questions = [
        Question(str(number), image, text, f"{text} yes or no?")
        for number, (image, text) in enumerate([(red, "what is it?"), (blue, "is it?"), (red, "where now?")])
    ]
    limits = [StopCriteria(2), StopCriteria(5), StopCriteria(3)]
    traces = {}
    for name in ("naive", "shared", "template", "tree"):
        backend = make_engine(name, long)
        backend.box_format = FixedBox()
        traces[name] = answer_batch(backend, questions, limits, Settings.of())
    for name in ("shared", "template", "tree"):
        for trace, oracle in zip(traces[name], traces["naive"], strict=True):
            assert trace.micro is not None
            for answer, other in zip(trace.answers, oracle.answers, strict=True):
                assert answer.tokens == other.tokens
                assert answer.logprobs == pytest.approx(other.logprobs, abs=1e-4)
