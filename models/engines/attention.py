"""Attention: on a GPU no kernels that every new shape has to wait for, on a CPU long queries in pieces.

A piece gets only the keys that are visible to one of its tokens. torch's kernel for CPUs skips the other keys
itself where the attention is causal, but not where it gets a mask: then it computes what the mask hides. Any
model of transformers that supports "sdpa" supports this one by its name.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_PIECES = "sdpa_in_pieces"
# Not cuDNN's kernels, torch's first choice on Hopper: they run faster, but prepare each new shape for about a
# tenth of a second, and the lengths of prompts and replies give nearly every forward one (docs/speed.md).
_STEADY = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_PIECE = 192  # tokens: torch divides fewer into smaller blocks, which takes a fifth longer


def steady_attention(device: torch.device) -> AbstractContextManager[None]:
    """Let torch's attention in it use only kernels that take any shape at once. Changes nothing on a CPU."""
    return sdpa_kernel(_STEADY) if device.type == "cuda" else nullcontext()


def divide_long_queries(language_model: PreTrainedModel) -> None:
    """Make a causal language model on a CPU with torch's attention divide long queries; change no other."""
    if language_model.device.type == "cpu" and language_model.config._attn_implementation == "sdpa":
        language_model.set_attn_implementation(IN_PIECES)


def attention_in_pieces(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What `sdpa_attention_forward` returns, (B, S, heads, D), for attention to earlier tokens only.

    query (B, heads, S, D) of the last S of L tokens; key and value (B, heads, L, D); attention_mask
    (B, 1, S, L) or None.
    """
    tokens, cached = query.shape[2], key.shape[2] - query.shape[2]
    if attention_mask is None or tokens <= _PIECE:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    parts = []
    for start in range(0, tokens, _PIECE):
        end = min(start + _PIECE, tokens)
        visible = slice(cached + end)
        piece = query[:, :, start:end], key[:, :, visible], value[:, :, visible]
        mask = attention_mask[:, :, start:end, visible]
        parts.append(sdpa_attention_forward(module, *piece, mask, **options)[0])
    return torch.cat(parts, dim=1), None


def _added_mask(*sizes: Any, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor | None:
    """The mask as numbers that are added to the scores: converted once, and not by every layer."""
    visible = sdpa_mask(*sizes, dtype=dtype, **options)
    if visible is None:
        return None
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)


AttentionInterface.register(IN_PIECES, attention_in_pieces)
AttentionMaskInterface.register(IN_PIECES, _added_mask)
