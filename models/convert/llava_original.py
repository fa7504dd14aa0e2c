"""LLaVA's original checkpoint format: its settings, its names for weights, its tokenizer and vision tower.

Everything that differs from the Hugging Face format is known here; `convert` carries it out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from sentencepiece import SentencePieceProcessor
from tokenizers.models import BPE
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import generate_merges

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.checkpoint.folder import ORIGINAL_TYPES
from dualfocus_lmms.models.families.llava import VICUNA_V1

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
ROWS = 64  # the embedding's rows are a multiple of it

# What the Hugging Face model of LLaVA-1.5 cannot be told: the values it takes for granted.
_FIXED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "image_aspect_ratio": ("pad",),
    "mm_vision_select_feature": (None, "cls_patch", "patch"),
    "mm_patch_merge_type": (None, "flat"),
    "mm_use_im_start_end": (None, False),
    "mm_use_im_patch_token": (None, False),
    "s2": (None, False),
}
_LLAMA_SETTINGS = (
    "attention_bias",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
)
# OpenAI's encoder for 336 pixels and those that ShareGPT4V trained from it: CLIP ViT-L/14-336.
_LARGE_336 = re.compile(r"clip-vit-large-patch14-336|vit-large336")
_TOWER = r"(?:vision_model\.)?((?:embeddings|pre_\w+norm|encoder|post_layernorm)\..+)"
_NAMES = (
    (re.compile(r"model\.((?:embed_tokens|layers|norm)\..+)"), r"language_model.model.\1"),
    (re.compile(r"(lm_head\..+)"), r"language_model.\1"),
    (re.compile(r"model\.mm_projector\.0\.(.+)"), r"multi_modal_projector.linear_1.\1"),
    (re.compile(r"model\.mm_projector\.2\.(.+)"), r"multi_modal_projector.linear_2.\1"),
    (re.compile(r"model\.vision_tower\.(?:vision_tower\.)?" + _TOWER), r"vision_tower.\1"),
)
_TOWER_NAMES = ((re.compile(_TOWER), r"vision_tower.\1"),)
_COMPUTED = (re.compile(r".*\.(rotary_emb\.inv_freq|position_ids)"), "computed from config.json")
_TEXT_HALF = (
    re.compile(r"(text_model|text_projection|visual_projection|logit_scale)\b.*"),
    "not the encoder",
)


def renamed(name: str, tower: bool = False) -> str | None:
    """The Hugging Face name of a weight on disk, None for one that is not known.

    tower: `name` stands in a file of the vision tower alone.

        renamed("model.mm_projector.0.bias")  # "multi_modal_projector.linear_1.bias"
    """
    for pattern, replacement in _TOWER_NAMES if tower else _NAMES:
        if found := pattern.fullmatch(name):
            return found.expand(replacement)
    return None


def dropped(name: str, tower: bool = False) -> str | None:
    """Why a weight has no place in the converted checkpoint, None for one that has or is not known."""
    for pattern, reason in (_COMPUTED, _TEXT_HALF) if tower else (_COMPUTED,):
        if pattern.fullmatch(name):
            return reason
    return None


def fetched(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: `name` itself, or what the hub has under it, downloaded."""
    if Path(name).is_dir():
        return Path(name)
    try:
        wanted = ["*.json", "*.model", "*.bin", "*.safetensors"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is no folder, and the hub cannot give it: {error}\n"
            "Give a folder, or a name that the hub knows (a vision tower: --vision-tower FOLDER)."
        ) from error


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint in the original format. UserError for every other one."""
    if any((folder / name).is_file() for name in ("adapter_config.json", "non_lora_trainables.bin")):
        raise UserError(
            f"{str(folder)!r} is a LoRA adapter, not a whole checkpoint: merge it into its base with LLaVA's "
            "own scripts/merge_lora_weights.py first, and convert the result."
        )
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read config.json of {str(folder)!r}: {error}. Give the folder of a LLaVA checkpoint."
        ) from error
    if "text_config" in settings:
        raise UserError(f"{str(folder)!r} has the Hugging Face format already: use it directly.")
    kind = settings.get("model_type")
    if kind not in ORIGINAL_TYPES or "mm_vision_tower" not in settings:
        raise UserError(
            f"{str(folder)!r} is no checkpoint in LLaVA's original format: its config.json needs "
            f"mm_vision_tower and a model_type of {', '.join(ORIGINAL_TYPES)}, and has {kind!r}."
        )
    other = [
        f"{name} is {settings.get(name)!r} instead of {allowed[-1]!r}"
        for name, allowed in _FIXED.items()
        if settings.get(name) not in allowed
    ]
    if other:
        raise UserError(
            f"{str(folder)!r} cannot be converted: {'; '.join(other)}. Only models built like LLaVA-1.5 can."
        )
    return settings


def vision_config(name: str, folder: Path | None) -> Any:
    """The vision tower's configuration: from its folder, None for one known by its name."""
    if folder is None:
        return LlavaConfig().vision_config
    try:
        return CLIPVisionConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read the configuration of the vision tower {name!r}: {error}") from error


