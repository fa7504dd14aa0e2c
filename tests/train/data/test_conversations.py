"""Ids and labels, against texts written out by hand and against what inference builds."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import Box, Conversation, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN, character_tokenizer, load_tokenizer
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.protocol import load_protocol
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.train.data.conversations import (
    IGNORED,
    Encoder,
    Example,
    check_llava,
    from_llava,
    from_sample,
    jittered,
    question_of,
)
from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample
from dualfocus_lmms.zoom import DynamicResolution

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
Q = "What is the color of the man's shirt?"
BOX = "[0.20, 0.41, 0.37, 0.74]"
LENGTH = 9  # tokens of an image in these tests

# What each kind of example must look like to the model; what it learns is between « and ».
TWO_ROUNDS = (
    f"{SYSTEM}USER: <image>\nProvide the coordinates of the region this question is asking about: {Q} "
    f"ASSISTANT:« {BOX}</s>»USER: <image>\nCombine these two images and answer the question: {Q}\n"
    f"{SHORT_ANSWER} ASSISTANT:« dark blue</s>»"
)
PLAIN = f"{SYSTEM}USER: <image>\n{Q}\n{SHORT_ANSWER} ASSISTANT:« dark blue</s>»"
RELEASE = (
    f"{SYSTEM}USER: <image>\n"
    f"Please provide the bounding box coordinate of the region this question asks: {Q} ASSISTANT:« {BOX}</s>»"
    "USER: <image>\n"
    f"Please combine the information from these two images and answer this question: {Q} "
    "ASSISTANT:« dark blue</s>»"
)
CHAT = (
    f"{SYSTEM}USER: Hello! ASSISTANT:« Hi, 7 of 9.</s>»"
    "USER: <image>\nWho is it? ASSISTANT:« A man\nand a dog.</s>»"
    "USER: <image>\nAnd here? ASSISTANT:« Nobody.</s>»"
)


@pytest.fixture(scope="module")
def llama(shared_data) -> Any:
    """The real Llama tokenizer, with LLaVA-1.5's image token."""
    return load_tokenizer(str(shared_data / "tokenizers" / "llama"))


