"""Token ids of conversations, against transformers' own processor and LLaVA's vicuna_v1 text."""

from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import Conversation, UserError
from dualfocus_lmms.models.checkpoint.chat_template import choose_template
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN, character_tokenizer, load_tokenizer

IMAGE, CROP = Image.new("RGB", (8, 6)), Image.new("RGB", (3, 3))
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TWO_ROUNDS = (
    f"{SYSTEM} USER: <image>\nWhere is it? ASSISTANT: [0.20, 0.41, 0.37, 0.74]</s>"
    "USER: <image>\nWhat is it? ASSISTANT:"
)
# The template of the llava-hf checkpoints on the hub, whose turns end with a blank, not a closing token.
HUB_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def llama(shared_data) -> Any:
    """The real Llama tokenizer, with LLaVA-1.5's image token."""
    return load_tokenizer(str(shared_data / "tokenizers" / "llama"))


def renderer(tokenizer: Any) -> Renderer:
    """With the tokenizer's own template where it has one, else the family's."""
    asked = "checkpoint" if tokenizer.chat_template else "family"
    template = choose_template(tokenizer, LLAVA, [IMAGE_TOKEN], asked=asked)
    return Renderer(tokenizer, LLAVA, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), template)


def two_rounds(tokens: tuple[int, ...] | None) -> Conversation:
    resolve_path = Conversation().user("Where is it?", IMAGE).assistant("[0.20, 0.41, 0.37, 0.74]", tokens)
    return resolve_path.user("What is it?", CROP)


def test_vicuna_v1_is_exact_to_the_character(llama):
    ids = renderer(llama).render(two_rounds(None), lambda _: 1).ids
    assert list(ids) == llama(TWO_ROUNDS).input_ids


def test_a_generated_reply_is_continued_with_its_own_tokens(llama):
    said = tuple(llama("[0.20, 0.41, 0.37, 0.74]", add_special_tokens=False).input_ids)
    ids = renderer(llama).render(two_rounds(said), lambda _: 1).ids
    assert list(ids) == llama(TWO_ROUNDS).input_ids
    odd = (*said, 29871)  # a blank that re-tokenised text would not have
    continued = renderer(llama).render(two_rounds(odd), lambda _: 1).ids
    at = ids.index(said[0])
    assert continued == (*ids[:at], *odd, *ids[at + len(said) :])


def test_a_reply_without_tokens_is_read_as_the_model_would_say_it():
    words = character_tokenizer()
    make = renderer(words)
    box = "[0.20, 0.41, 0.37, 0.74]"
    said = make.render(two_rounds(make.reply(box)), lambda _: 4)
    given = make.render(two_rounds(None), lambda _: 4)
    assert (given.ids, given.replies, given.spans) == (said.ids, said.replies, said.spans)
    assert len(given.replies) == 1


# No blank before a reply, and "])" behind it, which is one token of Llama's where it is not kept apart.
CLOSE_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>("
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %})"
    "{% endfor %}{% if add_generation_prompt %}<assistant>({% endif %}"
)


@pytest.mark.parametrize("template", [None, HUB_TEMPLATE, CLOSE_TEMPLATE])
def test_a_reply_without_tokens_is_kept_apart_from_the_template(llama, template):
    llama.chat_template = template
    try:
        make = renderer(llama)
        said = make.reply("[0.20, 0.41, 0.37, 0.74]")
        asked = make.render(Conversation().user("Where is it?", IMAGE), lambda _: 4).ids
        given = make.render(two_rounds(None), lambda _: 4).ids
        assert given == make.render(two_rounds(said), lambda _: 4).ids
        assert given[: len(asked) + len(said)] == (*asked, *said)
    finally:
        llama.chat_template = None


def test_a_prefix_of_a_conversation_renders_to_a_prefix_of_its_ids(llama):
    said = (518, 29900, 29962)
    make = renderer(llama)
    resolve_path = make.render(Conversation().user("Where is it?", IMAGE), lambda _: 4).ids
    both = make.render(two_rounds(said), lambda _: 4).ids
    assert both[: len(resolve_path) + len(said)] == (*resolve_path, *said)


def test_the_tokenizers_own_template_comes_first(llama):
    llama.chat_template = HUB_TEMPLATE
    try:
        ids = renderer(llama).render(two_rounds((5159,)), lambda _: 1).ids
    finally:
        llama.chat_template = None
    before, after = "USER: <image>\nWhere is it? ASSISTANT: []", " USER: <image>\nWhat is it? ASSISTANT:"
    assert list(ids) == llama(before + after).input_ids


def test_ids_and_images_equal_those_of_transformers_processor(llama):
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        images, llama, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    theirs = processor(images=[IMAGE, CROP], text=TWO_ROUNDS)["input_ids"][0]
    ours = renderer(llama).render(two_rounds(None), lambda _: 16)
    assert list(ours.ids) == list(theirs)
    image_id = llama.convert_tokens_to_ids(IMAGE_TOKEN)
    assert [length for _, length in ours.spans] == [16, 16]
    assert all(ours.ids[start : start + 16] == (image_id,) * 16 for start, _ in ours.spans)
    assert ours.images == (IMAGE, CROP)


def test_a_question_that_contains_the_image_placeholder_is_refused():
    words = character_tokenizer()
    with pytest.raises(UserError):
        renderer(words).render(Conversation().user("What is <image> here?", IMAGE), lambda _: 1)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "closing"), [(None, "</s>"), (HUB_TEMPLATE, None), (CHATML, "<|im_end|>")]
)
def test_a_reply_ends_with_the_special_token_by_which_the_template_closes_it(template, closing):
    words = character_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    words.chat_template = template
    wanted = set() if closing is None else {words.convert_tokens_to_ids(closing)}
    assert renderer(words).closing_ids == wanted
