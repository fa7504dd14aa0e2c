"""Runs with LoRA on a tiny model: merged, continued, in bfloat16."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from training_runs import assert_same_run, losses, weights
from transformers import LlavaForConditionalGeneration

from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.train.trainer.recipe import load_recipe, training_arguments
from dualfocus_lmms.train.trainer.trainer import build, train

pytestmark = pytest.mark.seconds(7)


@pytest.fixture(scope="module")
def lora(common) -> list[str]:
    return [*common, "train=[projector]", "lora={r: 4, lora_alpha: 8}", "training.learning_rate=1e-2"]


def test_lora_is_merged_into_the_checkpoint_and_can_be_continued(lora, tiny_checkpoint, tmp_path):
    output, other = tmp_path / "run", tmp_path / "other"
    train("tiny_cpu", [*lora, f"output={output}"])
    before, after = weights(tiny_checkpoint), weights(output / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = [name for name in before if "language_model.layers" in name and "proj" in name]
    projector = [name for name in before if "multi_modal_projector" in name]
    assert changed == {*layers, *projector}
    assert losses(output)[-1] < losses(output)[0]

    from peft import PeftModel

    base = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint)
    adapted = PeftModel.from_pretrained(base, output / "checkpoint-8").eval()
    merged = LlavaForConditionalGeneration.from_pretrained(output / "model").eval()
    inputs = {
        "input_ids": torch.tensor([[1, 9, 30, 31]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    with torch.no_grad():
        assert torch.allclose(adapted(**inputs).logits, merged(**inputs).logits, atol=1e-4)

    shutil.copytree(output, other)
    for name in ("model", "checkpoint-8"):
        shutil.rmtree(other / name)
    train("tiny_cpu", [*lora, f"output={output}"])  # finished: left alone
    note = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps({**note, "output": str(other)}))
    train("tiny_cpu", [*lora, f"output={other}"])
    assert_same_run(other, output)


def test_bfloat16_weights_with_lora_train_in_float32_where_it_matters(lora, tmp_path):
    overrides = [*lora, f"output={tmp_path / 'run'}", "dtype=bfloat16", "training.bf16=true", "steps=2"]
    recipe = load_recipe("tiny_cpu", overrides)
    model = build(recipe, training_arguments(recipe, 1)).trainer.model
    types = {(parameter.requires_grad, parameter.dtype) for parameter in model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    folder = train("tiny_cpu", overrides)
    assert {value.dtype for value in load_checkpoint(str(folder), dtype="bfloat16").model.parameters()} == {
        torch.bfloat16
    }
