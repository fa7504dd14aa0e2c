"""Tokenizers and chat templates of transformers, and the vocabularies that we read for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

LookUp = Callable[[str], Any]
Make = Callable[..., Any]

MARKER = "\ue0001\ue001"
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Is  it red? "}]},
    {"role": "assistant", "content": [{"type": "text", "text": MARKER}]},
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:"
    "{% if message['content'] is string %}flat{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize("opened", [True, False])
def test_a_template_gets_parts_as_they_are(make_words: Make, opened: bool) -> None:
    """The renderer finds turns again by markers: blanks and marks must come out as they went in."""
    text = make_words().apply_chat_template(
        MESSAGES, chat_template=TEMPLATE, add_generation_prompt=opened, tokenize=False
    )
    said = f"<s>user:<image>\n Is  it red? </s>assistant:{MARKER}</s>"
    assert text == said + "assistant:" * opened, "apply_chat_template"


def test_a_tokenizer_keeps_its_template(make_words: Make, tmp_path: Path) -> None:
    """The renderer and the training: `chat_template` is what a saved tokenizer brings, or None."""
    words = make_words()
    assert words.chat_template is None, "PreTrainedTokenizerFast.chat_template"
    words.chat_template = TEMPLATE
    words.save_pretrained(tmp_path)
    assert type(words).from_pretrained(tmp_path).chat_template == TEMPLATE, "save_pretrained"


def test_a_tokenizer_is_made_of_a_backend(make_words: Make) -> None:
    """The shipped model's words: a `tokenizers` object with tokens added, called without special ones."""
    words = make_words()
    assert words("a<image>", add_special_tokens=False).input_ids == [words.convert_tokens_to_ids("a"), 4]
    assert (words.bos_token_id, words.eos_token_id, words.pad_token_id) == (1, 2, 3), "roles by name"
    assert words.convert_ids_to_tokens(4) == "<image>", "convert_ids_to_tokens"


def test_decoding_changes_no_blank(make_words: Make) -> None:
    """Answers and their stop strings: blanks before marks are part of what was said."""
    words, text = make_words(), "It 's red , is n't it ?"
    ids = words(text, add_special_tokens=False).input_ids
    assert words.decode([*ids, 2], skip_special_tokens=True) == text, "decode: clean_up_tokenization_spaces"


def test_named_tokens_become_attributes(make_words: Make) -> None:
    """InternVL's processor reads them off the tokenizer; ours makes tiny ones with `extra_special_tokens`."""
    words = make_words(specials=["<img>"], extra_special_tokens={"start_image_token": "<img>"})
    assert words.start_image_token == "<img>", "extra_special_tokens"


# --- Llama's vocabulary ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `tokenizer.model` of SentencePiece, as Llama's is."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["is the cat red", "the red cat is there", "a cat  and a dog"] * 4),
        model_writer=written, vocab_size=300, model_type="bpe", byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return folder


def llama(foreign: LookUp, folder: Path, legacy: bool) -> Any:
    """Llama's tokenizer with pieces merged by score, as the conversion makes it."""
    from tokenizers.models import BPE

    words = foreign("transformers:LlamaTokenizer.from_pretrained")(folder, legacy=legacy, add_bos_token=True)
    read = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {read.id_to_piece(number): number for number in range(read.get_piece_size())}
    scores = {name: read.get_score(number) for name, number in vocabulary.items()}
    merges = foreign("transformers.convert_slow_tokenizer:generate_merges")(vocabulary, scores)
    words.backend_tokenizer.model = BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True)
    return foreign("transformers:PreTrainedTokenizerFast")(
        tokenizer_object=words.backend_tokenizer, unk_token=words.unk_token, bos_token=words.bos_token,
        eos_token=words.eos_token,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["the cat", "is  the   red dog", "é?"])
def test_llamas_pieces_are_those_of_sentencepiece(foreign: LookUp, pieces: Path, text: str) -> None:
    """The conversion: other pieces than in training, and a model would read other words, without a word."""
    read = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    expected = read.encode(text)
    words = llama(foreign, pieces, legacy=True)
    assert words(text).input_ids == [words.bos_token_id, *expected], "LlamaTokenizer.backend_tokenizer"


def test_a_legacy_tokenizer_puts_a_blank_after_special_tokens(foreign: LookUp, pieces: Path) -> None:
    """The conversion writes the blank into the chat template where the tokenizer does not put it there."""
    old, new = (llama(foreign, pieces, legacy) for legacy in (True, False))
    blanks = [words.tokenize("</s>cat")[1].startswith("▁") for words in (old, new)]
    assert blanks == [True, False], "LlamaTokenizer(legacy=...)"


