"""What a checkpoint's folder is, before it is loaded: an adapter, another format, pointers to files; and why
one cannot be loaded. Code of a checkpoint never runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.json_text import load_json

ADAPTER = "adapter_config.json"
# What transformers raises for a checkpoint that cannot be loaded. RuntimeError: weights of another shape than
# config.json says.
LOAD_ERRORS = (OSError, ValueError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
_NO_CODE = (
    "Code of a checkpoint never runs. Give the same model in transformers' own format, whose name often ends "
    "with -hf, as that of OpenGVLab/InternVL3-8B-hf does."
)
ORIGINAL_TYPES = ("llava", "llava_llama", "share4v")  # of checkpoints in LLaVA's original format
_SETTINGS = (
    "adapter_config", "chat_template", "config", "generation_config", "preprocessor_config",
    "processor_config", "tokenizer_config",
)  # fmt: skip
_POINTER = b"version https://git-lfs"


def check_folder(pretrained: str) -> None:
    """UserError for a folder with files that stand for others, as git leaves them without git-lfs, or with
    damaged settings."""
    folder = Path(pretrained)
    if not folder.is_dir():
        return
    pointers = [file.name for file in sorted(folder.iterdir()) if file.is_file() and _is_pointer(file)]
    if pointers:
        raise UserError(
            f"The files {', '.join(pointers)} of {pretrained!r} are pointers of git-lfs, not the files "
            f"themselves: run `git lfs pull` in that folder."
        )
    for name in _SETTINGS:
        file = folder / f"{name}.json"
        settings = _object_in(file) if file.is_file() else {}
        if settings is None:
            raise UserError(
                f"{str(file)!r} holds no JSON object: it is truncated or damaged. Download it again."
            )
        if name == "chat_template" and file.is_file() and name not in settings:
            raise UserError(f"{str(file)!r} holds no chat_template: write the template there, or delete it.")


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def _object_in(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None for anything else."""
    try:
        found = load_json(file.read_text(encoding="utf-8-sig"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def adapter_base(pretrained: str) -> str | None:
    """The checkpoint that an adapter in a folder was trained on. UserError where the adapter does not say it.

    None for a folder with a model of its own, and for a name on the hub.
    """
    file = Path(pretrained) / ADAPTER
    if not file.is_file() or (file.parent / "config.json").is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise UserError(f"Cannot read {str(file)!r}: {error}.") from error
    if not base:
        raise UserError(
            f"{pretrained!r} is a LoRA adapter, and its {ADAPTER} does not say of which checkpoint: "
            "write its folder or hub name to base_model_name_or_path there."
        )
    return str(base)


def is_original(pretrained: str, revision: str | None = None) -> bool:
    """Whether a folder or hub name holds a checkpoint in LLaVA's original format."""
    settings, _ = PreTrainedConfig.get_config_dict(pretrained, revision=revision)
    return _is_original(settings)


def _is_original(settings: Mapping[str, Any]) -> bool:
    return (
        "mm_vision_tower" in settings
        and "text_config" not in settings
        and settings.get("model_type") in ORIGINAL_TYPES
    )


def model_type(pretrained: str, revision: str | None) -> str:
    """The type in config.json. UserError for a checkpoint without one, or of another format."""
    settings, _ = PreTrainedConfig.get_config_dict(pretrained, revision=revision)
    if _is_original(settings):
        raise UserError(
            f"The checkpoint {pretrained!r} is in LLaVA's original format. Convert it first: "
            f"dualfocus convert {pretrained} FOLDER, then give pretrained=FOLDER."
        )
    found: str = settings.get("model_type", "")
    if not found:
        raise UserError(
            f"{pretrained!r} has no config.json with a model_type, so it is no checkpoint of transformers: "
            "give the folder or hub name of one."
        )
    if found not in CONFIG_MAPPING and (settings.get("auto_map") or found == "internvl_chat"):
        raise UserError(
            f"The checkpoint {pretrained!r} needs its own code (model type {found!r}). {_NO_CODE}"
        )
    return found


def check_architecture(type_: str, family: str) -> None:
    """UserError where this release of transformers lacks the architecture of a family's checkpoint."""
    if type_ not in CONFIG_MAPPING:
        raise UserError(
            f"transformers {transformers.__version__} has no model of type {type_!r} (family {family!r}): "
            "install a newer release, one that docs/compatibility.md names."
        )


def load_error(error: Exception) -> str:
    """Why a checkpoint cannot be loaded, without the advice of libraries to run what is in it."""
    text = str(error)
    if "trust_remote_code" in text:
        return f"it needs its own code. {_NO_CODE}"
    if isinstance(error, UnpicklingError) or "weights_only" in text:
        return (
            "a file of pickled weights (.bin, .pt) is damaged, or holds more than tensors, such as code, "
            "which never runs. Give the checkpoint as .safetensors files, as the hub has most of them."
        )
    return text or type(error).__name__


def with_adapter(model: Any, pretrained: str) -> Any:
    """A base model with a folder's adapter merged into its weights. UserError where they do not fit."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, pretrained).merge_and_unload()
    except (*LOAD_ERRORS, KeyError, TypeError) as error:
        raise UserError(f"Cannot load the adapter {pretrained!r} on its base: {load_error(error)}") from error
