"""A random checkpoint with Llama's tokenizer has Llama's token ids."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN, load_tokenizer, save_tiny


def read_apart(text: str, pieces: SentencePieceProcessor, specials: dict[str, int]) -> list[int]:
    """Ids of a text as LLaVA reads it: what stands around a special token is a text of its own."""
    ids = [pieces.bos_id()]
    for part in re.split("|".join(f"({token})" for token in specials), text):
        if part:
            ids += [specials[part]] if part in specials else pieces.encode(part)
    return ids


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts).input_ids


def test_a_tiny_checkpoint_has_llamas_token_ids(shared_data: Path, tmp_path: Path) -> None:
    llama = shared_data / "tokenizers" / "llama"
    pieces = SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    lines = (shared_data / "llava_eval" / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl").open(
        encoding="utf-8"
    )
    questions = [json.loads(line)["text"] for line, _ in zip(lines, range(200), strict=False)]
    talks = [f"USER: <image>\n{text} ASSISTANT: yes</s>USER: {text} ASSISTANT:" for text in questions]
    odd = ["a  b", "<image>two   blanks", "</s>after", "\n\n<image>x", "naïve 東京 1.00"]
    tokenizer = load_checkpoint(str(save_tiny(tmp_path, tokenizer=str(llama))), device="cpu").tokenizer
    specials = {"</s>": pieces.eos_id(), IMAGE_TOKEN: 32000}
    texts = [*questions, *talks, *odd]
    assert len(texts) == 405
    assert ids_of(tokenizer, texts) == [read_apart(text, pieces, specials) for text in texts]
    assert ids_of(tokenizer, texts) == ids_of(load_tokenizer(str(llama)), texts)
