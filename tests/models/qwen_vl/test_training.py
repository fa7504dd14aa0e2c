"""Two steps of the recipe's kind: LoRA on the language model, the resampler whole, all else frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from dualfocus_lmms.train.trainer.recipe import RECIPES, Recipe
from dualfocus_lmms.train.trainer.weights import trainable

LORA = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2")


def test_the_recipe_trains_lora_and_the_resampler(load_folder: Any, published: Path, tmp_path: Path):
    checkpoint = load_folder(published)
    given = yaml.safe_load((RECIPES / "qwen_vl.yaml").read_text())
    recipe = Recipe(str(published), "run", (), train=tuple(given["train"]), lora=given["lora"])
    before = {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}
    model = trainable(recipe, checkpoint).train()
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.1)
    token = checkpoint.model.config.image_token_id
    ids = torch.tensor([[5, token - 2, *[token] * 16, token - 1, 7, 8, 9]])
    labels = torch.where(torch.arange(ids.shape[1]) > 19, ids, -100)
    losses = []
    for _ in range(2):
        loss = model(input_ids=ids, pixel_values=torch.ones(1, 3, 56, 56), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]

    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    adapted = {f"transformer.h.{layer}.{name}.weight" for layer in range(2) for name in LORA}
    resampler = {name for name in before if ".visual.attn_pool." in name and not name.endswith("pos_embed")}
    assert changed == adapted | resampler


def test_the_loss_is_divided_by_the_given_number(load_folder: Any, published: Path):
    """Of learned tokens of a whole step: micro batches add up to it."""
    model = load_folder(published).model
    token = model.config.image_token_id
    ids = torch.tensor([[5, token - 2, *[token] * 16, token - 1, 7, 8, 9]])
    labels = torch.where(torch.arange(ids.shape[1]) > 19, ids, -100)
    given = {"input_ids": ids, "pixel_values": torch.ones(1, 3, 56, 56), "labels": labels}
    with torch.no_grad():
        mean, part = model(**given).loss, model(**given, num_items_in_batch=10).loss
    assert torch.isclose(part, mean * (labels != -100).sum() / 10)
