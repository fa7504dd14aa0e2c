"""The published config.json of Qwen-VL, field for field."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

QUERIES = 256  # tokens of one image

# The vision encoder of the published checkpoints. image_start_id: of <img>; </img> and <imgpad> follow it.
VISUAL = {
    "heads": 16,
    "image_size": 448,
    "image_start_id": 151857,
    "layers": 48,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}


class QwenVLConfig(PreTrainedConfig):
    """Qwen-VL: a Qwen-7B decoder, an OpenCLIP ViT-bigG encoder and a resampler between them.

    seq_length: tokens the model was trained on; max_position_embeddings: tokens it is published for.
    intermediate_size: both branches of the MLP together. visual: the encoder, see `VISUAL`; `n_queries`
    there is optional.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    layer_norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    emb_dropout_prob: float = 0.0
    attn_dropout_prob: float = 0.0
    seq_length: int = 2048
    max_position_embeddings: int = 8192
    rotary_emb_base: float | int = 10000
    rotary_pct: float = 1.0
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    visual: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.visual = {**VISUAL, **(self.visual or {})}
        super().__post_init__(**kwargs)

    @property
    def image_token_id(self) -> int:
        """The id of <imgpad>, which stands for every token of an image."""
        return self.visual["image_start_id"] + 2

    @property
    def image_seq_length(self) -> int:
        """Tokens of one image."""
        return self.visual.get("n_queries", QUERIES)
