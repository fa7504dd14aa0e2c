"""Which template a conversation is written by, of those that a checkpoint and its family have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import Conversation, UserError
from dualfocus_lmms.models.checkpoint.chat_template import choose_template
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.families.llava import LLAVA
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
PICTURE = Image.new("RGB", (8, 8))


def chosen(template: Any, processors: Any = None) -> str:
    words: Any = character_tokenizer()
    words.chat_template = template
    return choose_template(words, LLAVA, [IMAGE_TOKEN], processors)


@pytest.mark.parametrize(
    ("processors", "tokenizers", "wanted"),
    [
        (GOOD + " ", GOOD, GOOD + " "),
        (None, GOOD, GOOD),
        ({"default": GOOD, "tool_use": BROKEN}, None, GOOD),
        (None, {"default": GOOD, "rag": TEXT_ONLY}, GOOD),
        ([{"name": "default", "template": GOOD}], None, GOOD),
        ({"tool_use": GOOD}, None, LLAVA.chat_template),
        (GOOD, TEXT_ONLY, GOOD),
        (TEXT_ONLY, GOOD, GOOD),
        (BROKEN, TEXT_ONLY, LLAVA.chat_template),
        (None, None, LLAVA.chat_template),
        (None, SWITCHED, SWITCHED),
    ],
)
def test_the_first_that_writes_an_image_is_taken(processors: Any, tokenizers: Any, wanted: str):
    assert chosen(tokenizers, processors) == wanted


def test_a_template_that_cannot_leave_reasoning_out_is_refused():
    with pytest.raises(UserError, match="think"):
        chosen(THINKS)


def test_without_a_template_for_images_the_message_names_the_placeholder():
    words: Any = character_tokenizer()
    words.chat_template = TEXT_ONLY
    with pytest.raises(UserError, match=IMAGE_TOKEN):
        choose_template(words, LLAVA, ["<picture>", IMAGE_TOKEN + "!"])


def test_a_reply_stands_where_it_would_be_generated_without_reasoning():
    """The empty reasoning belongs to the turn that is opened; a reply follows it without a blank."""
    words: Any = character_tokenizer()
    words.chat_template = SWITCHED
    renderer = Renderer(words, LLAVA, words.convert_tokens_to_ids(IMAGE_TOKEN))
    conversation = Conversation().user("where?", PICTURE)
    opened = renderer.render(conversation, lambda _: 1).ids
    replied = renderer.render(conversation.assistant("here").user("what?"), lambda _: 1)
    start, length = replied.replies[0]
    assert replied.ids[:start] == opened
    assert words.decode(replied.ids[start : start + length]) == "here"
    assert words.decode(opened).endswith("assistant: <think>\n\n</think>\n\n")


def test_the_template_of_a_published_family_opens_no_reasoning(shared_data: Path):
    template = (shared_data / "checkpoints" / "qwen3.5-family-partial" / "chat_template.jinja").read_text(
        "utf-8"
    )
    words: Any = character_tokenizer()
    words.chat_template = template
    assert choose_template(words, LLAVA, ["<|image_pad|>"]) == template
