"""What a converted checkpoint makes of prompts: the tokens of the original, in plain transformers too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from original_llava import PATCH, PLACEHOLDER, SIDE, VOCABULARY
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from dualfocus_lmms import Conversation
from dualfocus_lmms.models.convert.llava import convert
from dualfocus_lmms.models.convert.llava_original import read_tokenizer


def as_the_original(text: str, model: Path, legacy: bool) -> list[int]:
    """Ids of a prompt as the original makes them: each part around an image on its own, by SentencePiece."""
    spm = sentencepiece.SentencePieceProcessor(model_file=str(model))
    prefix = len(spm.encode("<unk>"))
    ids = [1]
    for number, part in enumerate(text.split("<image>")):
        ids += [PLACEHOLDER] * bool(number)
        for place, said in enumerate(part.split("</s>")):
            ids += [2] * bool(place)
            inside = place > 0 and not legacy
            ids += spm.encode("<unk>" + said)[prefix:] if inside else spm.encode(said) if said else []
    return ids


@pytest.mark.parametrize("legacy", [True, False, None])
def test_a_prompt_has_the_originals_tokens(make, own_tower, words, tmp_path, legacy):
    source = make(mm_vision_tower=own_tower)
    if legacy is not None:
        options = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "pad_token": "<unk>"}
        (source / "tokenizer_config.json").write_text(json.dumps(options))
    convert(str(source), tmp_path / "out", progress=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    blank = Image.new("RGB", (1, 1))
    asked = Conversation().user("Provide the region: what is it?", blank)
    talk = asked.assistant("[0.25, 0.50]").user("Combine both images  and answer.\nOne word.", blank)
    text = tokenizer.apply_chat_template(talk.messages(), add_generation_prompt=True, tokenize=False)
    expected = as_the_original(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "Provide the region: what is it? ASSISTANT: [0.25, 0.50]</s>USER: <image>\n"
        "Combine both images  and answer.\nOne word. ASSISTANT:",
        words,
        legacy is not False,
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [PLACEHOLDER if token == VOCABULARY else token for token in ids] == expected
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (VOCABULARY + 1, 2)


def test_llamas_own_tokenizer_gets_the_ids_of_the_published_checkpoints(shared_data):
    tokenizer = read_tokenizer(shared_data / "tokenizers" / "llama", 32000)
    ids = tokenizer("USER: <image>\nWhat</s>USER:").input_ids
    assert ids == [1, 3148, 1001, 29901, 29871, 32000, 29871, 13, 5618, 2, 3148, 1001, 29901]
    assert tokenizer.pad_token_id == 32001
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(shared_data / "tokenizers/llama/tokenizer.model")
    )
    for text in ("a  b", "two  blanks, three   and\n\n  a line\t.", "naïve 東京 1.00"):
        assert tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)


def test_plain_transformers_reads_the_result(make, own_tower, tmp_path):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    image = Image.new("RGB", (SIDE, SIDE), "red")
    inputs = processor(images=image, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == (SIDE // PATCH) ** 2
    assert model(**inputs).logits.isfinite().all()
    assert model.generation_config.eos_token_id == 2
