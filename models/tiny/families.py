"""Random checkpoints of every family's true classes: model and processor, at the smallest useful size.

    dualfocus tiny OUT --family qwen2_5_vl

Their answers mean nothing. Their code paths, shapes and file formats are those of real checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4Processor,
    Gemma4TextConfig,
    Gemma4VideoProcessor,
    Gemma4VisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.idefics3.image_processing_idefics3 import Idefics3ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from dualfocus_lmms.errors import choose
from dualfocus_lmms.files import new_folder
from dualfocus_lmms.models.tiny.llava import character_tokenizer
from dualfocus_lmms.plugins import family_for

_WIDTH = 64
_SIDE, _PATCH = 56, 14
_TILES = [[56, 112], [112, 56], [112, 112]]
_CHATML = ["<|im_start|>", "<|im_end|>"]
_QWEN = [
    *_CHATML,
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
]  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DEEPSTACK = {
    "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": _WIDTH,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip


def save_tiny_family(folder: str | Path, family: str, seed: int = 0) -> Path:
    """Write a checkpoint of `family` with random weights and return its folder. UserError lists the known."""
    if family not in MAKERS:
        raise choose("family", family, ["llava", *MAKERS])
    torch.manual_seed(seed)
    model, processor = MAKERS[family]()
    processor.chat_template = family_for(model.config.model_type).chat_template
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with new_folder(folder) as partial:
        for part in (model, processor):
            part.save_pretrained(partial)
    return Path(folder)


def _id(tokenizer: Any, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token)


def _text(tokenizer: Any, **overrides: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **overrides,
    }


def _siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=_SIDE, patch_size=_PATCH, vision_use_head=False,
    )  # fmt: skip


def _llava_next() -> tuple[Any, Any]:
    tokenizer = character_tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            image_size=_SIDE, patch_size=_PATCH,
        ),
        text_config=LlamaConfig(**_text(tokenizer, bos_token_id=tokenizer.bos_token_id)),
        image_token_index=_id(tokenizer, "<image>"),
        image_grid_pinpoints=_TILES,
        image_seq_length=(_SIDE // _PATCH) ** 2,
    )  # fmt: skip
    square = {"height": _SIDE, "width": _SIDE}
    images = LlavaNextImageProcessor(
        size={"shortest_edge": _SIDE}, crop_size=square, image_grid_pinpoints=_TILES
    )
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=_PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    tokenizer = character_tokenizer(specials=[*_CHATML, "<video>"], eos_token="<|im_end|>")
    config = LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=_TILES,
    )
    size = {"height": _SIDE, "width": _SIDE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_TILES),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(_SIDE // _PATCH) ** 2,
        vision_feature_select_strategy="full",
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    specials = [*_CHATML, *named.values(), "<box>", "</box>", "<ref>", "</ref>"]
    tokenizer = character_tokenizer(specials=specials, eos_token="<|im_end|>", extra_special_tokens=named)
    tokens = (_SIDE // _PATCH) ** 2 // 4
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=_SIDE, patch_size=_PATCH,
        ),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=tokens,
        tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": _SIDE, "width": _SIDE}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size=size), image_seq_length=tokens
    )
    return InternVLForConditionalGeneration(config), processor


def _idefics3() -> tuple[Any, Any]:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    named = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer = character_tokenizer(specials=[*named, *places], eos_token="<end_of_utterance>")
    config = Idefics3Config(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": _SIDE, "patch_size": _PATCH,
        },
        text_config=LlamaConfig(**_text(tokenizer, bos_token_id=tokenizer.bos_token_id)),
        image_token_id=_id(tokenizer, "<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    images = Idefics3ImageProcessor(
        size={"longest_edge": 2 * _SIDE}, max_image_size={"longest_edge": _SIDE}, do_image_splitting=True
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=(_SIDE // _PATCH) ** 2 // 4)
    return Idefics3ForConditionalGeneration(config), processor


def _gemma4() -> tuple[Any, Any]:
    """With a window that a prompt outgrows, image tokens that attend to later ones, embeddings for each layer
    and layers that share their keys and values: what the published sizes have between them."""
    named = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    specials = ["<|turn>", "<turn|>", *named.values(), "<|video|>"]
    tokenizer = character_tokenizer(specials=specials, eos_token="<turn|>", extra_special_tokens=named)
    vocabulary = len(tokenizer)
    text = Gemma4TextConfig(
        **_text(tokenizer, bos_token_id=tokenizer.bos_token_id, num_hidden_layers=4, global_head_dim=32),
        head_dim=16, sliding_window=24, num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2, use_bidirectional_attention="vision",
        vocab_size_per_layer_input=vocabulary, hidden_size_per_layer_input=8, final_logit_softcapping=30.0,
    )  # fmt: skip
    vision = Gemma4VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, patch_size=4, position_embedding_size=256,
    )  # fmt: skip
    ids: dict[str, Any] = {
        f"{name}_id": _id(tokenizer, token) for name, token in named.items() if name != "eoa_token"
    }
    config = Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, video_token_id=_id(tokenizer, "<|video|>"),
        eoa_token_index=_id(tokenizer, "<audio|>"), **ids,
    )  # fmt: skip
    images = Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70)
    processor = Gemma4Processor(Gemma4AudioFeatureExtractor(), images, tokenizer, Gemma4VideoProcessor())
    return Gemma4ForConditionalGeneration(config), processor


def _qwen(config: Any, model: Any, processor: Any, videos: Any, patch: int, vision: dict, text: dict) -> Any:
    byte_level = config in (Qwen3_5Config, Qwen3_5MoeConfig)  # its tokenizer's class is fixed
    tokenizer = character_tokenizer(specials=_QWEN, byte_level=byte_level, eos_token="<|im_end|>")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in [
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        ]
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    rope |= text.pop("rope", {})
    sides = {"patch_size": patch, "temporal_patch_size": 2, "spatial_merge_size": 2}
    model_config = config(
        vision_config={"depth": 2, "num_heads": 2, **sides, **vision},
        text_config=_text(tokenizer, rope_parameters=rope, **text),
        tie_word_embeddings=False,
        **ids,
    )
    images = Qwen2VLImageProcessor(
        patch_size=patch, merge_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    )
    return model(model_config), processor(images, tokenizer, videos())


def _qwen2_vl() -> tuple[Any, Any]:
    vision = {"embed_dim": 32, "hidden_size": _WIDTH, "mlp_ratio": 2}
    return _qwen(
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
        14,
        vision,
        {},
    )


def _qwen2_5_vl() -> tuple[Any, Any]:
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": _WIDTH,
        "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    return _qwen(
        Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor,
        14, vision, {},
    )  # fmt: skip


def _qwen3_vl() -> tuple[Any, Any]:
    return _qwen(
        Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor,
        16, _DEEPSTACK, {"head_dim": 16},
    )  # fmt: skip


def _qwen3_vl_moe() -> tuple[Any, Any]:
    return _qwen(
        Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor,
        16, _DEEPSTACK, {"head_dim": 16, **_EXPERTS},
    )  # fmt: skip


def _qwen3_5(config: Any = Qwen3_5Config, model: Any = Qwen3_5ForConditionalGeneration, **more: Any) -> Any:
    """With both kinds of layers; the first one's state is of all earlier tokens."""
    vision = {name: _DEEPSTACK[name] for name in _DEEPSTACK if name != "deepstack_visual_indexes"}
    text = {
        "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "rope": {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        **more,
    }  # fmt: skip
    return _qwen(config, model, Qwen3VLProcessor, Qwen3VLVideoProcessor, 16, vision, text)


def _qwen3_5_moe() -> tuple[Any, Any]:
    experts = {**_EXPERTS, "shared_expert_intermediate_size": 32}
    return _qwen3_5(Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, **experts)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gemma4": _gemma4,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
}