def known_tower(name: str) -> bool:
    """Whether `name` describes a vision tower completely, except for its weights."""
    return _LARGE_336.search(name) is not None


def model_config(
    settings: dict[str, Any], vision: Any, tokenizer: Any, vocabulary: int, dtype: str
) -> LlavaConfig:
    """The Hugging Face configuration. tokenizer: that of `read_tokenizer`. vocabulary: rows there are."""
    largest = max(len(tokenizer), vocabulary)
    text = LlamaConfig(
        **{name: settings[name] for name in _LLAMA_SETTINGS if settings.get(name) is not None},
        vocab_size=-(-largest // ROWS) * ROWS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    whole = settings.get("mm_vision_select_feature") == "cls_patch"
    patches = (vision.image_size // vision.patch_size) ** 2
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=patches + whole,
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if whole else "default",
        tie_word_embeddings=False,
        dtype=dtype,
    )


def read_tokenizer(folder: Path, vocabulary: int) -> Any:
    """The tokenizer with tokens for images and padding, which come after the `vocabulary` rows there are.

    The original tokenises the text before and after an image on its own, so that a blank opens each. A
    "legacy" tokenizer puts it there by itself, as after the end of a turn; for one that is not, the chat
    template writes it.
    """
    try:
        file = folder / "tokenizer_config.json"
        options = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        legacy = options.get("legacy") is not False
        llama = LlamaTokenizer.from_pretrained(folder, legacy=legacy, add_bos_token=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load the tokenizer of {str(folder)!r}: {error}\nIts tokenizer.model is needed."
        ) from error
    if (folder / "tokenizer.model").is_file():
        llama.backend_tokenizer.model = _merges_by_score(folder / "tokenizer.model")
    # LlamaTokenizer forgets when it is saved whether it was legacy; the backend alone keeps it.
    words: Any = PreTrainedTokenizerFast(
        tokenizer_object=llama.backend_tokenizer,
        unk_token=llama.unk_token,
        bos_token=llama.bos_token,
        eos_token=llama.eos_token,
    )
    words.add_tokens([IMAGE_TOKEN], special_tokens=True)
    words.add_special_tokens({"pad_token": PAD_TOKEN})
    words.chat_template = VICUNA_V1 if legacy else _with_blanks(VICUNA_V1)
    if words.convert_tokens_to_ids(IMAGE_TOKEN) < vocabulary:
        raise UserError(
            f"The tokenizer of {str(folder)!r} has {len(llama)} tokens for {vocabulary} embeddings: "
            "complete its files (tokenizer.model, added_tokens.json)."
        )
    return words


def _merges_by_score(file: Path) -> BPE:
    """The pieces of a tokenizer.model, merged in the order of their scores as SentencePiece does.

    transformers 5 merges them in the order of their ids, which differs for several blanks in a row.
    """
    pieces = SentencePieceProcessor(model_file=str(file))
    names = [pieces.id_to_piece(number) for number in range(pieces.get_piece_size())]
    vocabulary = {name: number for number, name in enumerate(names)}
    scores = {name: pieces.get_score(number) for name, number in vocabulary.items()}
    merges = generate_merges(vocabulary, scores)
    return BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True)


def _with_blanks(template: str) -> str:
    return template.replace("{{ bos_token }}", "{{ bos_token }} ").replace("<image>\n", "<image> \n")


def image_processor(tower: Path | None, config: Any) -> Any:
    """What resizes and normalises images: the vision tower's own, else CLIP's at the tower's size."""
    if tower is not None and (tower / "preprocessor_config.json").is_file():
        return AutoImageProcessor.from_pretrained(tower, backend="pil", trust_remote_code=False)
    side = config.vision_config.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def processor(tokenizer: Any, images: Any, config: Any) -> LlavaProcessor:
    """The processor with which plain transformers reads the converted checkpoint."""
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )
