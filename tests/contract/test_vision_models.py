"""Models of transformers that read images: their parts, what their encoders give, where tokens stand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
Same = Callable[[Any, Any, str], None]

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
TILES = [[56, 112], [112, 56], [112, 112]]


def llava_next(foreign: LookUp) -> Any:
    vision = foreign("transformers:CLIPVisionConfig")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56,
        patch_size=14,
    )  # fmt: skip
    return foreign("transformers:LlavaNextConfig")(
        vision_config=vision, text_config=foreign("transformers:LlamaConfig")(**TEXT), image_token_index=60,
        image_grid_pinpoints=TILES, image_seq_length=16,
    )  # fmt: skip


def llava_onevision(foreign: LookUp) -> Any:
    vision = foreign("transformers:SiglipVisionConfig")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    return foreign("transformers:LlavaOnevisionConfig")(
        vision_config=vision, text_config=foreign("transformers:Qwen2Config")(**TEXT), image_token_index=60,
        video_token_index=61, image_grid_pinpoints=TILES,
    )  # fmt: skip


def internvl(foreign: LookUp) -> Any:
    vision = foreign("transformers:InternVLVisionConfig")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56,
        patch_size=14,
    )  # fmt: skip
    return foreign("transformers:InternVLConfig")(
        vision_config=vision, text_config=foreign("transformers:Qwen2Config")(**TEXT), image_token_id=60,
        image_seq_length=4,
    )  # fmt: skip


def qwen(name: str, **vision: Any) -> Callable[[LookUp], Any]:
    def config(foreign: LookUp) -> Any:
        sides = {"depth": 2, "num_heads": 2, "temporal_patch_size": 2, "spatial_merge_size": 2}
        text = {"head_dim": 8} if "3" in name else {}
        return foreign(f"transformers:{name}Config")(
            vision_config={**sides, **vision}, text_config={**TEXT, **text, "rope_parameters": ROPE}, **IDS
        )

    return config


CONFIGS: dict[str, Callable[[LookUp], Any]] = {
    "LlavaNext": llava_next,
    "LlavaOnevision": llava_onevision,
    "InternVL": internvl,
    "Qwen2VL": qwen("Qwen2VL", embed_dim=32, hidden_size=32, mlp_ratio=2, patch_size=14),
    "Qwen2_5_VL": qwen(
        "Qwen2_5_VL", hidden_size=32, intermediate_size=64, out_hidden_size=32, patch_size=14,
        fullatt_block_indexes=[1], window_size=56,
    ),
    "Qwen3VL": qwen(
        "Qwen3VL", hidden_size=32, intermediate_size=64, out_hidden_size=32, patch_size=16,
        num_position_embeddings=16, deepstack_visual_indexes=[0],
    ),
}  # fmt: skip
QWEN = [name for name in CONFIGS if name.startswith("Qwen")]


def made(foreign: LookUp, name: str) -> Any:
    torch.manual_seed(0)
    return foreign(f"transformers:{name}ForConditionalGeneration")(CONFIGS[name](foreign)).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_has_the_parts_that_engines_take(foreign: LookUp, name: str) -> None:
    """The shared engine: without these it refuses the family, and the slow engine is left."""
    with torch.device("meta"):
        model = made(foreign, name)
    assert callable(getattr(model, "get_image_features", None)), f"{name}.get_image_features"
    assert callable(getattr(model.model, "get_image_features", None)), f"{name}.model.get_image_features"
    language_model = getattr(model.model, "language_model", None)
    assert language_model is not None, f"{name}.model.language_model"
    assert {"inputs_embeds", "attention_mask", "position_ids"} <= inspect.signature(
        language_model.forward
    ).parameters.keys(), f"{name}.model.language_model.forward"
    assert model.config.image_token_id == 60, f"{name}: config.image_token_id"
    assert model.config.get_text_config().hidden_size == 32, f"{name}: config.get_text_config"
    assert model.get_output_embeddings().weight.shape == (64, 32), f"{name}.get_output_embeddings"


def test_llava_gives_its_features_without_the_class_token(same: Same, make_llava: Make) -> None:
    """The shared engine puts `pooler_output`, one feature for each patch, into the places of the tokens."""
    model = make_llava()
    pixels = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        seen = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        expected = model.model.multi_modal_projector(seen)
    flat = torch.cat([part.flatten(0, -2) for part in features])
    same(flat, expected.flatten(0, 1), "LlavaModel.get_image_features")


def test_llava_is_its_language_model_on_words_and_features(same: Same, make_llava: Make) -> None:
    """The shared engine joins the parts by itself: what the whole model says must come out the same."""
    model = make_llava()
    assert model.config.image_token_id == 63, "LlavaConfig: image_token_index is no longer image_token_id"
    ids = torch.tensor([[1, *[63] * 16, 5, 6]])
    pixels = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        whole = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
        features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        embeddings = model.get_input_embeddings()(ids)
        embeddings[ids == 63] = torch.cat([part.flatten(0, -2) for part in features])
        hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        parts = model.get_output_embeddings()(hidden)
    same(parts, whole, "get_image_features, language_model, get_output_embeddings")


@pytest.mark.parametrize("name", ["LlavaNext", "LlavaOnevision"])
def test_the_whole_view_comes_before_the_tiles(same: Same, foreign: LookUp, name: str) -> None:
    """A crop as a patch keeps the first tokens of an image alone, and the grounding by attention looks at
    no others: in another order both would show a tile."""
    model = made(foreign, name)
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, 3, 56, 56)  # two images: the whole view, and two tiles of an image 56 x 112
    pixels[1, 0] = pixels[0, 0]
    given = {"pixel_values": pixels, "image_sizes": torch.tensor([[56, 112], [56, 112]])}
    if "batch_num_images" in inspect.signature(model.model.get_image_features).parameters:
        given["batch_num_images"] = torch.tensor([1, 1])
    with torch.inference_mode():
        one, other = model.model.get_image_features(**given, return_dict=True).pooler_output
    same(one[:16], other[:16], f"{name}.get_image_features: the whole view first")
    assert len(one) > 32, f"{name}.get_image_features: one tensor for each image"
    assert (one[16:32] - other[16:32]).abs().max() > 1e-3, f"{name}.get_image_features"


def grid(foreign: LookUp, name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model, and an image of 4 x 8 patches as its encoder gets it: 8 tokens."""
    model = made(foreign, name)
    side = model.config.vision_config.patch_size
    torch.manual_seed(1)
    pixels = torch.randn(32, 3 * 2 * side * side)
    return model, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 8]])}


