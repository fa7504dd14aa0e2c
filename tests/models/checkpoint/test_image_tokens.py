"""How many tokens an image has: as many as the model's vision tower gives features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from dualfocus_lmms import DualFocusModel, UserError
from dualfocus_lmms.models.checkpoint.image_inputs import image_tokens
from dualfocus_lmms.models.tiny.families import save_tiny_family
from dualfocus_lmms.models.tiny.llava import character_tokenizer, llava_config

TOWERS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
STRATEGIES = ("default", "full")


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_fixed_size_image_has_a_token_for_each_feature(tower: str, strategy: str):
    config: Any = llava_config("tiny", character_tokenizer())
    config.vision_config = TOWERS[tower](
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    config.vision_feature_select_strategy = strategy
    model = LlavaForConditionalGeneration(config).eval()
    with torch.inference_mode():
        output = model.get_image_features(pixel_values=torch.zeros(1, 3, 56, 56), return_dict=True)
    assert image_tokens(config) == output.pooler_output[0].shape[0]


@pytest.mark.parametrize("left_out", [["patch_size"], ["patch_size", "num_additional_image_tokens"]])
def test_tiles_have_a_token_for_each_feature_whatever_the_processor_leaves_out(
    left_out: list[str], tmp_path: Path
):
    folder = Path(save_tiny_family(tmp_path, "llava_next"))
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({name: settings[name] for name in settings if name not in left_out}), "utf-8")
    for engine in ("naive", "tree"):
        model = DualFocusModel(folder, device="cpu", engine=engine)
        trace = model.ask(Image.new("RGB", (90, 60), "red"), "What is it?", max_new_tokens=2)
        assert trace.macro.tokens


def test_a_class_token_among_tiles_is_refused(tmp_path: Path):
    folder = Path(save_tiny_family(tmp_path, "llava_next"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["vision_feature_select_strategy"] = "full"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match="vision_feature_select_strategy"):
        DualFocusModel(folder, device="cpu")
