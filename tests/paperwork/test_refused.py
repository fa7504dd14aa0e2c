"""Real folders that cannot be loaded, and real ones spoiled: each says what to do, none is a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paperwork.build import build, copy

from dualfocus_lmms import UserError
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import save_tiny_family

QWEN3 = "qwen3-vl-4b-instruct"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "family", "remedy"),
    [
        ("llava-next-video-7b-hf", None, "family=generic"),
        ("logics-thinking", None, "its own code"),
        ("logics-thinking", "generic", "logics"),
        ("qwen3.5-family-partial", None, "qwen3.5-family-partial"),
        ("internvl2-8b-remote-code", "generic", "-hf"),
        ("qwen2-vl-processor-new-format", None, "config.json"),
        (QWEN3, None, "weights|safetensors"),
    ],
)
def test_a_folder_that_cannot_be_loaded_says_why(
    name: str, family: str | None, remedy: str, published: Path, tmp_path: Path
):
    folder = copy(published / name, tmp_path / name)
    with pytest.raises(UserError, match=remedy):
        load_checkpoint(str(folder), device="cpu", family=family)


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        ({"vocab.json": None, "merges.txt": None}, "vocab"),
        ({"tokenizer_config.json": "{}"}, r"image_pad"),
        ({"vocab.json": POINTER}, "vocab.json.*git lfs pull"),
        ({"preprocessor_config.json": None}, "preprocessor_config.json"),
        ({"config.json": "{"}, "config.json"),
        ({"chat_template.json": "{"}, "chat_template.json"),
        ({"chat_template.json": "[]"}, "chat_template.json"),
        ({"chat_template.json": "{}"}, "chat_template.json"),
        ({"generation_config.json": "[1]"}, "generation_config.json"),
    ],
)
def test_a_folder_that_lacks_a_part_says_which(
    spoil: dict[str, str | None], remedy: str, published: Path, tmp_path: Path
):
    folder = build(published, QWEN3, tmp_path)
    for name, content in spoil.items():
        (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UserError, match=remedy):
        make_engine(None, load_checkpoint(str(folder), device="cpu"))


def test_a_vocabulary_without_its_added_tokens_is_refused(published: Path, tmp_path: Path):
    """What transformers 5 saves keeps them in tokenizer.json alone."""
    folder = build(published, "qwen2-vl-processor-new-format", tmp_path)
    own = published / "qwen2-vl-processor-new-format" / "tokenizer_config.json"
    (folder / "tokenizer_config.json").write_bytes(own.read_bytes())
    with pytest.raises(UserError, match="image_pad"):
        make_engine(None, load_checkpoint(str(folder), device="cpu"))


def test_a_base_models_vocabulary_is_refused_for_llava(published: Path, tmp_path: Path):
    """Vicuna's, which has no <image>."""
    folder = build(published, "llava-1.5-7b-hf", tmp_path)
    words = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    words["added_tokens"] = [token for token in words["added_tokens"] if token["id"] < 32000]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    (folder / "added_tokens.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    for name in ("added_tokens_decoder", "extra_special_tokens", "image_token", "pad_token"):
        settings.pop(name)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(UserError, match="32000"):
        make_engine(None, load_checkpoint(str(folder), device="cpu"))


def test_a_template_for_text_alone_is_not_used(published: Path, tmp_path: Path):
    """As a fine-tune of LLaVA-NeXT has it: the family's stands for it unless the checkpoint's is demanded."""
    folder = save_tiny_family(tmp_path, "llava_next")
    template = (published / "llava-next-video-7b-hf" / "chat_template.jinja").read_bytes()
    (folder / "chat_template.jinja").write_bytes(template)
    with pytest.raises(UserError, match="chat_template=family"):
        make_engine(None, load_checkpoint(str(folder), device="cpu", chat_template="checkpoint"))
    for asked in ("auto", "family"):
        engine = make_engine(None, load_checkpoint(str(folder), device="cpu", chat_template=asked))
        assert engine.template.used == "family"


def test_a_template_that_thinks_leaves_it_out(published: Path, tmp_path: Path):
    """Qwen3.5's opens every turn with <think>, and knows enable_thinking; without that it is refused."""
    folder = build(published, QWEN3, tmp_path)
    (folder / "chat_template.json").unlink()
    template = (published / "qwen3.5-family-partial" / "chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    engine = make_engine(None, load_checkpoint(str(folder), device="cpu"))
    assert engine.template.used == "checkpoint"
    (folder / "chat_template.jinja").write_text(template.replace("enable_thinking", "thinks"), "utf-8")
    with pytest.raises(UserError, match="<think>"):
        make_engine(None, load_checkpoint(str(folder), device="cpu"))
