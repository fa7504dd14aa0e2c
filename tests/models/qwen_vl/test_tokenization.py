"""The tokenizer of the published files, and the prompts and images that it gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from dualfocus_lmms import Box, UserError
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.checkpoint.image_text_inputs import reader
from dualfocus_lmms.models.families.qwen_vl import QWEN_VL
from dualfocus_lmms.models.qwen_vl import load_qwen_tokenizer

GOLDEN = """<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
Picture 1: <img>{picture}</img>
Where?<|im_end|>
<|im_start|>assistant
<box>(100,200),(300,400)</box><|im_end|>
<|im_start|>user
Picture 2: <img>{picture}</img>
What is it?<|im_end|>
<|im_start|>assistant
"""


def test_the_published_vocabulary(shared_data: Path):
    tokenizer = load_qwen_tokenizer(str(shared_data / "tokenizers" / "qwen_vl"))
    named = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|extra_0|>": 151646,
        "<|extra_204|>": 151850,
        "<ref>": 151851,
        "</ref>": 151852,
        "<box>": 151853,
        "</box>": 151854,
        "<quad>": 151855,
        "</quad>": 151856,
        "<img>": 151857,
        "</img>": 151858,
        "<imgpad>": 151859,
    }
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in named} == named
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (151645, 151643, None)
    assert len(tokenizer) == 151860
    for text in (
        "It's 12345 items.\n\n  x = 3.14",
        "框出图中击掌的位置",
        "🦊 ok",
        "<ref>a</ref><box>(1,23),(45,6)</box>",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("12345").input_ids) == 5  # digits one by one
    assert tokenizer("e\u0301").input_ids == tokenizer("\u00e9").input_ids


def test_no_code_of_the_checkpoint_runs(published: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    for name in ("configuration_qwen", "modeling_qwen", "tokenization_qwen"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')\n")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the").input_ids == [260]
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert "auto_map" not in saved


def test_decoding_keeps_the_tags_of_regions_only(qwen: Any):
    tokenizer = qwen.tokenizer
    ids = tokenizer(
        "<img><imgpad></img><ref>a dog</ref><box>(1,2),(3,4)</box><|im_end|><|endoftext|>"
    ).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<ref>a dog</ref><box>(1,2),(3,4)</box>"


def test_a_changed_vocabulary_is_read_again(published: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    load_qwen_tokenizer(str(folder))
    lines = (folder / "qwen.tiktoken").read_text().splitlines()
    (folder / "qwen.tiktoken").write_text("\n".join(lines[:257]))
    assert len(load_qwen_tokenizer(str(folder))("the").input_ids) == 2


def test_unusable_files_raise(tmp_path: Path, published: Path):
    with pytest.raises(UserError, match="tokenizer"):
        load_qwen_tokenizer(str(tmp_path))
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    (folder / "qwen.tiktoken").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"qwen\.tiktoken"):
        load_qwen_tokenizer(str(folder))


def test_a_dialogue_with_two_images(qwen: Any):
    renderer, image_reader = reader(qwen)
    image = Image.new("RGB", (30, 20))
    box_text = QWEN_VL.box_format.write(Box(0.1, 0.2, 0.3, 0.4), image.size)
    dialogue = Conversation().user("Where?", image).assistant(box_text).user("What is it?", image)
    rendered = renderer.render(dialogue, image_reader.ids)
    expected = GOLDEN.format(picture="<imgpad>" * 16)
    assert list(rendered.ids) == qwen.tokenizer(expected).input_ids
    token = qwen.model.config.image_token_id
    assert [rendered.ids[start : start + length] for start, length in rendered.spans] == [(token,) * 16] * 2
    ((start, length),) = rendered.replies
    assert qwen.tokenizer.decode(rendered.ids[start : start + length]) == box_text
    assert QWEN_VL.box_format.read(box_text, image.size) == Box(0.1, 0.2, 0.3, 0.4)


def test_an_image_is_stretched_to_a_square(qwen: Any):
    pixels = np.random.default_rng(0).integers(0, 256, (23, 91, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    _, image_reader = reader(qwen)
    made = image_reader([image])[0]
    square = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = torch.tensor((square - mean) / std).permute(2, 0, 1).float()
    torch.testing.assert_close(made.inputs["pixel_values"][0], expected, atol=1e-5, rtol=0)
    assert made.input_size == (56, 56)
