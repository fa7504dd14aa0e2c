"""The layers of Qwen-VL's language model, called as in the published weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward

from dualfocus_lmms.models.qwen_vl.configuration import QwenVLConfig

# What depends on the position of a token alone: cosines and sines (B, 1, S, R), and the factor of queries
# (B, 1, S, 1) or None.
Rotary = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class QwenAttention(nn.Module):
    """Causal self-attention. c_attn gives query, key and value one after the other."""

    num_key_value_groups = 1
    is_causal = True

    def __init__(self, config: QwenVLConfig, layer: int) -> None:
        super().__init__()
        inner = config.kv_channels * config.num_attention_heads
        self.config, self.layer = config, layer
        self.c_attn = nn.Linear(config.hidden_size, 3 * inner)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=not config.no_bias)

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, S, D) to (B, S, D), and the weights (B, H, S, T) where the implementation gives them."""
        mixed = self.c_attn(hidden).unflatten(-1, (3, -1, self.config.kv_channels))  # (B, S, 3, H, C)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        cosines, sines, factor = rotary
        query, key = rotated(query, cosines, sines), rotated(key, cosines, sines)
        if factor is not None:
            query = query * factor.to(query.dtype)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attn_dropout_prob if self.training else 0.0
        scaling = self.config.kv_channels**-0.5
        output, weights = attend(self, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
        return self.c_proj(output.flatten(2)), weights


class QwenMLP(nn.Module):
    """The gated MLP of a layer."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(width, inner, bias=bias)
        self.w2 = nn.Linear(width, inner, bias=bias)
        self.c_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, D)."""
        return self.c_proj(self.w1(hidden) * nn.functional.silu(self.w2(hidden)))


class QwenBlock(GradientCheckpointingLayer):
    """One layer of the language model."""

    def __init__(self, config: QwenVLConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LlamaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = QwenAttention(config, layer)
        self.ln_2 = LlamaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = QwenMLP(config)

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(B, S, D) to (B, S, D)."""
        hidden = hidden + self.attn(self.ln_1(hidden), rotary, mask, cache, **kwargs)[0]
        return hidden + self.mlp(self.ln_2(hidden))


def make_rotary(config: QwenVLConfig, positions: torch.Tensor, training: bool) -> Rotary:
    """Rotary angles of positions (B, S) and, beyond the trained length, how much sharper queries attend.

    The factor is for inference alone: log(n) to the base of the trained length for the n-th token.
    """
    width = int(config.kv_channels * config.rotary_pct)
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions[:, None, :, None].float() / config.rotary_emb_base**steps  # (B, 1, S, R / 2)
    angles = torch.cat([angles, angles], dim=-1)
    factor = None
    if config.use_logn_attn and not training:
        factor = ((positions[:, None, :, None] + 1).float().log() / math.log(config.seq_length)).clamp(min=1)
    return angles.cos(), angles.sin(), factor


def rotated(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Queries or keys (B, H, S, C) turned by their positions in float32; channels beyond R stay."""
    width = cosines.shape[-1]
    turned, rest = heads[..., :width].float(), heads[..., width:]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cosines + torch.cat([-high, low], dim=-1) * sines
    return torch.cat([turned.to(heads.dtype), rest], dim=-1)
