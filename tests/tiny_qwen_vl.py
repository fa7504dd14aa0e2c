"""A tiny Qwen-VL with random weights, in files laid out as the published ones."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch

MERGES = [b"th", b"in", b" t", b" a", b"the", b" the", b"an", b"er"]
RANKS = 256 + len(MERGES)
IMAGE_START = RANKS + 3 + 205 + 6

CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "model_type": "qwen",
    "hidden_size": 128,
    "intermediate_size": 128,
    "kv_channels": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "seq_length": 512,
    "vocab_size": 512,
    "torch_dtype": "float32",
    "visual": {
        "heads": 2,
        "image_size": 56,
        "image_start_id": IMAGE_START,
        "layers": 2,
        "mlp_ratio": 2.0,
        "n_queries": 16,
        "output_dim": 128,
        "patch_size": 14,
        "width": 32,
    },
}
TOKENIZER = {
    "model_max_length": 8192,
    "tokenizer_class": "QWenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
}


def save(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """The folder, with config.json, generation_config.json, tokenizer_config.json, qwen.tiktoken, weights.

    changes: values of config.json other than those of CONFIG.
    """
    from dualfocus_lmms.models.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

    torch.manual_seed(seed)
    model = QwenVLForConditionalGeneration(QwenVLConfig(**(CONFIG | changes)))
    for weight in model.parameters():
        if weight.ndim > 1:  # large enough for logits that differ
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    model.save_pretrained(folder)
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    generation = {"chat_format": "chatml", "do_sample": True, "eos_token_id": RANKS, "pad_token_id": RANKS}
    for name, content in (
        ("config", CONFIG | changes),
        ("tokenizer_config", TOKENIZER),
        ("generation_config", generation),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def load(folder: Path, **given: Any) -> Any:
    """A checkpoint in the published layout; its weights must be complete."""
    from transformers import AutoModelForImageTextToText

    from dualfocus_lmms.models.checkpoint.loading import Checkpoint
    from dualfocus_lmms.models.families.qwen_vl import QWEN_VL
    from dualfocus_lmms.models.qwen_vl import load_qwen_image_processor, load_qwen_tokenizer

    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **given)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    source = str(folder)
    return Checkpoint(model.eval(), load_qwen_tokenizer(source), load_qwen_image_processor(source), QWEN_VL)