def encoder(tokenizer: Any, max_length: int = 10_000, **options: Any) -> Encoder:
    renderer = Renderer(tokenizer, LLAVA, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    return Encoder(renderer, lambda _: LENGTH, tokenizer.eos_token_id, max_length, **options)


def expected(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Ids and labels of a marked text, from the tokenizer's own offsets alone."""
    learned: list[bool] = []
    plain, inside = "", False
    for character in text:
        if character in "«»":
            inside = character == "«"
        else:
            plain += character
            learned.append(inside)
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    encoded = tokenizer(plain, return_offsets_mapping=True)
    ids, labels = [], []
    for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        repeated = LENGTH if token == image else 1
        ids += [token] * repeated
        labels += [token if any(learned[start:end]) else IGNORED] * repeated
    return ids, labels


def solid_image(width: int, height: int, color: str) -> SampleImage:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return SampleImage(file.getvalue(), f"{color}.png")


def a_sample(box: bool = True) -> TrainingSample:
    region = Box(0.2, 0.412, 0.3749, 0.736) if box else None
    crop = solid_image(17, 33, "red") if box else None
    return TrainingSample("1", solid_image(100, 50, "blue"), Q, "dark blue", region, crop)


def chat(*images: str) -> dict[str, Any]:
    texts = [("human", "Hello!"), ("gpt", "Hi, 7 of 9."), ("human", "Who is it?\n<image>")]
    texts += [("gpt", "A man\nand a dog."), ("human", "<image>\nAnd here?"), ("gpt", "Nobody.")]
    turns = [{"from": role, "value": text} for role, text in texts]
    return {"id": "chat", "image": list(images), "conversations": turns}


def colored(name: str) -> Image.Image:
    return Image.new("RGB", (3, 3), name)


def learned_sample(
    protocol: str, box: bool = True, instruction: str = SHORT_ANSWER, macro_only: bool = False
) -> Example:
    return from_sample(a_sample(box), load_protocol(protocol), LLAVA.box_format, instruction, macro_only)


@pytest.mark.parametrize(
    ("example", "text", "sizes"),
    [
        pytest.param(learned_sample("paper"), TWO_ROUNDS, [(100, 50), (17, 33)], id="two rounds"),
        pytest.param(learned_sample("paper", box=False), PLAIN, [(100, 50)], id="one round"),
        pytest.param(learned_sample("paper", macro_only=True), PLAIN, [(100, 50)], id="macro only"),
        pytest.param(
            learned_sample("release", instruction=""), RELEASE, [(100, 50), (17, 33)], id="release wording"
        ),
        pytest.param(
            from_llava(chat("red", "green"), colored), CHAT, [(3, 3), (3, 3)], id="instruction data"
        ),
    ],
)
def test_ids_and_labels_match_the_text(llama, example, text, sizes):
    ids, labels = expected(llama, text)
    encoded = encoder(llama).encode(example)
    assert list(encoded.ids) == ids
    assert list(encoded.labels) == labels
    assert [image.size for image in encoded.images] == sizes
    assert labels.count(llama.eos_token_id) == text.count("»")
    assert encoded.weights == tuple(float(label != IGNORED) for label in labels)


def test_training_ids_start_with_the_prompts_of_inference(llama):
    """The flow asks a scripted model; its conversations, rendered, are prefixes of the trained ids."""
    sample, settings = a_sample(), Settings.of("paper")
    renderer = Renderer(llama, LLAVA, llama.convert_tokens_to_ids(IMAGE_TOKEN))
    backend = FakeBackend({"macro": "x", "locate": BOX, "micro": "dark blue"})
    answer_batch(backend, [question_of(sample, SHORT_ANSWER)], [StopCriteria(9)], settings)
    conversations = {call.stage: call.conversations[0] for call in backend.calls}
    example = from_sample(sample, settings.protocol, LLAVA.box_format, SHORT_ANSWER)
    ids = encoder(llama).encode(example).ids

    locate = renderer.render(conversations["locate"], lambda _: LENGTH).ids
    generated = tuple(llama(f"ASSISTANT: {BOX}</s>", add_special_tokens=False).input_ids)
    reply_ids = generated[len(llama("ASSISTANT:", add_special_tokens=False).input_ids) :]
    assert ids[: len(locate) + len(reply_ids)] == (*locate, *reply_ids)

    turns = conversations["micro"].turns
    micro = Conversation(turns[:1]).assistant(BOX, reply_ids[:-1]).user(turns[2].text, *turns[2].images)
    prompt = renderer.render(micro, lambda _: LENGTH).ids
    assert ids[: len(prompt)] == prompt
    assert conversations["micro"].images[0].size == example.conversation.images[0].size


@pytest.mark.parametrize("protocol", ["paper", "release"])
@pytest.mark.parametrize("resolution", [None, DynamicResolution(28, 56 * 56, 3584 * 3584)])
def test_a_crop_is_learned_at_the_size_at_which_inference_shows_it(protocol, resolution):
    """The flow cuts the region of the sample's own box, training has it cut already."""
    whole = a_sample()
    settings = Settings.of(protocol, select="ppl", grounding="annotated")
    question = dataclasses.replace(question_of(whole, SHORT_ANSWER), box=whole.box)
    backend = FakeBackend({"macro": "x", "micro": "dark blue"}, resolution=resolution)
    (trace,) = answer_batch(backend, [question], [StopCriteria(9)], settings)
    file = io.BytesIO()
    question.image.crop(trace.crop).save(file, "PNG")
    sample = dataclasses.replace(whole, crop=SampleImage(file.getvalue(), "crop.png"))
    learned = from_sample(sample, settings.protocol, LLAVA.box_format, resolution=resolution)
    shown = backend.calls[-1].conversations[0].images[-1]
    assert learned.conversation.images[-1].tobytes() == shown.tobytes()
    enlarged = resolution is not None and protocol == "paper"
    assert (shown.size != question.image.crop(trace.crop).size) is enlarged


@pytest.mark.parametrize(
    ("image", "placeholders", "kept"),
    [("red", 1, 1), (["red"], 1, 1), (None, 0, 0), (None, 1, 0), ([], 1, 0)],
)
def test_instruction_data_with_one_image_or_none(image, placeholders, kept):
    record = {
        "id": 5,
        "image": image,
        "conversations": [
            {"from": "gpt", "value": "I come first and am dropped."},
            {"from": "human", "value": "What is it?\n" + "<image>" * placeholders},
            {"from": "gpt", "value": " red "},
            {"from": "human", "value": "I have no answer."},
        ],
    }
    example = from_llava(record, colored)
    assert example.conversation.turns[0].text == "What is it?"
    assert [turn.role for turn in example.conversation.turns] == ["user", "assistant"]
    assert len(example.conversation.images) == kept
    encoded = encoder(character_tokenizer()).encode(example)
    words = character_tokenizer()
    assert words.decode([label for label in encoded.labels if label != IGNORED]) == " red</s>"


HUMAN, GPT = {"from": "human", "value": "a <image>"}, {"from": "gpt", "value": "b"}


@pytest.mark.parametrize(
    "record",
    [
        {"id": "1", "image": ["x", "y"], "conversations": [HUMAN, GPT]},
        {"id": "1", "image": "x", "conversations": [{"from": "human", "value": "a"}, GPT]},
        {"id": "1", "conversations": [GPT]},
        {"id": "1", "conversations": []},
        {"id": "1", "conversations": None},
        {"id": "1"},
        {"id": "1", "conversations": [HUMAN, HUMAN, GPT]},
        {"id": "1", "conversations": [HUMAN, {"from": "system", "value": "c"}, GPT]},
        {"id": "1", "conversations": [HUMAN, {"from": "gpt", "value": "<image>"}]},
    ],
)
def test_invalid_records_raise_before_training_begins(record):
    with pytest.raises(UserError, match="1"):
        check_llava([{"id": "fine", "image": "x", "conversations": [HUMAN, GPT]}, record])


@pytest.mark.parametrize("record", [chat("red", "green")])
def test_whole_rounds_are_kept_and_no_image_is_cut(llama, record):
    """At every length: the rounds that fit, each with its reply, its closing token and its images."""
    example = from_llava(record, colored)
    whole = encoder(llama).encode(example)
    image = llama.convert_tokens_to_ids(IMAGE_TOKEN)
    ends = [index + 1 for index, label in enumerate(whole.labels) if label == llama.eos_token_id]
    assert len(ends) == 3
    for length in range(1, len(whole.ids) + 2):
        encoded = encoder(llama, length).encode(example)
        fitting = [end for end in ends if end <= length]
        assert (encoded is None) == (not fitting)
        if encoded is not None:
            assert (encoded.rounds, len(encoded.ids)) == (len(fitting), fitting[-1])
            assert encoded.ids == whole.ids[: fitting[-1]]
            assert encoded.labels == whole.labels[: fitting[-1]]
            assert encoded.ids.count(image) == LENGTH * len(encoded.images)
            assert list(encoded.images) == list(whole.images[: len(encoded.images)])


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_jittered_crop_stays_near_the_box_that_is_learned(share):
    """Each edge within its share of the side, not all where they were; the same at every call."""
    image = Image.effect_noise((200, 100), 80).convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    protocol, box = load_protocol("paper"), Box(0.3, 0.2, 0.8, 0.7)  # 100 x 50 pixels
    found = set()
    for number in range(20):
        sample = TrainingSample(
            str(number), SampleImage(file.getvalue()), Q, "blue", box, solid_image(100, 50, "red")
        )
        moved = jittered(sample, share, protocol)
        assert moved.crop.decode().tobytes() == jittered(sample, share, protocol).crop.decode().tobytes()
        assert (moved.box, moved.image, moved.answer) == (box, sample.image, "blue")
        width, height = moved.crop.decode().size
        assert abs(width - 100) <= 200 * share + 1
        assert abs(height - 50) <= 100 * share + 1
        learned = from_sample(moved, protocol, LLAVA.box_format).conversation
        assert learned.turns[1].text == LLAVA.box_format.write(box, (200, 100))
        assert learned.images[-1].size == (width, height)
        found.add((width, height))
    assert len(found) > 10
    assert jittered(sample, 0.0, protocol) is sample
    both = dataclasses.replace(sample, boxes=(box, box), crops=(sample.crop, sample.crop))
    sizes = [crop.decode().size for crop in jittered(both, share, protocol).crops]
    assert sizes[0] != sizes[1]
    assert all(abs(width - 120) <= 240 * share + 2 for width, _ in sizes)  # with 10% on each side
    plain = a_sample(box=False)
    assert jittered(plain, share, protocol) is plain


def test_box_tokens_have_their_own_weight(llama):
    example = from_sample(a_sample(), load_protocol("paper"), LLAVA.box_format)
    encoded = encoder(llama, box_weight=2.5).encode(example)
    weighing = [(token, weight) for token, weight in zip(encoded.ids, encoded.weights, strict=True) if weight]
    assert llama.decode([token for token, weight in weighing if weight == 2.5]) == f"{BOX}</s>"
    assert llama.decode([token for token, weight in weighing if weight == 1.0]) == "dark blue</s>"


def test_a_template_that_does_not_close_a_reply_raises():
    words = character_tokenizer()
    words.chat_template = (
        "{% for turn in messages %}{{ turn['role'] }}: "
        "{% if turn['content'] | length > 1 %}<image>{% endif %}"
        "{{ turn['content'][-1]['text'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    example = Example("1", Conversation().user("a").assistant("b").user("c").assistant("d"))
    with pytest.raises(UserError):
        encoder(words).encode(example)


def test_an_empty_reply_is_its_closing_token():
    words = character_tokenizer()
    encoded = encoder(words).encode(Example("1", Conversation().user("a").assistant("")))
    learned = [label for label in encoded.labels if label != IGNORED]
    assert words.decode(learned) == "</s>"
