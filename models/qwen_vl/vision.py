"""Qwen-VL's vision encoder and the resampler that makes 256 tokens of its output.

Modules are called as in the published weights.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from dualfocus_lmms.models.qwen_vl.configuration import QwenVLConfig

_EPSILON = 1e-6
_RESAMPLER_HEAD = 128  # width of a head of the resampler


class VisualAttention(nn.Module):
    """Self-attention of patches. in_proj gives query, key and value of each head next to each other."""

    num_key_value_groups = 1
    is_causal = False

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        width, self.heads = config.visual["width"], config.visual["heads"]
        self.config = config
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, P, W) to (N, P, W)."""
        mixed = self.in_proj(patches).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, H, P, 3 * W / H)
        query, key, value = mixed.chunk(3, dim=-1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attend(self, query, key, value, None, scaling=query.shape[-1] ** -0.5, dropout=0.0)
        return self.out_proj(output.flatten(2))


class VisualBlock(GradientCheckpointingLayer):
    """One layer of the encoder."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        width = config.visual["width"]
        inner = int(width * config.visual["mlp_ratio"])
        self.ln_1 = nn.LayerNorm(width, eps=_EPSILON)
        self.ln_2 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = VisualAttention(config)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, inner), gelu=nn.GELU(), c_proj=nn.Linear(inner, width))
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, P, W) to (N, P, W)."""
        patches = patches + self.attn(self.ln_1(patches))
        return patches + self.mlp(self.ln_2(patches))


class VisualBlocks(nn.Module):
    """All layers of the encoder."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(VisualBlock(config) for _ in range(config.visual["layers"]))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, P, W) to (N, P, W)."""
        for block in self.resblocks:
            patches = block(patches)
        return patches


class Resampler(nn.Module):
    """Cross attention from learned queries to patches, both with their positions in the image."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        width, patch_width = config.visual["output_dim"], config.visual["width"]
        self.side = round(config.image_seq_length**0.5)
        self.query = nn.Parameter(torch.zeros(config.image_seq_length, width))
        self.register_buffer("pos_embed", position_table(self.side, width))
        self.pos_embed: torch.Tensor
        same = patch_width == width
        self.kv_proj = nn.Identity() if same else nn.Linear(patch_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, width // _RESAMPLER_HEAD, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=_EPSILON)
        self.ln_kv = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, P, W) to (N, Q, D)."""
        values = self.ln_kv(self.kv_proj(patches))
        keys = values + resized(self.pos_embed, patches.shape[1])
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(patches), -1, -1)
        return self.attn(queries, keys, values, need_weights=False)[0]


class VisionTransformer(nn.Module):
    """From pixels to the tokens of the language model."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        width, out, patch = (config.visual[name] for name in ("width", "output_dim", "patch_size"))
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(256, width))  # a grid of 16 x 16
        self.ln_pre = nn.LayerNorm(width, eps=_EPSILON)
        self.transformer = VisualBlocks(config)
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(out, eps=_EPSILON)
        self.proj = nn.Parameter(torch.zeros(out, out))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, Q, D)."""
        patches = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (N, P, W)
        patches = patches + resized(self.positional_embedding, patches.shape[1])
        patches = self.transformer(self.ln_pre(patches))
        return self.ln_post(self.attn_pool(patches)) @ self.proj


def position_table(side: int, width: int) -> torch.Tensor:
    """(side * side, width): sines and cosines of the column in the first half, of the row in the second."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    angles = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    columns = line[None].expand(side, -1, -1)
    rows = line[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def resized(table: torch.Tensor, count: int) -> torch.Tensor:
    """A square grid of positions (S * S, W) at `count` positions, (count, W)."""
    side, target = round(len(table) ** 0.5), round(count**0.5)
    if side == target:
        return table
    grid: Any = table.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]
    grid = nn.functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T.to(table.dtype)
