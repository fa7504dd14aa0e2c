"""Internals of transformers that a model of our own is built on: Qwen-VL of 2023."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
Same = Callable[[Any, Any, str], None]

GENERIC = "transformers.utils.generic"
LLAMA = "transformers.models.llama.modeling_llama"


def classes(foreign: LookUp) -> Any:
    """The smallest model that is written as ours is: a configuration, a layer, a decoder with its head."""
    taken = inspect.signature(foreign("transformers.masking_utils:create_causal_mask")).parameters
    cache_name = "cache" if "cache" in taken else "past_key_values"
    norm, eager = foreign(f"{LLAMA}:LlamaRMSNorm"), foreign(f"{LLAMA}:eager_attention_forward")
    attentions = foreign("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS")
    outputs = foreign("transformers.modeling_outputs")

    class Config(foreign("transformers:PreTrainedConfig")):
        model_type = "contract_model"
        vocab_size: int = 16
        hidden_size: int = 8
        num_hidden_layers: int = 2
        num_attention_heads: int = 2
        initializer_range: float = 0.02
        use_cache: bool = True
        tie_word_embeddings: bool = False
        visual: Any = None

        def __post_init__(self, **kwargs: Any) -> None:
            self.visual = {"width": 3, **(self.visual or {})}
            super().__post_init__(**kwargs)

    class Attention(nn.Module):
        num_key_value_groups, is_causal = 1, True

        def __init__(self, config: Any, layer: int) -> None:
            super().__init__()
            self.config, self.layer = config, layer
            self.mix = nn.Linear(8, 24)

        def forward(self, hidden: Any, mask: Any, cache: Any, **kwargs: Any) -> Any:
            mixed = self.mix(hidden).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            query, key, value = mixed
            if cache is not None:
                key, value = cache.update(key, value, self.layer)
            attend = attentions.get_interface(self.config._attn_implementation, eager)
            output, weights = attend(self, query, key, value, mask, scaling=0.5, dropout=0.0, **kwargs)
            return output.flatten(2), weights

    class Block(foreign("transformers.modeling_layers:GradientCheckpointingLayer")):
        def __init__(self, config: Any, layer: int) -> None:
            super().__init__()
            self.norm, self.attention = norm(8, eps=1e-6), Attention(config, layer)

        def forward(self, hidden: Any, mask: Any, cache: Any, **kwargs: Any) -> Any:
            return hidden + self.attention(self.norm(hidden), mask, cache, **kwargs)[0]

    class Base(foreign("transformers:PreTrainedModel")):
        config_class = Config
        base_model_prefix = "transformer"
        supports_gradient_checkpointing = True
        _supports_sdpa = True
        _can_record_outputs = {"hidden_states": Block, "attentions": Attention}  # noqa: RUF012

        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, Model):
                foreign("transformers:initialization.normal_")(module.place, std=5.0)
                foreign("transformers:initialization.copy_")(module.table, torch.arange(8.0))

    class Model(Base):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.words = nn.Embedding(config.vocab_size, 8)
            self.layers = nn.ModuleList(Block(config, layer) for layer in range(2))
            self.place = nn.Parameter(torch.zeros(1000))
            self.register_buffer("table", torch.zeros(8))
            self.caches: list[Any] = []
            self.post_init()

        def get_input_embeddings(self) -> nn.Module:
            return self.words

        @foreign(f"{GENERIC}:merge_with_config_defaults")
        @foreign("transformers.utils.output_capturing:capture_outputs")
        def forward(self, input_ids: Any, use_cache: Any = None, cache: Any = None, **kwargs: Any) -> Any:
            self.caches.append(use_cache)
            hidden = self.words(input_ids)
            mask = foreign("transformers.masking_utils:create_causal_mask")(
                config=self.config, inputs_embeds=hidden, attention_mask=kwargs.pop("attention_mask", None),
                position_ids=kwargs.pop("position_ids", None), **{cache_name: cache},
            )  # fmt: skip
            for layer in self.layers:
                hidden = layer(hidden, mask, cache, **kwargs)
            return outputs.BaseModelOutputWithPast(last_hidden_state=hidden, **{cache_name: cache})

    class Whole(Base, foreign("transformers:GenerationMixin")):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.transformer = Model(config)
            self.lm_head = nn.Linear(8, config.vocab_size, bias=False)
            self.caches: list[Any] = []
            self.post_init()

        def get_input_embeddings(self) -> nn.Module:
            return self.transformer.words

        def get_output_embeddings(self) -> nn.Module:
            return self.lm_head

        @foreign(f"{GENERIC}:can_return_tuple")
        def forward(
            self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
            past_key_values: Any = None, labels: Any = None, use_cache: Any = None, logits_to_keep: Any = 0,
            cache: Any = None, **kwargs: Any,
        ) -> Any:  # fmt: skip
            cache = past_key_values if cache is None else cache
            self.caches.append((cache, use_cache))
            found = self.transformer(
                input_ids=input_ids, use_cache=use_cache, cache=cache, attention_mask=attention_mask,
                position_ids=position_ids, **kwargs,
            )  # fmt: skip
            logits = self.lm_head(found.last_hidden_state)
            loss = None
            if labels is not None:
                loss = self.loss_function(
                    logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
                )
            return outputs.CausalLMOutputWithPast(
                loss=loss, logits=logits, hidden_states=found.hidden_states, attentions=found.attentions,
                **{cache_name: found.get(cache_name)},
            )  # fmt: skip

    return Config, Whole


IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture
def model(foreign: LookUp) -> Any:
    torch.manual_seed(0)
    config, whole = classes(foreign)
    return whole(config()).eval()


def test_a_configuration_is_made_of_annotated_fields(foreign: LookUp, tmp_path: Path) -> None:
    """Qwen-VL's config.json is read field for field, and `__post_init__` fills in what it leaves out."""
    config, _ = classes(foreign)
    config(hidden_size=12, visual={"heads": 2}).save_pretrained(tmp_path)
    again = config.from_pretrained(tmp_path)
    assert (again.hidden_size, again.visual) == (12, {"width": 3, "heads": 2}), (
        "PreTrainedConfig.__post_init__"
    )


