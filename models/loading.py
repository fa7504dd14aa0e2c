"""From a checkpoint's name or folder to a model ready to answer, and nowhere else."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.shipped import located
from dualfocus_lmms.plugins import family_for

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_TAIL_BYTES = 1 << 16
_PARTS = (".json", ".jinja", ".model", ".safetensors", ".bin")  # settings, tokenizer, weights


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model with what belongs to it. The model is in evaluation mode on its device."""

    model: Any
    tokenizer: Any
    image_processor: Any
    family: Family

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_checkpoint(
    pretrained: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
) -> Checkpoint:
    """Load a checkpoint folder or hub name in the Hugging Face format, or one that is shipped.

    dtype "auto" is the checkpoint's own on a GPU and float32 on a CPU. device None is the first GPU if there
    is one. UserError when the checkpoint is missing, of a type that no family handles, or cannot be placed.
    """
    pretrained = located(pretrained)
    place = torch_device(device)
    model_dtype = torch_dtype(dtype, place)
    try:
        config = AutoConfig.from_pretrained(pretrained, revision=revision)
        family = family_for(config.model_type)
        both: Any = AutoModelForImageTextToText.from_pretrained(
            pretrained,
            revision=revision,
            dtype=model_dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
        )
        model, loaded = both
        tokenizer = AutoTokenizer.from_pretrained(pretrained, revision=revision)
        image_processor = AutoImageProcessor.from_pretrained(pretrained, revision=revision, backend="pil")
    # RuntimeError: weights of another shape than config.json says.
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"Cannot load the checkpoint {pretrained!r}: {error}\n"
            "Give a folder or hub name with config.json, weights, tokenizer and preprocessor_config.json."
        ) from error
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers fills them with random numbers and only warns
        raise UserError(
            f"The checkpoint {pretrained!r} lacks {len(missing)} of its weights, the first of them "
            f"{missing[0]!r}: give a complete one in the Hugging Face format."
        )
    return Checkpoint(model.to(place).eval(), tokenizer, image_processor, family)


def fingerprint(pretrained: str) -> str | None:
    """What tells one local checkpoint from another at the same place, None for a hub name.

    Read from the last bytes of every file a model is loaded from, so that it takes no time.
    """
    folder = Path(located(pretrained))
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.suffix in _PARTS and path.is_file():
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(-min(size, _TAIL_BYTES), os.SEEK_END)
                digest.update(f"{path.name} {size}".encode() + file.read())
    return digest.hexdigest()


def torch_device(device: str | None) -> torch.device:
    """The device called `device`; None is the first GPU if there is one, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Device {device!r} is not usable here ({reason}). Give cpu, cuda or cuda:<number>."
        ) from error
    return place


def torch_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The dtype called `dtype`; "auto" is float32 on a CPU and the checkpoint's own elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise choose("dtype", dtype, ["auto", *DTYPES])
    return DTYPES[dtype]
