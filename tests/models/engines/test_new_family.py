"""A family that is added as the documentation says, and what the documentation lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from same_traces import assert_same
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralProcessor,
    PixtralVisionConfig,
)
from transformers.models.pixtral.image_processing_pixtral import PixtralImageProcessor

from dualfocus_lmms import Question, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.families import table
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.llava import character_tokenizer
from dualfocus_lmms.plugins import FAMILIES, load_family, names


def mistral3() -> tuple[Any, Any]:
    """A tiny Mistral 3: a model of transformers that no family of ours handles."""
    words = character_tokenizer(specials=["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    vision = PixtralVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=14,
        image_size=112,
    )  # fmt: skip
    text = MistralConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
        sliding_window=None, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    image = words.convert_tokens_to_ids("[IMG]")
    torch.manual_seed(0)
    model = Mistral3ForConditionalGeneration(
        Mistral3Config(vision_config=vision, text_config=text, image_token_index=image, spatial_merge_size=2)
    )
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 28, "width": 28})
    processor = PixtralProcessor(images, words, patch_size=14, spatial_merge_size=2, image_token="[IMG]")
    processor.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
        "{% for part in message['content'] %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}"
        "{% endfor %}[/INST]{% else %}{{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    return model, processor


def test_the_ten_lines_of_the_docs_add_a_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[list[Question], list[StopCriteria]]
):
    page = (Path(__file__).parents[3] / "docs" / "families.md").read_text(encoding="utf-8")
    lines = page.split("<!-- family -->\n```python\n")[1].split("```")[0]
    assert lines.rstrip().count("\n") <= 12
    (tmp_path / "our_package.py").write_text(lines, encoding="utf-8")
    installed = tmp_path / "our_package-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: our-package\nVersion: 1\n")
    registered = (
        page.split("```toml\n")[1]
        .split("```")[0]
        .replace('project.entry-points."dualfocus_lmms.families"', "dualfocus_lmms.families")
    )
    (installed / "entry_points.txt").write_text(
        registered.replace('"our_package:MISTRAL3"', "our_package:MISTRAL3")
    )
    folder = tmp_path / "checkpoint"
    for part in mistral3():
        part.save_pretrained(folder)
    with pytest.raises(UserError):
        load_checkpoint(str(folder), device="cpu")
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load_checkpoint(str(folder), device="cpu")
    assert loaded.family.name == "mistral3"
    questions, limits = asked
    settings = Settings.of(grounding="annotated")
    traces = answer_batch(make_engine(None, loaded), questions, limits, settings)
    naive = answer_batch(make_engine("naive", loaded), questions, limits, settings)
    for trace, other in zip(traces, naive, strict=True):
        assert_same(trace, other)


def test_the_docs_have_the_table_of_what_is_installed():
    page = (Path(__file__).parents[3] / "docs" / "families.md").read_text(encoding="utf-8")
    shown = page.split("<!-- dualfocus families -->\n")[1].split("\n<!-- end -->")[0]
    assert shown.splitlines() == [line for line in table().splitlines() if "`example`" not in line]
    for name in names(FAMILIES):
        native = load_family(name).native_locate
        assert native is None or native.replace("{question}", "...") in page
