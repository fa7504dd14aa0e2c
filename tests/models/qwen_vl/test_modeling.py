"""The model against itself: with and without cache, alone and in a batch, before and after a round trip."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, DynamicCache

from dualfocus_lmms import UserError
from dualfocus_lmms.models.qwen_vl.configuration import QwenVLConfig
from dualfocus_lmms.models.qwen_vl.vision import position_table, resized

SAME = 2e-5  # logits in float32
LAYER = ("attn.c_attn.bias", "attn.c_attn.weight", "attn.c_proj.weight", "ln_1.weight", "ln_2.weight")
MLP = ("mlp.c_proj.weight", "mlp.w1.weight", "mlp.w2.weight")
BLOCK = tuple(
    f"{part}.{kind}"
    for part in ("attn.in_proj", "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in ("bias", "weight")
)
RESAMPLER = (
    *("attn.in_proj_bias", "attn.in_proj_weight", "attn.out_proj.bias", "attn.out_proj.weight"),
    *("kv_proj.weight", "ln_kv.bias", "ln_kv.weight", "ln_q.bias", "ln_q.weight", "pos_embed", "query"),
)
ENCODER = (
    *("conv1.weight", "positional_embedding", "ln_pre.bias", "ln_pre.weight"),
    *("ln_post.bias", "ln_post.weight", "proj", *(f"attn_pool.{name}" for name in RESAMPLER)),
)
ONCE = (
    *("lm_head.weight", "transformer.ln_f.weight", "transformer.wte.weight"),
    *(f"transformer.visual.{name}" for name in ENCODER),
)


def published_names(layers: int, blocks: int) -> set[str]:
    """The names of pytorch_model.bin.index.json of the published checkpoint, for so many layers."""
    language = {f"transformer.h.{number}.{name}" for number in range(layers) for name in LAYER + MLP}
    visual = "transformer.visual.transformer.resblocks"
    return {*ONCE, *language, *(f"{visual}.{number}.{name}" for number in range(blocks) for name in BLOCK)}


def prompt(model: Any, images: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (1, L) with so many images among `length` random words, and their pixels."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 256, (length,), generator=generator).tolist()
    token = model.config.image_token_id
    image_ids = [token - 2, *[token] * model.config.image_seq_length, token - 1]
    ids = [*words[:2], *image_ids * images, *words[2:]]
    return torch.tensor([ids]), torch.randn(images, 3, 56, 56, generator=generator)


@torch.inference_mode()
def test_the_weights_have_the_published_names_and_load_back_equal(
    qwen: Any, load_folder: Any, published: Path, tmp_path: Path
):
    names = set(load_file(published / "model.safetensors"))
    assert names == published_names(layers=2, blocks=2)
    for part in (qwen.model, qwen.tokenizer, qwen.image_processor):
        part.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == names
    again = load_folder(tmp_path)
    ids, pixels = prompt(qwen.model, 2, 9, 0)
    before, after = (one.model(input_ids=ids, pixel_values=pixels).logits for one in (qwen, again))
    assert torch.equal(before, after)
    text = "Picture 1: <img><imgpad></img>\nthe <box>(1,2),(3,4)</box> é<|im_end|>"
    assert again.tokenizer(text).input_ids == qwen.tokenizer(text).input_ids
    assert again.image_processor.to_dict() == qwen.image_processor.to_dict()


def test_the_published_configuration(shared_data: Path):
    config = AutoConfig.from_pretrained(shared_data / "tokenizers" / "qwen_vl")
    assert isinstance(config, QwenVLConfig)
    assert (config.image_token_id, config.image_seq_length) == (151859, 256)
    assert (config.hidden_size, config.seq_length, config.visual["mlp_ratio"]) == (4096, 2048, 4.9231)
    with torch.device("meta"):
        from dualfocus_lmms.models.qwen_vl import QwenVLForConditionalGeneration

        model = QwenVLForConditionalGeneration(config)
    assert set(model.state_dict()) == published_names(layers=32, blocks=48)
    assert model.transformer.h[0].mlp.w1.weight.shape == (11008, 4096)
    assert model.transformer.visual.transformer.resblocks[0].mlp.c_fc.weight.shape == (8192, 1664)


@torch.inference_mode()
def test_eager_and_sdpa_agree(qwen: Any, load_folder: Any, published: Path):
    ids, pixels = prompt(qwen.model, 2, 12, 1)
    eager = load_folder(published, attn_implementation="eager").model
    sdpa = load_folder(published, attn_implementation="sdpa").model
    output = eager(input_ids=ids, pixel_values=pixels, output_attentions=True)
    expected = sdpa(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(output.logits, expected, atol=SAME, rtol=0)
    length = ids.shape[1]
    assert [weights.shape for weights in output.attentions] == [(1, 4, length, length)] * 2


@torch.inference_mode()
def test_a_cache_changes_nothing(qwen: Any):
    model = qwen.model
    ids, pixels = prompt(model, 1, 20, 2)
    whole = model(input_ids=ids, pixel_values=pixels).logits
    cache = DynamicCache(config=model.config.get_text_config())
    embeddings = model.model.embed(ids, pixels)
    cuts = [0, 5, 25, 26, 27, ids.shape[1]]
    parts = [
        model.model.language_model(
            inputs_embeds=embeddings[:, start:end],
            attention_mask=torch.ones(1, end, dtype=torch.long),
            position_ids=torch.arange(start, end)[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        for start, end in pairwise(cuts)
    ]
    split = model.get_output_embeddings()(torch.cat(parts, dim=1))
    torch.testing.assert_close(split, whole, atol=SAME, rtol=0)


@torch.inference_mode()
def test_rows_with_gaps_have_the_output_they_have_alone(qwen: Any):
    model = qwen.model
    rows = [prompt(model, 1, length, length) for length in (4, 19, 30)]
    width = 3 + max(ids.shape[1] for ids, _ in rows)
    kept = torch.zeros(3, width, dtype=torch.bool)
    for row, (ids, _) in enumerate(rows):  # holes in front, in the middle and behind
        columns = torch.randperm(width, generator=torch.Generator().manual_seed(row))[: ids.shape[1]]
        kept[row, columns.sort().values] = True
    batch = torch.zeros(3, width, dtype=torch.long)
    batch[kept] = torch.cat([ids[0] for ids, _ in rows])
    logits = model(
        input_ids=batch,
        pixel_values=torch.cat([pixels for _, pixels in rows]),
        attention_mask=kept.long(),
        position_ids=(kept.cumsum(1) - 1).clamp(min=0),
    ).logits
    for row, (ids, pixels) in enumerate(rows):
        alone = model(input_ids=ids, pixel_values=pixels).logits[0]
        torch.testing.assert_close(logits[row, kept[row]], alone, atol=SAME, rtol=0)


@torch.inference_mode()
def test_generate_reads_images_and_pads_on_the_left(qwen: Any):
    model = qwen.model
    rows = [prompt(model, 1, length, length) for length in (5, 9)]
    width = max(ids.shape[1] for ids, _ in rows)
    ids = torch.cat([torch.nn.functional.pad(ids, (width - ids.shape[1], 0)) for ids, _ in rows])
    mask = torch.cat(
        [torch.nn.functional.pad(torch.ones_like(row), (width - row.shape[1], 0)) for row, _ in rows]
    )
    greedy = {"do_sample": False, "max_new_tokens": 6, "top_p": None}
    both = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=torch.cat([pixels for _, pixels in rows]), **greedy
    )[:, width:]
    for generated, (row, pixels) in zip(both.tolist(), rows, strict=True):
        expected: list[int] = []
        for _ in range(6):  # without cache, whole prompts
            longer = torch.cat([row, torch.tensor([expected], dtype=torch.long)], dim=1)
            expected.append(int(model(input_ids=longer, pixel_values=pixels).logits[0, -1].argmax()))
        assert generated == expected


def test_a_wrong_number_of_image_tokens_raises(qwen: Any):
    ids, pixels = prompt(qwen.model, 1, 4, 0)
    with pytest.raises(ValueError, match="16"):
        qwen.model(input_ids=ids[:, :-8], pixel_values=pixels.repeat(2, 1, 1, 1))


def test_the_position_table_is_sines_and_cosines_of_column_and_row():
    side, width = 5, 16
    table = position_table(side, width)
    for position in range(side * side):
        row, column = divmod(position, side)
        for quarter, (value, function) in enumerate(
            [(column, math.sin), (column, math.cos), (row, math.sin), (row, math.cos)]
        ):
            for number in range(4):
                expected = function(value / 10000 ** (number / 4))
                assert table[position, 4 * quarter + number] == pytest.approx(expected, abs=1e-6)


def test_a_resized_grid_keeps_rows_and_columns():
    grid = torch.arange(16.0).repeat_interleave(16)[:, None]  # the row of each of 16 x 16 places
    finer = resized(grid, 32 * 32)[:, 0].unflatten(0, (32, 32))
    assert torch.equal(resized(grid, 256), grid)
    assert torch.allclose(finer, finer[:, :1].expand(-1, 32), atol=1e-4)
    assert torch.allclose(finer[4:-4:2, 0].diff(), torch.tensor(1.0), atol=1e-4)


@torch.inference_mode()
def test_prompts_beyond_the_trained_length_raise_and_answers_scale_their_queries(
    load_folder: Any, published: Path
):
    model = load_folder(published).model
    longest = model.config.seq_length = 24
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="24"):
        model(input_ids=ids[:, : longest + 1])

    def stepwise() -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :longest], past_key_values=cache)
        steps = [model(input_ids=ids[:, at : at + 1], past_key_values=cache) for at in range(longest, 40)]
        return torch.cat([step.logits for step in steps], dim=1)

    sharp = stepwise()
    model.config.use_logn_attn = False
    plain = stepwise()
    model.config.use_dynamic_ntk = False
    torch.testing.assert_close(plain, model(input_ids=ids).logits[:, longest:], atol=SAME, rtol=0)
    assert (sharp - plain).abs().max() > 100 * SAME
