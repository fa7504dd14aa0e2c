"""Attention of transformers: which masks are applied as they are, and code of our own behind a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
Same = Callable[[Any, Any, str], None]
Named = Callable[[Any, Any], dict[str, Any]]

# Two branches of one row: a trunk of three tokens, two that see it, and two more that see the trunk alone.
IDS = torch.tensor([[5, 6, 7, 20, 21, 30, 31]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 3, 4]])
FIRST, SECOND = [0, 1, 2, 3, 4], [0, 1, 2, 5, 6]


def branches() -> torch.Tensor:
    """(1, 1, 7, 7): true for what is seen."""
    seen = torch.ones(7, 7).tril().bool()
    seen[5:, 3:5] = False
    return seen[None, None]


def added(seen: torch.Tensor) -> torch.Tensor:
    """The mask as numbers to be added."""
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def read(model: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    """Hidden states (S, D) of the ids of one row, as a language model gives them for embeddings."""
    with torch.inference_mode():
        embeddings = model.get_input_embeddings()(ids)
        return model(inputs_embeds=embeddings, **given).last_hidden_state[0]


@pytest.mark.parametrize(("attention", "form"), [("sdpa", "bool"), ("eager", "float")])
def test_a_mask_of_four_dimensions_is_applied_as_it_is(
    same: Same, make_llama: Make, attention: str, form: str
) -> None:
    """The `tree` engine: were such a mask read as padding or left out, both branches would see each other
    and every answer would be wrong, without a word."""
    model = make_llama(attn_implementation=attention).model
    mask = branches() if form == "bool" else added(branches())
    both = read(model, IDS, attention_mask=mask, position_ids=POSITIONS)
    for places in (FIRST, SECOND):
        alone = read(model, IDS[:, places])
        same(both[places], alone, f"{attention} with a mask of four dimensions")
    unmasked = read(model, IDS, position_ids=POSITIONS)
    assert (unmasked[5:] - both[5:]).abs().max() > 1e-3, f"{attention} leaves a mask of four dimensions out"


@pytest.mark.parametrize(("attention", "form"), [("sdpa", "bool"), ("eager", "float")])
def test_a_mask_of_four_dimensions_reaches_into_the_cache(
    same: Same, foreign: LookUp, make_llama: Make, cache_argument: Named, attention: str, form: str
) -> None:
    """The `tree` engine: while branches are said, rows of the mask are the new tokens, columns all slots."""
    model = make_llama(attn_implementation=attention).model
    cache = foreign("transformers:DynamicCache")(config=model.config)
    read(model, IDS[:, :5], use_cache=True, **cache_argument(model, cache))
    seen = branches()[:, :, 5:]
    mask = seen if form == "bool" else added(seen)
    said = read(
        model, IDS[:, 5:], attention_mask=mask, position_ids=POSITIONS[:, 5:], use_cache=True,
        **cache_argument(model, cache),
    )  # fmt: skip
    same(said, read(model, IDS[:, SECOND])[3:], f"{attention} with a mask of four dimensions and a cache")


def test_holes_of_a_mask_of_two_dimensions_are_not_seen(
    same: Same, foreign: LookUp, make_llama: Make, cache_argument: Named
) -> None:
    """The shared engine: ragged rows have holes anywhere in the cache, and positions of their own."""
    model = make_llama().model
    cache = foreign("transformers:DynamicCache")(config=model.config)
    read(model, IDS[:, :5], use_cache=True, **cache_argument(model, cache))
    said = read(
        model, IDS[:, 5:], attention_mask=torch.tensor([[1, 1, 1, 0, 0, 1, 1]]), use_cache=True,
        position_ids=POSITIONS[:, 5:], **cache_argument(model, cache),
    )  # fmt: skip
    same(said, read(model, IDS[:, SECOND])[3:], "attention_mask and position_ids with holes in the cache")


def test_no_mask_means_all_before(
    same: Same, foreign: LookUp, make_llama: Make, cache_argument: Named
) -> None:
    """The shared engine gives none where no token follows a hole, also for several tokens after a cache."""
    model = make_llama().model
    cache = foreign("transformers:DynamicCache")(config=model.config)
    read(model, IDS[:, :3], attention_mask=None, use_cache=True, **cache_argument(model, cache))
    given = {"use_cache": True, "position_ids": torch.arange(3, 7)[None]} | cache_argument(model, cache)
    said = read(model, IDS[:, 3:], attention_mask=None, **given)
    same(said, read(model, IDS)[3:], "attention_mask=None after a cache")


def test_the_attention_of_a_model_has_a_name_and_can_be_changed(make_llama: Make) -> None:
    """The engines and the grounding by attention read `config._attn_implementation` and set another: under
    another name, `tree` would work like `template`, and long queries would be slow, without a word."""
    model = make_llama(attn_implementation="sdpa").model
    assert model.config._attn_implementation == "sdpa", "config._attn_implementation"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager", "PreTrainedModel.set_attn_implementation"
    assert model.layers[0].self_attn.config._attn_implementation == "eager", "set_attn_implementation"


def test_a_model_on_a_cpu_has_torchs_attention(make_llama: Make) -> None:
    """The division of long queries begins where the attention is "sdpa", which is the default."""
    assert make_llama().model.config._attn_implementation == "sdpa", "the default of attn_implementation"


def test_eager_attention_gives_its_weights(same: Same, make_llama: Make) -> None:
    """The grounding by attention: (B, heads, S, L) of each layer, which sum to one over what is seen."""
    model = make_llama(attn_implementation="eager")
    with torch.inference_mode():
        attentions = model(input_ids=IDS, output_attentions=True, use_cache=False).attentions
    assert len(attentions) == 2, "output_attentions"
    assert attentions[0].shape == (1, 4, 7, 7), "output_attentions"
    same(attentions[1].sum(-1), torch.ones(1, 4, 7), "output_attentions")


def test_a_registered_attention_and_its_mask_are_called(
    same: Same, foreign: LookUp, make_llama: Make
) -> None:
    """The division of long queries: an attention and a mask of our own, both behind one name."""
    attend = foreign("transformers.integrations.sdpa_attention:sdpa_attention_forward")
    make_mask = foreign("transformers.masking_utils:sdpa_mask")
    seen: list[Any] = []

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        seen.append((attention_mask.dtype, query.shape[2], key.shape[2]))
        return attend(module, query, key, value, attention_mask, **options)

    def mask(*sizes: Any, dtype: torch.dtype = torch.float16, **options: Any) -> Any:
        made = make_mask(*sizes, dtype=dtype, **options)
        assert made.dtype == torch.bool, "sdpa_mask no longer makes a mask of truth values"
        assert dtype == torch.float32, "AttentionMaskInterface no longer gives `dtype`"
        return added(made)

    foreign("transformers:AttentionInterface.register")("contract_probe", attention)
    foreign("transformers:AttentionMaskInterface.register")("contract_probe", mask)
    model = make_llama().model
    holes = torch.tensor([[1, 0, 1, 1, 1, 1, 1]])
    expected = read(model, IDS, attention_mask=holes)
    model.set_attn_implementation("contract_probe")
    same(read(model, IDS, attention_mask=holes), expected, "AttentionMaskInterface.register")
    assert seen == [(torch.float32, 7, 7)] * 2, "AttentionInterface.register, AttentionMaskInterface.register"


def test_sdpa_attention_takes_a_piece_of_a_query(same: Same, foreign: LookUp, make_llama: Make) -> None:
    """The division of long queries calls it with rows of a mask and the keys that they see, heads shared."""
    attend = foreign("transformers.integrations.sdpa_attention:sdpa_attention_forward")
    module = make_llama().model.layers[0].self_attn
    torch.manual_seed(1)
    query = torch.randn(1, 4, 6, 8)
    key, value = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    mask = added(torch.ones(6, 6).tril().bool())[None, None]
    whole, weights = attend(module, query, key, value, mask, scaling=0.5, dropout=0.0)
    piece = attend(
        module,
        query[:, :, 2:4],
        key[:, :, :4],
        value[:, :, :4],
        mask[:, :, 2:4, :4],
        scaling=0.5,
        dropout=0.0,
    )
    assert whole.shape == (1, 6, 4, 8), "sdpa_attention_forward returns (B, S, heads, D)"
    assert weights is None, "sdpa_attention_forward"
    same(piece[0], whole[:, 2:4], "sdpa_attention_forward")


def test_rotary_positions_are_applied_to_heads(same: Same, foreign: LookUp, make_llama: Make) -> None:
    """The training of `dualfocus-nano` computes the attention of single heads from a layer's own parts."""
    model = make_llama(attn_implementation="eager").model
    layer, states = model.layers[0], model.embed_tokens(IDS)
    attention = layer.self_attn
    queries, keys = (
        project(layer.input_layernorm(states)).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    angles = model.rotary_emb(states, torch.arange(7)[None])
    rotate = foreign("transformers.models.llama.modeling_llama:apply_rotary_pos_emb")
    queries, keys = rotate(queries, keys, *angles)
    scores = queries @ keys.repeat_interleave(2, dim=1).transpose(2, 3) * attention.scaling
    ours = scores.masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf).softmax(-1)
    with torch.inference_mode():
        theirs = model(input_ids=IDS, output_attentions=True).attentions[0]
    same(ours, theirs, "apply_rotary_pos_emb, rotary_emb, LlamaAttention")


def test_hidden_states_are_the_inputs_of_layers(same: Same, make_llama: Make) -> None:
    """The training of `dualfocus-nano` computes attention anew from the state that a layer gets."""
    model, inputs = make_llama().model, []
    model.layers[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.inference_mode():
        output = model(input_ids=IDS, output_hidden_states=True, use_cache=False)
    assert len(output.hidden_states) == 3, "output_hidden_states"
    same(output.hidden_states[1], inputs[0], "output_hidden_states")
    same(output.hidden_states[-1], output.last_hidden_state, "output_hidden_states")
