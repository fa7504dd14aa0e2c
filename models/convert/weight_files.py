"""Weights in files: what a checkpoint's files hold, and a safetensors file written one tensor at a time.

Source files are mapped into memory, not read: opening one of 10 GB takes no memory of its own.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.models.checkpoint.folder import load_error

INDEX = "model.safetensors.index.json"
_INDICES = (INDEX, "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
WRITABLE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_BROKEN = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile)


class Spec(NamedTuple):
    """What one tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        """The dtype as users write it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize

    @property
    def numbers(self) -> int:
        return torch.Size(self.shape).numel()


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a checkpoint, in order: safetensors or .bin, one or as the index lists.

    Empty when the folder has none. UserError when the index names files that are not there.
    """
    for name in _INDICES:
        if (folder / name).is_file():
            return _indexed(folder / name)
    return [folder / name for name in _SINGLE if (folder / name).is_file()][:1]


def _indexed(index: Path) -> list[Path]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"Cannot read {str(index)!r}: {error}. Download the checkpoint again.") from error
    files = [index.parent / name for name in sorted(set(listed))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(
            f"{str(index.parent)!r} lacks {len(absent)} of the {len(files)} files that its index names, the "
            f"first of them {absent[0]!r}: download the checkpoint again."
        )
    return files


def headers(file: Path) -> dict[str, Spec]:
    """Name, shape and dtype of every tensor of a file, in the file's order."""
    source = open_weights(file)
    return {name: source.spec(name) for name in source.names}


def open_weights(file: Path) -> _Safetensors | _Pickled:
    """The tensors of a .safetensors or .bin file, mapped into memory. UserError when it cannot be read."""
    try:
        return _Safetensors(file) if file.suffix == ".safetensors" else _Pickled(file)
    except _BROKEN as error:
        reason = load_error(error).strip().partition("\n")[0]
        raise UserError(
            f"Cannot read the weights in {str(file)!r}: {reason}\n"
            "Is it complete, and not the pointer that git leaves without LFS? Download it again."
        ) from error


class _Safetensors:
    def __init__(self, file: Path) -> None:
        self._file = safe_open(file, framework="pt")
        self.names = list(self._file.keys())

    def spec(self, name: str) -> Spec:
        tensor = self.tensor(name)
        return Spec(tuple(tensor.shape), tensor.dtype)

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class _Pickled:
    """A file of `torch.save`. Nothing in it is executed. Files older than torch 1.6 are read whole."""

    def __init__(self, file: Path) -> None:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        if not isinstance(loaded, dict) or not all(torch.is_tensor(value) for value in loaded.values()):
            raise RuntimeError("it holds something else than weights by name")
        self._tensors: dict[str, torch.Tensor] = loaded
        self.names = list(loaded)

    def spec(self, name: str) -> Spec:
        return Spec(tuple(self._tensors[name].shape), self._tensors[name].dtype)

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def write_safetensors(file: Path, specs: Mapping[str, Spec], read: Callable[[str], torch.Tensor]) -> None:
    """Write a file of tensors, asking `read` for each by its name and releasing it before the next.

    The library's own writer takes all tensors of a file at once. ValueError when a tensor is not its spec.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.bytes
        header[name] = {"dtype": WRITABLE[spec.dtype], "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, spec in specs.items():
            out.write(_raw(name, read(name), spec))


def _raw(name: str, tensor: torch.Tensor, spec: Spec) -> memoryview:
    if Spec(tuple(tensor.shape), tensor.dtype) != spec:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {spec}")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_index(folder: Path, files: Mapping[str, Mapping[str, Spec]]) -> None:
    """The index of a checkpoint whose files hold the tensors named in `files`."""
    size = sum(spec.bytes for specs in files.values() for spec in specs.values())
    numbers = sum(spec.numbers for specs in files.values() for spec in specs.values())
    index = {
        "metadata": {"total_parameters": numbers, "total_size": size},
        "weight_map": dict(sorted((name, file) for file, specs in files.items() for name in specs)),
    }
    atomic_write(folder / INDEX, json.dumps(index, indent=2) + "\n")
