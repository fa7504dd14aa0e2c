"""The host's two request forms become the same questions."""

from types import SimpleNamespace

import numpy as np
import pytest
from loguru import logger
from PIL import Image, ImageFile

from dualfocus_lmms import Box, UserError
from dualfocus_lmms.models.host.model import Answering
from dualfocus_lmms.models.host.requests import DEFAULT_NEW_TOKENS, read_limits, read_request

SOURCE = Image.new("L", (7, 5), 99)
DOC = {"picture": SOURCE, "asked": "What is it?"}
PROMPT = "What is it?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
DOCS = {"task": {"test": [DOC]}}
GREEDY = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "until": ["\n\n"]}


def simple(prompt=PROMPT, images=None, gen_kwargs=GREEDY, metadata=None):
    images = [SOURCE] if images is None else images
    arguments = (prompt, gen_kwargs, lambda doc: images, 0, "task", "test")
    return read_request(SimpleNamespace(args=arguments, metadata=metadata or {}), DOCS, chat=False)


def chat(messages, metadata=None):
    arguments = (PROMPT, lambda doc: messages, GREEDY, 0, "task", "test")
    return read_request(SimpleNamespace(args=arguments, metadata=metadata or {}), DOCS, chat=True)


def turn(*parts, role="user"):
    return {"role": role, "content": list(parts)}


IMAGE, TEXT = {"type": "image", "url": SOURCE}, {"type": "text", "text": PROMPT}


def test_both_forms_give_the_same_question():
    questions = [simple().question(), chat([turn(IMAGE, TEXT)]).question()]
    for question in questions:
        assert (question.prompt, question.text) == (PROMPT, "What is it?")
        assert (question.image.mode, question.image.size) == ("RGB", (7, 5))
        assert {name: question.key[name] for name in ("task", "split", "doc_id")} == {
            "task": "task",
            "split": "test",
            "doc_id": 0,
        }
    assert questions[0].key == questions[1].key


def test_the_task_itself_says_what_the_bare_question_is():
    metadata = {"dualfocus": {"question": "asked"}}
    odd = "Regard the picture. What is it? Thank you."
    assert simple(odd, metadata=metadata).question().text == "What is it?"
    assert simple(odd).question().text == odd
    with pytest.raises(UserError):
        simple(odd, metadata={"dualfocus": {"question": "no_such_column"}}).question()


@pytest.mark.parametrize("value", [[0.1, 0.25, 0.5, 1.0], (0.1, 0.25, 0.5, 1), np.array([0.1, 0.25, 0.5, 1])])
def test_the_task_says_which_column_holds_the_annotated_box(monkeypatch, value):
    monkeypatch.setitem(DOC, "region", value)
    metadata = {"dualfocus": {"box": "region"}}
    assert simple(metadata=metadata).question().box == Box(0.1, 0.25, 0.5, 1)
    assert chat([turn(IMAGE, TEXT)], metadata).question().box == Box(0.1, 0.25, 0.5, 1)
    assert simple().question().box is None
    monkeypatch.setitem(DOC, "region", None)
    assert simple(metadata=metadata).question().box is None
    with pytest.raises(UserError):
        simple(metadata={"dualfocus": {"box": "no_such_column"}}).question()


def test_the_task_says_which_column_holds_several_boxes(monkeypatch):
    metadata = {"dualfocus": {"boxes": "regions"}}
    monkeypatch.setitem(DOC, "regions", [[0.1, 0.25, 0.5, 1.0], [0, 0, 0.5, 0.5]])
    assert simple(metadata=metadata).question().boxes == (Box(0.1, 0.25, 0.5, 1), Box(0, 0, 0.5, 0.5))
    assert simple().question().boxes == ()
    monkeypatch.setitem(DOC, "regions", None)
    assert simple(metadata=metadata).question().boxes == ()
    for value in ("[0, 0, 1, 1]", 3, [0.1, 0.2, 0.3, 0.4], [[0.5, 0.2, 0.3, 0.4]]):
        monkeypatch.setitem(DOC, "regions", value)
        with pytest.raises(UserError, match="'regions'"):
            simple(metadata=metadata).question()


