"""The KV cache of transformers, whose layers the shared engine replaces, copies, cuts and joins."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
Same = Callable[[Any, Any, str], None]
Named = Callable[[Any, Any], dict[str, Any]]

IDS = torch.arange(1, 9)[None]  # (1, 8)


def states(slots: int, fill: float = 1.0) -> torch.Tensor:
    return torch.full((2, 3, slots, 4), fill)  # (B, heads, S, D)


def test_a_cache_has_a_layer_of_the_plain_kind_for_each_of_llama(foreign: LookUp, make_llama: Make) -> None:
    """The shared engine serves layers that are exactly DynamicLayer, and refuses every model otherwise."""
    cache = foreign("transformers:DynamicCache")(config=make_llama().config)
    kinds = [type(layer) for layer in cache.layers]
    assert kinds == [foreign("transformers.cache_utils:DynamicLayer")] * 2, "DynamicCache(config=...).layers"


def test_a_layer_that_forgets_is_of_another_kind(foreign: LookUp) -> None:
    """The shared engine refuses sliding windows by their layers' type: it would forget what it extends."""
    config = foreign("transformers:MistralConfig")(sliding_window=4, num_hidden_layers=1)
    (layer,) = foreign("transformers:DynamicCache")(config=config).layers
    assert type(layer) is not foreign("transformers.cache_utils:DynamicLayer"), "DynamicCache(config=...)"


def test_a_layer_is_initialised_by_its_first_keys(foreign: LookUp) -> None:
    """The layer with room at its end calls `lazy_initialization`; without it, keys would have no device."""
    layer = foreign("transformers.cache_utils:DynamicLayer")()
    assert layer.is_initialized is False, "DynamicLayer.is_initialized"
    foreign("transformers.cache_utils:DynamicLayer.lazy_initialization")(layer, states(2), states(2))
    assert layer.is_initialized is True, "DynamicLayer.lazy_initialization"
    assert layer.device == torch.device("cpu"), "DynamicLayer.lazy_initialization"


def test_a_layer_holds_keys_and_values_by_slots(foreign: LookUp) -> None:
    """The cache is cut, padded and joined along the third dimension of `keys` and `values`."""
    layer = foreign("transformers.cache_utils:DynamicLayer")()
    given = layer.update(states(2), states(2))
    layer.update(states(1, 5.0), states(1, 6.0))
    assert layer.keys.shape == layer.values.shape == (2, 3, 3, 4), "DynamicLayer.keys, .values"
    assert (layer.keys[0, 0, 2, 0], layer.values[0, 0, 2, 0]) == (5.0, 6.0), "DynamicLayer.update"
    assert given[0].shape == (2, 3, 2, 4), "DynamicLayer.update"


def test_an_update_leaves_the_tensors_before_it_alone(foreign: LookUp) -> None:
    """The cache is forked by copies of its layers: were slots written in place, branches would mix."""
    layer = foreign("transformers.cache_utils:DynamicLayer")()
    layer.update(states(2), states(2))
    forked, before = copy.copy(layer), layer.keys
    layer.update(states(1), states(1))
    forked.update(states(3, 2.0), states(3, 2.0))
    assert layer.keys.shape[2] == 3, "copy.copy of a DynamicLayer"
    assert forked.keys.shape[2] == 5, "copy.copy of a DynamicLayer"
    assert before.shape[2] == 2, "DynamicLayer.update works in place"


def test_the_length_of_a_layer_is_that_of_its_keys(foreign: LookUp) -> None:
    """Views are put in the place of `keys`: masks and positions must follow them, not another count."""
    layer = foreign("transformers.cache_utils:DynamicLayer")()
    layer.update(states(5), states(5))
    layer.keys, layer.values = layer.keys[:, :, :3], layer.values[:, :, :3]
    assert layer.get_seq_length() == 3, "DynamicLayer.get_seq_length"
    assert layer.get_mask_sizes(2) == (5, 0), "DynamicLayer.get_mask_sizes"


