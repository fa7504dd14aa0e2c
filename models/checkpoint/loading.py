"""From a checkpoint's name or folder to a model ready to answer, and nowhere else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    ProcessorMixin,
)

from dualfocus_lmms.errors import UserError, choose, did_you_mean
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.checkpoint.chat_template import check_template_name, read_template
from dualfocus_lmms.models.checkpoint.folder import (
    LOAD_ERRORS,
    adapter_base,
    check_architecture,
    check_folder,
    load_error,
    model_type,
    with_adapter,
)
from dualfocus_lmms.models.checkpoint.image_inputs import bound_pixels, complete_processor
from dualfocus_lmms.models.checkpoint.placing import check_placing
from dualfocus_lmms.models.checkpoint.shipped import SHIPPED, resolve_path
from dualfocus_lmms.models.qwen_vl import QwenVLConfig, load_qwen_image_processor
from dualfocus_lmms.plugins import family_for, load_family

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_PIECES, _PIECE_BYTES = 64, 1 << 12  # what is read of a file
_PARTS = (".json", ".jinja", ".model", ".tiktoken", ".safetensors", ".bin")  # settings, tokenizer, weights


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model with what belongs to it. The model is in evaluation mode on its device, which takes its
    inputs; where it is spread over several, it is the first one.

    processor: prepares images of a family "as_is"; None where every image has the same number of tokens.
    template: what `read_template` found. chat_template: whose is to be used, see `choose_template`.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    family: Family
    processor: Any = None
    template: Any = None
    chat_template: str = "auto"

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_checkpoint(
    pretrained: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    family: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    chat_template: str = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Checkpoint:
    """Load a checkpoint folder or hub name in the Hugging Face format, or one that is shipped.

    Of the folder of a LoRA adapter: its base, with the adapter merged into it.

    family: a family's name; None takes the one that handles the checkpoint's type. dtype "auto" is the
    checkpoint's own on a GPU and float32 on a CPU. device None is the first GPU if there is one.
    device_map: which parts go where, instead of a device; "auto" fills all GPUs, then the main memory.
    chat_template: "auto", "family" or "checkpoint", see `choose_template`.
    min_pixels, max_pixels: bounds of every image, instead of those of the checkpoint's processor.
    UserError when the checkpoint is missing, of a type that no family handles, or cannot be placed.
    """
    check_placing(device, device_map)
    check_template_name(chat_template)
    pretrained = resolve_path(pretrained)
    if revision is not None and Path(pretrained).is_dir():
        raise UserError(
            f"revision={revision!r} is a version on the hub, and {pretrained!r} is a folder: leave it out."
        )
    check_folder(pretrained)
    if (base := adapter_base(pretrained)) is not None:
        whole = load_checkpoint(
            base, None, dtype, device, attn_implementation, family, device_map, chat_template,
            min_pixels, max_pixels,
        )  # fmt: skip
        template = read_template(pretrained) or whole.template  # that of its training, if it has one
        return replace(whole, model=with_adapter(whole.model, pretrained).eval(), template=template)
    target = torch_device(device)
    model_dtype = torch_dtype(dtype, target)
    try:
        type_ = model_type(pretrained, revision)
        kind = load_family(family) if family else family_for(type_)
        check_architecture(type_, kind.name)
        both: Any = AutoModelForImageTextToText.from_pretrained(
            pretrained,
            revision=revision,
            dtype=model_dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            output_loading_info=True,
            trust_remote_code=False,
        )
        model, loaded = both
        processor = _processor(pretrained, revision) if kind.image == "as_is" else None
        if processor is None:
            tokenizer = AutoTokenizer.from_pretrained(pretrained, revision=revision, trust_remote_code=False)
            image_processor = _image_processor(pretrained, revision, type_)
        else:
            complete_processor(processor, model.config)
            tokenizer, image_processor = processor.tokenizer, processor.image_processor
        template = read_template(pretrained, revision)
    except LOAD_ERRORS as error:
        raise _unloadable(pretrained, error) from error
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers fills them with random numbers and only warns
        raise UserError(
            f"The checkpoint {pretrained!r} lacks {len(missing)} of its weights, the first of them "
            f"{missing[0]!r}: give a complete one in the Hugging Face format."
        )
    _check_vocabulary(pretrained, tokenizer)
    _check_keeps_whole_images(pretrained, image_processor, kind)
    bound_pixels(kind, image_processor, min_pixels, max_pixels)
    if device_map is None:
        model = model.to(target)
    elif model.device.type == "meta":  # its weights are on the disk
        raise UserError(
            f"The first layers of {pretrained!r} fit nowhere with device_map={device_map!r}: "
            "give dtype=bfloat16, or more memory."
        )
    return Checkpoint(model.eval(), tokenizer, image_processor, kind, processor, template, chat_template)


def family_of(pretrained: str, revision: str | None = None, family: str | None = None) -> Family:
    """The family that `load_checkpoint` takes for the same arguments, from config.json alone."""
    if family:
        return load_family(family)
    pretrained = resolve_path(pretrained)
    check_folder(pretrained)
    if (base := adapter_base(pretrained)) is not None:
        return family_of(base)
    try:
        return family_for(model_type(pretrained, revision))
    except LOAD_ERRORS as error:
        raise _unloadable(pretrained, error) from error


def _unloadable(pretrained: str, error: Exception) -> UserError:
    looked = ""
    if not Path(pretrained).exists():
        near = did_you_mean(pretrained, [*SHIPPED, *_folders_beside(Path(pretrained))])
        looked = f"There is no such folder, so the hub was asked.{near} "
    return UserError(
        f"Cannot load the checkpoint {pretrained!r}: {load_error(error)}\n{looked}"
        "Give a folder or hub name with config.json, weights, tokenizer and preprocessor_config.json."
    )


def _folders_beside(path: Path) -> list[str]:
    """The folders beside a path, as the path is written."""
    try:
        return sorted(str(folder) for folder in path.parent.iterdir() if folder.is_dir())
    except OSError:  # no folder, or one that may not be read: nothing to propose
        return []


def _check_vocabulary(pretrained: str, tokenizer: Any) -> None:
    """UserError for a tokenizer of special tokens alone: transformers makes one where files are missing."""
    if len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) < 2:
        raise UserError(
            f"The tokenizer of {pretrained!r} has no vocabulary: tokenizer.json, or vocab.json and "
            "merges.txt, or tokenizer.model is missing."
        )


def _image_processor(pretrained: str, revision: str | None, model_type: str) -> Any:
    if model_type == QwenVLConfig.model_type:  # published without a preprocessor_config.json
        return load_qwen_image_processor(pretrained, revision)
    return AutoImageProcessor.from_pretrained(
        pretrained, revision=revision, backend="pil", trust_remote_code=False
    )


def _processor(pretrained: str, revision: str | None) -> Any | None:
    """The checkpoint's own processor, None where it has only a tokenizer and an image processor."""
    processor = AutoProcessor.from_pretrained(pretrained, revision=revision, trust_remote_code=False)
    return processor if isinstance(processor, ProcessorMixin) else None


