"""Qwen-VL: the model that reads images and text, for inference and training.

Its parameters have the names of the published weights, and so the language model and the encoder lie in one
module, `transformer`. What engines ask for, `model` and `model.language_model`, are names of that module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.compatibility import cache_argument
from dualfocus_lmms.models.qwen_vl.configuration import QwenVLConfig
from dualfocus_lmms.models.qwen_vl.decoder import QwenAttention, QwenBlock, make_rotary
from dualfocus_lmms.models.qwen_vl.vision import Resampler, VisionTransformer, position_table

_CACHE = cache_argument(create_causal_mask)  # transformers' name for it, which our outputs must have too


class QwenVLPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of Qwen-VL's modules."""

    config: QwenVLConfig
    config_class = QwenVLConfig
    base_model_prefix = "transformer"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["QwenBlock", "VisualBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": QwenBlock, "attentions": QwenAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            init.normal_(module.positional_embedding, std=module.positional_embedding.shape[1] ** -0.5)
            init.normal_(module.proj, std=module.proj.shape[0] ** -0.5)
        elif isinstance(module, Resampler):
            init.trunc_normal_(module.query, std=0.02)
            init.copy_(module.pos_embed, position_table(module.side, module.query.shape[1]))


class QwenVLModel(QwenVLPreTrainedModel):
    """Everything but the output layer."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QwenBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.ln_f = LlamaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.visual = VisionTransformer(config)
        self.post_init()

    @property
    def language_model(self) -> QwenVLModel:
        """Itself: called with `inputs_embeds` it is the language model alone."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: Any) -> None:
        self.wte = value

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """pooler_output (N, Q, D): what stands for N images (N, 3, H, W) in the embeddings of a prompt."""
        return BaseModelOutputWithPooling(pooler_output=self.visual(pixel_values))

    def embed(self, input_ids: Any, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings (B, S, D) of ids (B, S); images (N, 3, H, W) in order replace the <imgpad> tokens.

        ValueError when there are not exactly as many of them as the images have tokens.
        """
        embeddings = self.wte(input_ids)
        if pixel_values is None:
            return embeddings
        output: Any = self.get_image_features(pixel_values)
        features = output.pooler_output.to(embeddings)
        is_image = input_ids == self.config.image_token_id
        if is_image.sum() != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"{int(is_image.sum())} image tokens do not match {len(features)} images of "
                f"{features.shape[1]} tokens."
            )
        return embeddings.masked_scatter(is_image[..., None], features)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Takes input_ids (B, S) or inputs_embeds (B, S, D), with position_ids (B, S).

        attention_mask (B, cached + S) may have holes anywhere. `cache` is another name of
        past_key_values. UserError for a prompt longer than the model
        can read, see `_check_length`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values)
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)[
                None
            ]
        self._check_length(position_ids)
        named_cache: dict[str, Any] = {_CACHE: cache}
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **named_cache,
        )
        rotary = make_rotary(self.config, position_ids, self.training)
        hidden = self.drop(inputs_embeds)
        for block in self.h:
            hidden = block(hidden, rotary, mask, cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden), **named_cache)

    def _check_length(self, position_ids: torch.Tensor) -> None:
        """UserError for a prompt beyond the trained length where the checkpoint asks for dynamic NTK.

        That scales the rotary base by the length of the whole prompt, which keys that were cached for a
        shorter one do not have. Answers may go on beyond: they keep the base of their prompt.
        """
        longest = self.config.seq_length
        if self.training or not self.config.use_dynamic_ntk or position_ids.shape[-1] == 1:
            return
        length = int(position_ids.max()) + 1
        if length > longest:
            raise UserError(
                f"A prompt of {length} tokens is longer than the {longest} that this Qwen-VL was trained on. "
                'Shorten it, or set "use_dynamic_ntk" to false in its config.json to read it all the same.'
            )


class QwenVLForConditionalGeneration(QwenVLPreTrainedModel, GenerationMixin):
    """Qwen-VL with its output layer: logits of the next token after images and text."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.transformer = QwenVLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def model(self) -> QwenVLModel:
        """The module that is called `transformer` in the published weights."""
        return self.transformer

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: Any) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `QwenVLModel.get_image_features`."""
        return self.transformer.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, S, V), and the loss where labels (B, S) are given, -100 where nothing is learned."""
        if inputs_embeds is None:
            inputs_embeds = self.transformer.embed(input_ids, pixel_values)
        outputs = self.transformer(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{_CACHE: outputs.get(_CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
