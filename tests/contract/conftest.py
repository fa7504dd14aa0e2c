"""What the contracts share: how a foreign name is looked up, and the smallest models that have what we use.

A contract is one assertion about a name or a behaviour of another package that no documentation promises us.
Foreign names are imported inside the tests, so that each that is gone fails its own test, by its name.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

LookUp = Callable[[str], Any]
Make = Callable[..., Any]


def found(name: str) -> Any:
    """The object "package.module:attribute.attribute", or the module "package.module".

    AssertionError that says the whole name where it is gone.
    """
    module, _, attributes = name.partition(":")
    try:
        return reduce(
            _attribute, attributes.split(".") if attributes else [], importlib.import_module(module)
        )
    except (
        ImportError,
        AttributeError,
        RuntimeError,
    ) as error:  # RuntimeError: of transformers' lazy modules
        raise AssertionError(f"{name} is gone: {error}") from error


def _attribute(holder: Any, name: str) -> Any:
    """An attribute, or a module of that name that its package does not load by itself."""
    if inspect.ismodule(holder) and not hasattr(holder, name):
        with suppress(ImportError):
            return importlib.import_module(f"{holder.__name__}.{name}")
    return getattr(holder, name)


atexit.register(gc.unfreeze)  # so that libraries find their objects at the end


@pytest.fixture(scope="module", autouse=True)
def _uncollected() -> Iterator[None]:
    """What a file imports is never searched for garbage, which takes a fifth of the time."""
    gc.collect()
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def foreign() -> LookUp:
    """See `found`."""
    return found


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any, str], None]:
    """Checks that two tensors are the same but for rounding; the failure says which foreign name changed."""

    def check(actual: Any, expected: Any, name: str) -> None:
        import torch

        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5, msg=lambda why: f"{name}: {why}")

    return check


@pytest.fixture(scope="session")
def cache_argument() -> Callable[[Any, Any], dict[str, Any]]:
    """By which argument a module takes a KV cache: `past_key_values`, or `cache` since transformers 5.24."""

    def named(module: Any, cache: Any) -> dict[str, Any]:
        taken = [name for name in ("cache", "past_key_values") if name in _parameters(module)]
        assert taken, f"{type(module).__name__}.forward takes neither `past_key_values` nor `cache`"
        return {taken[0]: cache}

    return named


def _parameters(module: Any) -> Any:
    return inspect.signature(module.forward).parameters


@pytest.fixture(scope="session")
def make_llama() -> Make:
    """Makes a Llama of two layers with four heads of eight, two of keys; what is given changes its config."""

    def make(**changed: Any) -> Any:
        import torch

        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
        config = found("transformers:LlamaConfig")(**(sizes | heads | changed))
        return found("transformers:LlamaForCausalLM")(config).eval()

    return make


@pytest.fixture(scope="session")
def make_llava() -> Make:
    """Makes a LLaVA-1.5 that sees 56 pixels as 16 tokens of id 63; what is given changes its config."""

    def make(**changed: Any) -> Any:
        import torch

        torch.manual_seed(0)
        vision = found("transformers:CLIPVisionConfig")(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56,
            patch_size=14,
        )  # fmt: skip
        text = found("transformers:LlamaConfig")(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=128,
        )  # fmt: skip
        given = {"image_token_index": 63, "image_seq_length": 16, "vision_feature_layer": -2}
        given |= {"vision_feature_select_strategy": "default", "tie_word_embeddings": False}
        config = found("transformers:LlavaConfig")(
            vision_config=vision, text_config=text, **(given | changed)
        )
        return found("transformers:LlavaForConditionalGeneration")(config).eval()

    return make


@pytest.fixture(scope="session")
def make_words() -> Make:
    """Makes a tokenizer of single characters with <unk> <s> </s> <pad> <image>, which are 0 to 4."""

    def make(**named: Any) -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        basic = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *named.pop("specials", ())]
        characters = ["\n", *map(chr, range(32, 127))]
        vocabulary = {token: number for number, token in enumerate([*basic, *characters])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        words.decoder = decoders.Fuse()
        roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        fast = found("transformers:PreTrainedTokenizerFast")(tokenizer_object=words, **(roles | named))
        fast.add_tokens(basic[4:], special_tokens=True)
        return fast

    return make


@pytest.fixture(scope="session")
def llava_folder(make_llava: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-1.5 on disk, without tokenizer and image processor."""
    folder = tmp_path_factory.mktemp("llava")
    make_llava().save_pretrained(folder)
    return folder
