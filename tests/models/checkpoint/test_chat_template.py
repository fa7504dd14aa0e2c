"""Which template a conversation is written by, of those that a checkpoint and its family have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from PIL import Image

from dualfocus_lmms import Conversation, Family, UserError
from dualfocus_lmms.models.checkpoint.chat_template import choose_template, read_template
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.families.generic import GENERIC
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.families.llava_next import LLAVA_NEXT
from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN, character_tokenizer

HEAD = "{% for message in messages %}{{ message['role'] }}: "
PARTS = (
    "{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}</s>{% endfor %}"
)
GOOD = HEAD + PARTS + "{% if add_generation_prompt %}assistant: {% endif %}"
TEXT_ONLY = HEAD + "{{ message['content'] | trim }}{% endfor %}"
BROKEN = HEAD + "{{ raise_exception('no images') }}{% endfor %}"
THINKS = HEAD + PARTS + "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
SWITCHED = (
    HEAD
    + PARTS
    + "{% if add_generation_prompt %}assistant: {% if enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
GEMMAS = SWITCHED.replace("<think>\n\n</think>\n\n", "<|channel>thought\n<channel|>")
IMAGE = Image.new("RGB", (8, 8))


# As the hub's llava-1.5 checkpoints: the turns of vicuna_v1 without its sentence and without </s>.
HUBS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# One sentence or one </s> more, and it is somebody's own.
CLOSED = HUBS.replace("part['text'] + ' '", "part['text'] + (' ' if message['role'] == 'user' else '</s>')")
GREETED = "{{ 'Answer in one word. ' }}" + HUBS


def chosen(
    template: Any, processors: Any = None, asked: str = "auto", family: Family = LLAVA
) -> tuple[str, str, bool]:
    """The template's text, whose it is, and whether the family's stands for another."""
    words: Any = character_tokenizer()
    words.chat_template = template
    found = choose_template(words, family, [IMAGE_TOKEN], processors, asked)
    assert found.choice.asked == asked
    return found.text, found.choice.used, found.choice.replaced


@pytest.mark.parametrize(
    ("processors", "tokenizers", "wanted"),
    [
        (GOOD + " ", GOOD, GOOD + " "),
        (None, GOOD, GOOD),
        ({"default": GOOD, "tool_use": BROKEN}, None, GOOD),
        (None, {"default": GOOD, "rag": TEXT_ONLY}, GOOD),
        ([{"name": "default", "template": GOOD}], None, GOOD),
        (GOOD, TEXT_ONLY, GOOD),
        (TEXT_ONLY, GOOD, GOOD),
        (None, SWITCHED, SWITCHED),
        (None, CLOSED, CLOSED),
        (None, GREETED, GREETED),
        (LLAVA.chat_template, None, LLAVA.chat_template),
    ],
)
def test_the_checkpoints_first_that_writes_an_image_is_taken(processors: Any, tokenizers: Any, wanted: str):
    for asked in ("auto", "checkpoint"):
        assert chosen(tokenizers, processors, asked) == (wanted, "checkpoint", False)
    assert chosen(tokenizers, processors, "family") == (LLAVA.chat_template, "family", False)


@pytest.mark.parametrize("given", [None, {"tool_use": GOOD}])
def test_a_checkpoint_without_a_template_gets_that_of_its_family(given: Any):
    assert chosen(given) == chosen(None, given) == (LLAVA.chat_template, "family", False)
    with pytest.raises(UserError, match="chat_template=family"):
        chosen(given, asked="checkpoint")


@pytest.mark.parametrize(("processors", "tokenizers"), [(HUBS, None), (None, HUBS), (HUBS, GOOD)])
def test_the_hubs_rewording_of_vicuna_v1_is_replaced_wherever_it_lies(processors: Any, tokenizers: Any):
    assert chosen(tokenizers, processors) == (LLAVA.chat_template, "family", True)
    assert chosen(tokenizers, processors, "checkpoint") == (HUBS, "checkpoint", False)
    assert chosen(tokenizers, processors, family=LLAVA_NEXT) == (HUBS, "checkpoint", False)


def test_where_a_template_is_for_text_alone_that_of_the_family_is_used_with_a_warning():
    """Llama 3's own, of a model with LLaVA's architecture: vicuna_v1 may be wrong there."""
    for processors, tokenizers in ((BROKEN, TEXT_ONLY), (None, TEXT_ONLY)):
        for family in (LLAVA, LLAVA_NEXT):
            warnings: list[str] = []
            sink = logger.add(warnings.append, level="WARNING")
            used = chosen(tokenizers, processors, family=family)
            logger.remove(sink)
            assert (used, len(warnings)) == ((family.chat_template, "family", False), 1)
            assert chosen(tokenizers, processors, "family", family)[1] == "family"
            with pytest.raises(UserError, match="chat_template=family"):
                chosen(tokenizers, processors, "checkpoint", family)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(UserError, match="auto"):
        chosen(GOOD, asked="vicuna_v1")


def test_a_family_without_a_template_of_its_own_gives_none():
    with pytest.raises(UserError, match="generic"):
        chosen(GOOD, asked="family", family=GENERIC)
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        chosen(None, family=GENERIC)


@pytest.mark.parametrize("layout", ["chat_template.jinja", "chat_template.json", "processor_config.json"])
def test_a_template_is_found_in_every_layout_of_files(tmp_path: Path, layout: str):
    text = HUBS if layout.endswith("jinja") else json.dumps({"chat_template": HUBS})
    (tmp_path / layout).write_text(text, encoding="utf-8")
    assert read_template(str(tmp_path)) == HUBS


def test_a_template_is_found_among_the_tokenizers_settings(tmp_path: Path):
    assert read_template(str(tmp_path)) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": HUBS}))
    assert read_template(str(tmp_path)) == HUBS


@pytest.mark.parametrize("tag", ["<think>", "<|channel>thought"])
def test_a_template_that_cannot_leave_reasoning_out_is_refused(tag: str):
    with pytest.raises(UserError, match="enable_thinking"):
        chosen(THINKS.replace("<think>", tag))


def test_without_a_template_for_images_the_message_names_the_placeholder():
    words: Any = character_tokenizer()
    words.chat_template = TEXT_ONLY
    with pytest.raises(UserError, match=IMAGE_TOKEN):
        choose_template(words, LLAVA, ["<picture>", IMAGE_TOKEN + "!"], asked="family")


@pytest.mark.parametrize(
    ("template", "empty"),
    [(SWITCHED, "<think>\n\n</think>\n\n"), (GEMMAS, "<|channel>thought\n<channel|>")],
)
def test_a_reply_stands_where_it_would_be_generated_without_reasoning(template: str, empty: str):
    """The empty reasoning belongs to the turn that is opened; a reply follows it without a blank."""
    words: Any = character_tokenizer()
    words.chat_template = template
    renderer = Renderer(words, LLAVA, words.convert_tokens_to_ids(IMAGE_TOKEN))
    conversation = Conversation().user("where?", IMAGE)
    opened = renderer.render(conversation, lambda _: 1).ids
    replied = renderer.render(conversation.assistant("here").user("what?"), lambda _: 1)
    start, length = replied.replies[0]
    assert replied.ids[:start] == opened
    assert words.decode(replied.ids[start : start + length]) == "here"
    assert words.decode(opened).endswith("assistant: " + empty)


def test_the_template_of_a_published_family_opens_no_reasoning(shared_data: Path):
    template = (shared_data / "checkpoints" / "qwen3.5-family-partial" / "chat_template.jinja").read_text(
        "utf-8"
    )
    words: Any = character_tokenizer()
    words.chat_template = template
    assert choose_template(words, LLAVA, ["<|image_pad|>"]).text == template
