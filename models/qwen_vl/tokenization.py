"""Qwen's byte-pair vocabulary, published as `qwen.tiktoken`, as a tokenizer of transformers."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from dualfocus_lmms.errors import UserError

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
CONTROLS = (END_OF_TEXT, "<|im_start|>", END_OF_TURN, *(f"<|extra_{number}|>" for number in range(205)))
REGIONS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")  # part of the model's replies
IMAGE_TAGS = ("<img>", "</img>", "<imgpad>")


class QWenTokenizer(PreTrainedTokenizerFast):
    """Qwen-VL's tokenizer. Regions keep their tags when special tokens are left out of a decoded text."""

    vocab_files_names = {"vocab_file": "qwen.tiktoken", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Arguments of the constructor, from those of a checkpoint's files."""
        kwargs.pop("auto_map", None)  # a saved copy points at no code either
        kwargs.setdefault("eos_token", END_OF_TURN)
        kwargs.setdefault("pad_token", END_OF_TEXT)
        saved, published = kwargs.get("tokenizer_file"), kwargs.get("vocab_file")
        if not (saved and os.path.isfile(saved)) and published:
            return kwargs | {"tokenizer_object": read_tiktoken(published)}
        return super().convert_to_native_format(trust_remote_code, **kwargs)


class _Converter(TikTokenConverter):
    """Reads the file itself: the library's reader caches a copy by path, even if the file changes."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = Path(tiktoken_url).read_bytes().splitlines()
        pairs = (line.split() for line in lines if line)
        return {base64.b64decode(token): int(rank) for token, rank in pairs}


def read_tiktoken(path: str | Path) -> Tokenizer:
    """The tokenizer of a `qwen.tiktoken` file, Qwen-VL's special tokens after its ranks."""
    try:
        tokenizer = _Converter(vocab_file=str(path), pattern=PRETOKENIZE_REGEX).converted()
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is no vocabulary of ranks ({error}): every line has a token in base 64 and its "
            "rank. Download it again; without Git LFS a short pointer file replaces it."
        ) from error
    tokenizer.normalizer = normalizers.NFC()
    for tokens, special in ((CONTROLS, True), (REGIONS, False), (IMAGE_TAGS, True)):
        added = [AddedToken(token, normalized=False, special=special) for token in tokens]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def load_qwen_tokenizer(folder_or_hub_name: str, revision: str | None = None) -> Any:
    """The tokenizer of a checkpoint in the published layout or as transformers saves it. No remote code runs.

    UserError when there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder_or_hub_name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load a Qwen-VL tokenizer from {folder_or_hub_name!r}: {error}\n"
            "Give a folder or hub name with config.json, tokenizer_config.json and qwen.tiktoken."
        ) from error