def test_merges_come_in_the_order_of_scores(foreign: LookUp) -> None:
    """The conversion: a higher score is merged first, whatever the ids are."""
    merges = foreign("transformers.convert_slow_tokenizer:generate_merges")
    vocabulary = {"x": 0, "y": 1, "xy": 2, "yx": 3}
    scores = {"x": 0.0, "y": 0.0, "xy": -2.0, "yx": -1.0}
    assert merges(vocabulary, scores) == [("y", "x"), ("x", "y")], "generate_merges"


# --- Qwen's vocabulary -------------------------------------------------------------------------------------


def test_a_vocabulary_of_ranks_becomes_a_tokenizer(foreign: LookUp, tmp_path: Path) -> None:
    """Qwen-VL's tokenizer: `qwen.tiktoken`, read by a method of ours that the converter calls."""
    ranks = [*(bytes([number]) for number in range(256)), b"ca", b"cat"]
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks))
    (tmp_path / "ranks").write_text("\n".join(lines))
    read: list[str] = []

    class Converter(foreign("transformers.convert_slow_tokenizer:TikTokenConverter")):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            read.append(tiktoken_url)
            rows = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines())
            return {base64.b64decode(token): int(rank) for token, rank in rows}

    pattern = foreign("transformers.models.qwen2.tokenization_qwen2:PRETOKENIZE_REGEX")
    words = Converter(vocab_file=str(tmp_path / "ranks"), pattern=pattern).converted()
    assert set(read) == {str(tmp_path / "ranks")}, "TikTokenConverter.load_tiktoken_bpe"
    assert words.encode("cat c1").ids == [257, 32, ord("c"), ord("1")], "TikTokenConverter.converted"


def test_digits_stand_alone_in_qwens_pattern(foreign: LookUp) -> None:
    """The drafts of boxes: each digit of a coordinate is a token of its own."""
    from tokenizers import Regex, pre_tokenizers

    pattern = Regex(foreign("transformers.models.qwen2.tokenization_qwen2:PRETOKENIZE_REGEX"))
    cut = pre_tokenizers.Split(pattern, "isolated").pre_tokenize_str("(12,345)")
    assert [piece for piece, _ in cut] == ["(", "1", "2", ",", "3", "4", "5", ")"], "PRETOKENIZE_REGEX"


def test_a_tokenizer_is_made_from_files_by_convert_to_native_format(
    foreign: LookUp, make_words: Make, tmp_path: Path
) -> None:
    """Qwen-VL's tokenizer overrides it: uncalled, its published files could not be read."""
    base = foreign("transformers:PreTrainedTokenizerFast")
    assert foreign("transformers:PreTrainedTokenizerFast.convert_to_native_format")
    inside = make_words().backend_tokenizer
    given: list[dict[str, Any]] = []

    class Words(base):
        vocab_files_names = {"vocab_file": "own.ranks", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012

        @classmethod
        def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
            given.append(dict(kwargs))
            if kwargs.get("tokenizer_file"):
                return super().convert_to_native_format(trust_remote_code, **kwargs)
            return kwargs | {"tokenizer_object": inside, "eos_token": "</s>"}

    class Config(foreign("transformers:PreTrainedConfig")):
        model_type = "contract_words"

    foreign("transformers:AutoConfig.register")(Config.model_type, Config, exist_ok=True)
    foreign("transformers:AutoTokenizer.register")(Config, tokenizer_class=Words, exist_ok=True)
    Config().save_pretrained(tmp_path)
    (tmp_path / "own.ranks").write_text("x")
    words = foreign("transformers:AutoTokenizer.from_pretrained")(tmp_path, trust_remote_code=False)
    assert type(words) is Words, "AutoTokenizer.register"
    assert given, "PreTrainedTokenizerFast.convert_to_native_format is no longer called"
    assert given[0].get("vocab_file") == str(tmp_path / "own.ranks"), "vocab_files_names"
    assert words("a").input_ids == inside.encode("a").ids, "tokenizer_object"
    words.save_pretrained(tmp_path / "saved")
    again = Words.from_pretrained(tmp_path / "saved")
    assert again("a").input_ids == inside.encode("a").ids, "convert_to_native_format of a saved copy"
    assert again.eos_token == "</s>", "convert_to_native_format of a saved copy"