@pytest.mark.parametrize("name", QWEN)
def test_a_grid_of_patches_is_merged_to_tokens(foreign: LookUp, name: str) -> None:
    """The shared engine and the grounding by attention: two by two patches are a token."""
    model, given = grid(foreign, name)
    with torch.inference_mode():
        features = model.model.get_image_features(**given, return_dict=True).pooler_output
    assert model.config.vision_config.spatial_merge_size == 2, f"{name}: spatial_merge_size"
    assert torch.cat([part.flatten(0, -2) for part in features]).shape == (8, 32), f"{name}: pooler_output"


@pytest.mark.parametrize("name", QWEN)
def test_positions_are_given_in_time_height_and_width(foreign: LookUp, name: str) -> None:
    """The shared engine asks `get_rope_index` for those of the whole prompt, whatever is cached."""
    model, given = grid(foreign, name)
    ids = torch.tensor([[1, *[60] * 8, 2]])
    types = (ids == 60).int()
    positions, _ = model.model.get_rope_index(ids, types, image_grid_thw=given["image_grid_thw"])
    assert positions.shape == (3, 1, 10), f"{name}.model.get_rope_index"
    time, rows, columns = positions[:, 0].tolist()
    assert time[1:9] == [1] * 8, f"{name}.model.get_rope_index"
    assert rows[1:9] == [1] * 4 + [2] * 4, f"{name}.model.get_rope_index"
    assert columns[1:9] == [1, 2, 3, 4] * 2, f"{name}.model.get_rope_index"
    assert time[9] == rows[9] == columns[9] == 5, f"{name}.model.get_rope_index"
    words, _ = model.model.get_rope_index(torch.tensor([[1, 2, 3]]), torch.zeros(1, 3).int())
    assert words[:, 0].tolist() == [[0, 1, 2]] * 3, f"{name}.model.get_rope_index without an image"


@pytest.mark.parametrize("name", QWEN)
def test_a_model_with_positions_reads_which_tokens_are_images(foreign: LookUp, name: str) -> None:
    """Engines and training look for the argument by its name; not given, images would have no place."""
    forward = foreign(f"transformers:{name}ForConditionalGeneration").forward
    assert "mm_token_type_ids" in inspect.signature(forward).parameters, f"{name}.forward: mm_token_type_ids"


def test_qwen3_gives_deep_features_and_its_language_model_takes_them(same: Same, foreign: LookUp) -> None:
    """The shared engine: left out, the first layers would miss what they were trained with, silently."""
    model, given = grid(foreign, "Qwen3VL")
    ids = torch.tensor([[1, *[60] * 8, 2]])
    seen = ids == 60
    positions, _ = model.model.get_rope_index(ids, seen.int(), image_grid_thw=given["image_grid_thw"])
    with torch.inference_mode():
        output = model.model.get_image_features(**given, return_dict=True)
        layers = [
            torch.cat([part.flatten(0, -2) for part in _parts(one)]) for one in output.deepstack_features
        ]
        assert [tuple(layer.shape) for layer in layers] == [(8, 32)], "deepstack_features"
        embeddings = model.get_input_embeddings()(ids)
        embeddings[seen] = torch.cat([part.flatten(0, -2) for part in _parts(output.pooler_output)])
        extra = {"visual_pos_masks": seen, "deepstack_visual_embeds": layers}
        language_model = model.model.language_model
        taken = inspect.signature(language_model.forward).parameters
        assert extra.keys() <= taken.keys(), f"the language model of Qwen3VL no longer takes {sorted(extra)}"
        hidden = language_model(inputs_embeds=embeddings, position_ids=positions, **extra).last_hidden_state
        without = language_model(inputs_embeds=embeddings, position_ids=positions).last_hidden_state
        whole = model.model(input_ids=ids, mm_token_type_ids=seen.int(), **given).last_hidden_state
    same(hidden, whole, "visual_pos_masks, deepstack_visual_embeds")
    assert (without - whole).abs().max() > 1e-4, "visual_pos_masks, deepstack_visual_embeds"


def _parts(features: Any) -> Any:
    return [features] if isinstance(features, torch.Tensor) else features


def test_the_language_model_is_called_by_keywords(make_llava: Make) -> None:
    """The slow engine counts tokens in a hook, from `inputs_embeds` or `input_ids` among the keywords."""
    model, read = make_llava(), []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        read.append(kwargs.get("inputs_embeds", kwargs.get("input_ids")).shape[:2])

    model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert read == [(1, 3)], "the language model is no longer called with inputs_embeds or input_ids"
