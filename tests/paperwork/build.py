"""Checkpoints behind real paperwork: published configuration, vocabulary, templates and processor, around
random weights of the same classes with few and narrow layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from dualfocus_lmms import Box, Trace
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.registry import make_engine

Sizes = Mapping[str, Any]

_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
_QWEN_VISION = {"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
_QWEN3: Sizes = {"text_config": _TEXT, "vision_config": _QWEN_VISION | {"deepstack_visual_indexes": [0]}}
_IDEFICS3: Sizes = {"text_config": _TEXT, "vision_config": _VISION}

# What is smaller than in the published config.json; all else is as it is there.
SIZES: dict[str, Sizes] = {
    "llava-1.5-7b-hf": {"text_config": _TEXT, "vision_config": _VISION | {"num_hidden_layers": 3}},
    "qwen2.5-vl-7b-instruct": _TEXT
    | {
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vision_config": _QWEN_VISION | {"fullatt_block_indexes": [1]},
    },
    # Published without a config.json: that of Qwen2.5-VL has the same ids.
    "qwen2-vl-processor-new-format": _TEXT
    | {
        "model_type": "qwen2_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vision_config": {"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen3-vl-4b-instruct": _QWEN3,
    "qwen3-vl-8b-instruct": _QWEN3,
    "qwen3-vl-embedding": _QWEN3,
    "smolvlm-256m": _IDEFICS3,
    "granite-docling-258m": _IDEFICS3,
}
GENERIC = ("granite-docling-258m",)  # read with family=generic
# Whose files, and which of them, a checkpoint has besides its own.
_WORDS = ("vocab.json", "merges.txt")
_REST = {
    "qwen2-vl-processor-new-format": (
        "qwen2.5-vl-7b-instruct",
        (*_WORDS, "tokenizer_config.json", "config.json", "generation_config.json"),
    ),
    "qwen3-vl-8b-instruct": (
        "qwen3-vl-4b-instruct",
        (*_WORDS, "tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    ),
}


def build(published: Path, name: str, folder: Path) -> Path:
    """The folder of a checkpoint called `name` in the folder `published`, with random weights."""
    copy(published / name, folder)
    other, missing = _REST.get(name, ("", ()))
    for file in missing:
        shutil.copyfile(published / other / file, folder / file)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(_smaller(settings, SIZES[name])))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():  # so that one token is clearly the likeliest
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder / "weights")
    (folder / "weights" / "model.safetensors").rename(folder / "model.safetensors")
    shutil.rmtree(folder / "weights")
    return folder


def copy(published: Path, folder: Path) -> Path:
    """A folder's files; not the index of weights that are not there."""
    folder.mkdir(exist_ok=True)
    for file in published.iterdir():
        if file.name != "model.safetensors.index.json":
            shutil.copyfile(file, folder / file.name)
    return folder


def _smaller(settings: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    return {
        **settings,
        **{
            key: _smaller(settings.get(key, {}), value) if key.endswith("_config") else value
            for key, value in sizes.items()
        },
    }


@dataclass(frozen=True)
class Built:
    name: str
    folder: Path
    checkpoint: Checkpoint

    def engine(self, name: str | None = None) -> Any:
        """An engine to whose every reply a box is read, as random weights say none."""
        engine = make_engine(name, self.checkpoint)
        engine.box_format = AlwaysABox(engine.box_format)
        return engine


class AlwaysABox:
    """A family's own format, which reads any reply as one box."""

    def __init__(self, box_format: Any) -> None:
        self._format = box_format
        self.frame = box_format.frame

    def write(self, *given: Any) -> str:
        return self._format.write(*given)

    def write_all(self, *given: Any) -> str:
        return self._format.write_all(*given)

    def read(self, text: str, image_size: Any, input_size: Any = None) -> Box:
        written = self._format.write(Box(0.2, 0.25, 0.75, 0.9), image_size, input_size)
        return self._format.read(written, image_size, input_size)


def assert_same(traces: Sequence[Trace], others: Sequence[Trace]) -> None:
    """Equal tokens, boxes and choices, log-probabilities within 1e-4 nats."""
    for trace, other in zip(traces, others, strict=True):
        for ours, theirs in zip(trace.answers, other.answers, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert (trace.box, trace.crop, trace.fallback) == (other.box, other.crop, other.fallback)