def _check_keeps_whole_images(pretrained: str, image_processor: Any, family: Family) -> None:
    """UserError when the image processor would cut away what a box may point at."""
    if not getattr(image_processor, "do_center_crop", False) or family.local_patches:
        return  # tiles are squares of the crop's size already
    cut = min(dict(image_processor.crop_size or {}).values(), default=0)
    kept = min(dict(image_processor.size or {}).values(), default=0)
    if family.image == "as_is" or cut < kept:
        raise UserError(
            f"The image processor of {pretrained!r} crops the middle out of every image, which loses its "
            "sides and moves every box. Set do_center_crop to false in its preprocessor_config.json, or use "
            'a family that pads images to a square (image="square").'
        )


def fingerprint(pretrained: str) -> str | None:
    """What distinguishes a local checkpoint from another at the same path; None for a hub name.

    Read from pieces of every file a model is loaded from, the first and the last bytes among them, so that
    it takes no time: one piece does not do, as checkpoints often share some of their tensors.
    """
    folder = Path(resolve_path(pretrained))
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.suffix in _PARTS and path.is_file():
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{path.name} {size}".encode())
                last = max(size - _PIECE_BYTES, 0)
                for start in sorted({last * piece // (_PIECES - 1) for piece in range(_PIECES)}):
                    file.seek(start)
                    digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def torch_device(device: str | None) -> torch.device:
    """The device called `device`; None is the first GPU if there is one, else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Device {device!r} is not usable here ({reason}). Give cpu, cuda or cuda:<number>."
        ) from error
    return found


def torch_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The dtype called `dtype`; "auto" is float32 on a CPU and the checkpoint's own elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise choose("dtype", dtype, ["auto", *DTYPES])
    return DTYPES[dtype]