@pytest.mark.parametrize(
    "value",
    [
        [],
        [0.1, 0.2, 0.3],
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [0.5, 0.2, 0.3, 0.4],
        [0.1, 0.2, 0.3, 1.5],
        [-0.1, 0.2, 0.3, 0.4],
        [10, 20, 30, 40],
        [0.1, 0.2, 0.3, float("nan")],
        [0.1, 0.2, 0.3, None],
        ["a", "b", "c", "d"],
        "[0.1, 0.2, 0.3, 0.4]",
        {"x0": 0.1, "y0": 0.2, "x1": 0.3, "y1": 0.4},
        0.5,
        "",
    ],
)
def test_a_malformed_annotated_box_is_refused(monkeypatch, value):
    monkeypatch.setitem(DOC, "region", value)
    with pytest.raises(UserError):
        simple(metadata={"dualfocus": {"box": "region"}}).question()


def test_the_task_says_how_a_short_question_reads(monkeypatch):
    wording = "In these {two} images: {question}\nBriefly"
    monkeypatch.setitem(DOC, "hint", "A rule {x}.")
    metadata = {"dualfocus": {"question": "asked", "short": wording}}
    short = "In these {two} images: What is it?\nBriefly"
    assert simple(metadata=metadata).question().short == short
    assert chat([turn(IMAGE, TEXT)], {"dualfocus": {"short": wording}}).question().short == short
    metadata["dualfocus"]["context"] = "hint"
    expected = "In these {two} images: A rule {x}.\nWhat is it?\nBriefly"
    assert simple(metadata=metadata).question().short == expected
    for empty in ("", None):
        monkeypatch.setitem(DOC, "hint", empty)
        assert simple(metadata=metadata).question().short == short
    assert simple().question().short is None


@pytest.mark.parametrize(
    "wrong", [{"short": "Briefly!"}, {"short": 3}, {"short": "{question}", "context": "no_such_column"}]
)
def test_a_wording_without_a_question_is_refused(wrong):
    with pytest.raises(UserError):
        simple(metadata={"dualfocus": wrong}).question()


@pytest.mark.parametrize(
    ("columns", "named", "expected"),
    [
        ({"options": ["cat", "dog"]}, "options", ("cat", "dog")),
        ({"options": []}, "options", ()),
        ({"options": None}, "options", ()),
        ({"A": "cat", "B": "dog", "C": None, "D": "cow"}, ["A", "B", "C", "D"], ("cat", "dog")),
        ({"A": "cat", "B": "dog", "C": float("nan")}, ["A", "B", "C"], ("cat", "dog")),
        ({"A": "cat", "B": "dog"}, ["A", "B"], ("cat", "dog")),
        ({"A": "cat", "B": " "}, ["A", "B"], ("cat",)),
    ],
)
def test_the_task_says_where_the_options_are(monkeypatch, columns, named, expected):
    for name, value in columns.items():
        monkeypatch.setitem(DOC, name, value)
    metadata = {"dualfocus": {"options": named}}
    assert simple(metadata=metadata).question().options == expected
    assert chat([turn(IMAGE, TEXT)], metadata).question().options == expected
    assert simple().question().options == ()


@pytest.mark.parametrize("value", ["cat, dog", ["cat", 3], ["cat", ""], 5])
def test_options_that_are_no_texts_are_refused(monkeypatch, value):
    monkeypatch.setitem(DOC, "options", value)
    for named in ("options", "no_such_column", ["A", "B"]):
        with pytest.raises(UserError):
            simple(metadata={"dualfocus": {"options": named}}).question()


def test_another_prompt_or_another_limit_gives_another_context():
    others = [
        simple(PROMPT + " "),
        simple(gen_kwargs=GREEDY | {"max_new_tokens": 17}),
        simple(gen_kwargs=GREEDY | {"until": ["\n"]}),
    ]
    assert simple().key["context"] not in [other.key["context"] for other in others]
    assert simple().key == simple(gen_kwargs=GREEDY | {"top_p": 0.5}).key
    assert simple("half a pair \ud800").key["context"] != simple().key["context"]


@pytest.mark.parametrize("images", [[], [SOURCE, SOURCE], ["video.mp4"], [{"audio": 1}]])
def test_a_request_without_exactly_one_image_is_refused(images):
    with pytest.raises(UserError):
        simple(images=images).question()


@pytest.mark.parametrize(
    "messages",
    [
        [turn(TEXT)],
        [turn(IMAGE, IMAGE, TEXT)],
        [turn(IMAGE, TEXT), turn(TEXT, role="assistant"), turn(TEXT)],
        [turn({"type": "video", "url": "video.mp4"}, TEXT)],
    ],
)
def test_a_chat_request_that_is_not_one_question_about_one_image_is_refused(messages):
    with pytest.raises(UserError):
        chat(messages).question()