@pytest.fixture
def kind(foreign: LookUp) -> Any:
    """A layer of one's own that counts what it is given."""

    class Counting(foreign("transformers.cache_utils:DynamicLayer")):
        given: int = 0

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            self.given += key_states.shape[2]
            return super().update(key_states, value_states, *args, **kwargs)

    return Counting


def test_a_model_takes_layers_of_ones_own(
    foreign: LookUp, make_llama: Make, cache_argument: Named, kind: Any
) -> None:
    """The shared engine puts layers with room into `cache.layers`; unread, decoding would be slow again."""
    model = make_llama().model
    cache = foreign("transformers:DynamicCache")(config=model.config)
    cache.layers = [kind() for _ in cache.layers]
    with torch.inference_mode():
        model(inputs_embeds=torch.zeros(1, 5, 32), use_cache=True, **cache_argument(model, cache))
    assert [layer.given for layer in cache.layers] == [5, 5], "Cache.update no longer calls layer.update"


def test_a_cache_goes_on_from_copied_and_cut_layers(
    same: Same, foreign: LookUp, make_llama: Make, cache_argument: Named
) -> None:
    """The shared engine: a prefix that was cut out of a longer cache continues as if it were read anew."""
    model = make_llama().model
    cache = foreign("transformers:DynamicCache")(config=model.config)
    with torch.inference_mode():
        model(input_ids=IDS[:, :6], use_cache=True, **cache_argument(model, cache))
        fork = copy.copy(cache)
        fork.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in fork.layers:
            layer.keys, layer.values = layer.keys[:, :, :4], layer.values[:, :, :4]
        other = torch.tensor([[50, 51]])
        said = model(
            input_ids=other,
            position_ids=torch.tensor([[4, 5]]),
            use_cache=True,
            **cache_argument(model, fork),
        )
        whole = model(input_ids=torch.cat([IDS[:, :4], other], dim=1), use_cache=False)
    expected = whole.last_hidden_state[:, 4:]
    same(said.last_hidden_state, expected, "copied layers of DynamicCache")
    assert cache.layers[0].keys.shape[2] == 6, "a copy of DynamicCache shares its layers with the original"


def test_a_cache_comes_back_by_the_name_it_is_taken_by(make_llama: Make, cache_argument: Named) -> None:
    """The grounding by attention reads the prompt and hands the cache that comes back to the last token."""
    model = make_llama()
    with torch.inference_mode():
        output = model(input_ids=IDS, use_cache=True)
    (name,) = cache_argument(model, None)
    assert name in output, f"LlamaForCausalLM takes its cache as {name!r} and no longer returns it so"
    assert output[name].get_seq_length() == 8, "Cache.get_seq_length"


def test_masks_and_outputs_have_one_name_for_the_cache(foreign: LookUp) -> None:
    """Qwen-VL of 2023 names the cache in its outputs as `create_causal_mask` does in its arguments."""
    taken = inspect.signature(foreign("transformers.masking_utils:create_causal_mask")).parameters
    name = "cache" if "cache" in taken else "past_key_values"
    assert name in taken, "create_causal_mask takes neither `past_key_values` nor `cache`"
    for output in ("BaseModelOutputWithPast", "CausalLMOutputWithPast"):
        made = foreign(f"transformers.modeling_outputs:{output}")(**{name: "held"})
        assert made[name] == "held", f"{output} has no field {name!r}"


def test_layers_are_made_without_arguments(foreign: LookUp) -> None:
    """The layer with room copies itself by `type(self)()` and takes over its attributes."""
    layer = foreign("transformers.cache_utils:DynamicLayer")()
    layer.update(states(2), states(2))
    copied = type(layer)()
    copied.__dict__.update(layer.__dict__)
    assert copied.get_seq_length() == 2, "DynamicLayer keeps its state outside of __dict__"
