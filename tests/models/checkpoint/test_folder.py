"""Folders that are no whole checkpoint: each says what to do, and an adapter is loaded on its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dualfocus_lmms import UserError
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_an_adapter_is_merged_into_its_base(tmp_path: Path, tiny_checkpoint: Path):
    base = load_checkpoint(str(tiny_checkpoint), device="cpu")
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    torch.manual_seed(0)
    trained: Any = get_peft_model(
        base.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    trained.peft_config["default"].base_model_name_or_path = str(tiny_checkpoint)
    trained.save_pretrained(tmp_path / "adapter")
    merged = trained.merge_and_unload().state_dict()
    loaded = load_checkpoint(str(tmp_path / "adapter"), device="cpu").model.state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], merged[name]) for name in loaded)
    changed = {name for name in loaded if not torch.equal(loaded[name], before[name])}
    assert changed
    assert all("q_proj" in name for name in changed)


def test_an_adapter_that_does_not_name_its_base_is_refused(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match="base_model_name_or_path"):
        load_checkpoint(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    "part", ["tokenizer.json", "model.safetensors", "config.json", "preprocessor_config.json"]
)
def test_a_pointer_of_git_lfs_is_named(copy: Path, part: str):
    (copy / part).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=f"{part}.*git lfs pull"):
        load_checkpoint(str(copy), device="cpu")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("idefics3", "family=generic"),
        ("internvl_chat", "-hf"),
        ("", "model_type"),
        ("gpt9", "family=generic"),
    ],
)
def test_a_type_that_is_not_handled_says_what_is(copy: Path, kind: str, remedy: str):
    settings = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(settings | {"model_type": kind}))
    with pytest.raises(UserError, match=remedy):
        load_checkpoint(str(copy), device="cpu")


def test_a_tokenizer_without_a_vocabulary_is_refused(copy: Path):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(UserError):
        load_checkpoint(str(copy), device="cpu")


@pytest.mark.parametrize("name", ["smolvlm-256m", "granite-docling-258m", "internvl2-8b-remote-code"])
def test_published_checkpoints_that_no_family_handles_say_what_to_do(name: str, shared_data: Path):
    with pytest.raises(UserError, match=r"family=generic|-hf"):
        load_checkpoint(str(shared_data / "checkpoints" / name), device="cpu")