def test_weights_are_initialised_by_init_weights(model: Any) -> None:
    """Qwen-VL's random weights, for tests and timing: the model's own, and those of plain layers."""
    assert 4 < model.transformer.place.std() < 6, "PreTrainedModel._init_weights, initialization.normal_"
    assert model.transformer.table.tolist() == list(range(8)), "initialization.copy_ of a buffer"
    assert 0.01 < model.lm_head.weight.std() < 0.03, "PreTrainedModel._init_weights of a linear layer"


def test_hidden_states_and_attentions_are_captured(model: Any) -> None:
    """The grounding by attention, and whoever asks Qwen-VL for them: by `_can_record_outputs`."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        output = model(IDS, output_attentions=True, output_hidden_states=True)
        plain = model(IDS)
    assert len(output.hidden_states) == 3, "capture_outputs, _can_record_outputs"
    assert [tuple(layer.shape) for layer in output.attentions] == [(1, 2, 4, 4)] * 2, "capture_outputs"
    assert plain.attentions is None, "capture_outputs"


def test_the_configuration_says_whether_a_cache_is_kept(model: Any) -> None:
    """Qwen-VL keeps keys and values unless training switches `config.use_cache` off."""
    model(IDS)
    model.config.use_cache = False
    model(IDS)
    model(IDS, use_cache=True)
    assert model.transformer.caches == [True, False, True], "merge_with_config_defaults"


def test_an_output_can_be_a_tuple(model: Any) -> None:
    """Parts of transformers call models with return_dict=False."""
    output = model(IDS, return_dict=False)
    assert isinstance(output, tuple), "can_return_tuple"
    assert output[0].shape == (1, 4, 16), "can_return_tuple"


def test_the_loss_is_a_sum_over_the_given_number(same: Same, model: Any) -> None:
    """Training: `loss_function` shifts labels, leaves -100 out and divides by the tokens of a whole step."""
    labels = torch.tensor([[-100, -100, 3, 4]])
    with torch.inference_mode():
        output = model(IDS, labels=labels, num_items_in_batch=torch.tensor(5))
        plain = model(IDS, labels=labels).loss
    losses = nn.functional.cross_entropy(output.logits[0, 1:3], labels[0, 2:], reduction="none")
    same(output.loss, losses.sum() / 5, "loss_function(num_items_in_batch=...)")
    same(plain, losses.mean(), "loss_function")


def test_generate_hands_a_cache_to_forward(model: Any) -> None:
    """Qwen-VL in the slow engine: by `past_key_values` or `cache`; by another name nothing would be kept."""
    model.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, pad_token_id=0, do_sample=False
    )
    (first, _), (second, _) = model.caches
    assert first is second is not None, "generate gives neither `past_key_values` nor `cache`"
    assert second.get_seq_length() == 5, "GenerationMixin"


def test_layers_are_computed_again_with_checkpointing(same: Same, model: Any) -> None:
    """Training with little memory: our layers are GradientCheckpointingLayers, with the same gradients."""
    model.train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append(model.transformer.layers[0].attention.mix.weight.grad.clone())
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.transformer.layers[0].gradient_checkpointing is True, "gradient_checkpointing_enable"
    same(*gradients, "GradientCheckpointingLayer")


def test_a_registered_class_loads_its_checkpoints(
    same: Same, foreign: LookUp, model: Any, tmp_path: Path
) -> None:
    """Importing Qwen-VL makes the Auto classes know it, more than once without complaint."""
    kind = type(model.config)
    for _ in range(2):
        foreign("transformers:AutoConfig.register")(kind.model_type, kind, exist_ok=True)
        foreign("transformers:AutoModelForImageTextToText.register")(kind, type(model), exist_ok=True)
    model.save_pretrained(tmp_path)
    again = foreign("transformers:AutoModelForImageTextToText.from_pretrained")(tmp_path)
    assert isinstance(again, type(model)), "AutoModelForImageTextToText.register"
    same(again.transformer.place, model.transformer.place, "save_pretrained, from_pretrained")


def test_the_norm_of_llama_is_that_of_qwen(same: Same, foreign: LookUp) -> None:
    """Qwen-VL's layers: root mean square in float32, times the weight."""
    norm = foreign(f"{LLAMA}:LlamaRMSNorm")(4, eps=0.0)
    values = torch.tensor([1.0, -1.0, 7.0, 1.0])
    same(norm(values), values / 13**0.5, "LlamaRMSNorm")
