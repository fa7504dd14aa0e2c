"""A trained checkpoint reads texts as it did in training: its tokenizer loads again as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaTokenizer

from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.tiny.families import save_tiny_family
from dualfocus_lmms.train.trainer.weights import write_checkpoint

VOCABULARY = ["<unk>", "<s>", "</s>", "▁", "a", "b", "\n"]
TEXTS = ["ab cd", "</s>ab", "</s> ab", "<image>ab</s>cd", "a  b<image>"]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_llama_tokenizer_reads_as_before(
    untrained: Path, tmp_path: Path, family: str, legacy: bool
) -> None:
    """Whether a blank opens what follows a special token, too: "legacy" ones do that."""
    folder = shutil.copytree(untrained, tmp_path / family) if family == "llava" else tmp_path / family
    if family != "llava":
        save_tiny_family(folder, family)
    words = LlamaTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, legacy=legacy)
    words.add_special_tokens({"pad_token": "<pad>"})
    words.add_tokens(["<image>"], special_tokens=True)
    words.save_pretrained(folder)
    expected = words(TEXTS).input_ids
    assert (expected[1] == expected[2]) == legacy
    for name in ("once", "twice"):
        checkpoint = load_checkpoint(str(folder), device="cpu")
        assert checkpoint.tokenizer(TEXTS).input_ids == expected
        folder = tmp_path / name
        write(checkpoint, folder)
    assert load_checkpoint(str(folder), device="cpu").tokenizer(TEXTS).input_ids == expected


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a run does that trained nothing."""
    trainer: Any = SimpleNamespace(
        is_world_process_zero=lambda: True,
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
        save_model=checkpoint.model.save_pretrained,
    )
    recipe: Any = SimpleNamespace(lora=None)
    write_checkpoint(trainer, recipe, checkpoint, folder)