def test_a_truncated_image_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as the host sets it
    path = tmp_path / "broken.png"
    Image.new("RGB", (400, 400), (9, 200, 30)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError):
        simple(images=[Image.open(path)]).question()


def test_a_truncated_image_is_refused_where_the_task_decodes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "broken.png"
    Image.new("RGB", (400, 400), (9, 200, 30)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    arguments = (PROMPT, GREEDY, lambda doc: [Image.open(path).convert("RGB")], 0, "task", "test")
    request = read_request(SimpleNamespace(args=arguments, metadata={}), DOCS, chat=False)
    with pytest.raises(UserError, match=r"image of Document 0 of task .* truncated"):
        request.question()


def test_a_task_may_decode_an_image_above_the_limit_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow refuses more than twice as many
    path = tmp_path / "large.png"
    SOURCE.save(path)
    arguments = (PROMPT, GREEDY, lambda doc: [Image.open(path).convert("RGB")], 0, "task", "test")
    request = read_request(SimpleNamespace(args=arguments, metadata={}), DOCS, chat=False)
    assert request.question().image.size == SOURCE.size
    monkeypatch.setenv("DUALFOCUS_MAX_PIXELS", "10")
    with pytest.raises(
        UserError, match=r"image of Document 0 of task .* is too large .*DUALFOCUS_MAX_PIXELS"
    ):
        request.question()


@pytest.mark.parametrize("decode", [Image.open, lambda path: Image.open(path).convert("RGB")])
def test_a_rotated_photo_is_upright_whatever_the_task(tmp_path, decode):
    scene = Image.linear_gradient("L").resize((8, 6)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    scene.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "photo.png", exif=exif)
    image = decode(tmp_path / "photo.png")
    for question in (simple(images=[image]), chat([turn({"type": "image", "url": image}, TEXT)])):
        assert question.question().image.tobytes() == scene.tobytes()


def test_a_transparent_image_lies_on_white_whatever_the_task():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (0, 0, 0, 255))
    seen = simple(images=[image]).question().image
    assert [seen.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_sixteen_bit_grey_is_not_cut_off_whatever_the_task():
    image = Image.fromarray(np.full((5, 7), 9 * 257, np.uint16))
    assert simple(images=[image]).question().image.getpixel((0, 0)) == (9, 9, 9)


def test_an_empty_question_is_refused():
    with pytest.raises(UserError):
        simple(prompt="  ").question()


def test_limits_come_from_the_tasks_generation_settings_which_stay_untouched():
    settings = {"max_new_tokens": 16, "until": "\n", "temperature": 0}
    limits = read_limits(settings)
    assert (limits.max_new_tokens, limits.stop) == (16, ("\n",))
    assert settings == {"max_new_tokens": 16, "until": "\n", "temperature": 0}
    assert read_limits({}).max_new_tokens == DEFAULT_NEW_TOKENS
    assert read_limits({"max_new_tokens": 100.0}).max_new_tokens == 100
    assert read_limits({"until": ["a", "b"]}).stop == ("a", "b")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"num_beams": 4},
        {"num_return_sequences": 2},
        {"temperature": 0.7},
        *({"max_new_tokens": given} for given in (-3, 0, 2.5, "many", None, True)),
    ],
)
def test_sampling_beams_and_impossible_lengths_are_refused(settings):
    with pytest.raises(UserError):
        read_limits(settings)


def test_the_first_documents_that_the_host_looks_at_may_be_large(monkeypatch):
    """The host makes the model, then the tasks, of which it reads one document each."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    Answering()
    assert Image.MAX_IMAGE_PIXELS == 2**30
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("settings", [{"temperature": 0.7, "do_sample": False}, {"temperature": None}])
def test_a_temperature_is_sampling_unless_the_task_says_no(settings):
    assert read_limits(settings).max_new_tokens == DEFAULT_NEW_TOKENS


def test_settings_that_change_nothing_are_named_once():
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="WARNING")
    for _ in range(3):
        read_limits({"max_new_tokens": 9, "image_aspect_ratio": "pad", "max_gen_toks": 5, "top_k": 3})
    logger.remove(sink)
    [message] = said
    assert "image_aspect_ratio, max_gen_toks" in message
    assert "top_k" not in message.partition(":")[0]
