"""Where things are on the image of a trace, in which colour, and what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from dualfocus_lmms import DualFocusModel, Trace, UserError
from dualfocus_lmms import visualize as pic
from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.testing import FakeBackend, Reply

GREY, GREEN = (122, 116, 104), (10, 200, 30)
MACRO, MICRO = ImageColor.getrgb(pic.MACRO_COLOR), ImageColor.getrgb(pic.MICRO_COLOR)
WHITE, MATTE = (255, 255, 255), ImageColor.getrgb(pic.MATTE)
ONE_LINE = round(28 * 1.3)  # height of a question of one line
TOP = pic.MARGIN + ONE_LINE + 20  # of the row of images


def traced(
    image: Image.Image,
    locate: str = "[0.25, 0.25, 0.50, 0.50]",
    macro: Reply = Reply("red"),  # noqa: B008, a frozen value
    micro: Reply = Reply("blue", (-0.5,)),  # noqa: B008
    question: str = "What is it?",
    **settings: object,
) -> Trace:
    backend = FakeBackend({"macro": macro, "locate": locate, "micro": micro})
    return DualFocusModel.on(backend, **settings).ask(image, question)


def photo() -> Image.Image:
    """Half the largest size it is shown at, so that every pixel becomes 2 x 2; green around the box."""
    image = Image.new("RGB", (pic.PHOTO[0] // 2, pic.PHOTO[1] // 2), GREY)
    image.paste(GREEN, (85, 55, 200, 140))
    return image


def column(page: Image.Image, x: int, ys: range) -> list[tuple[int, ...]]:
    return [page.getpixel((x, y)) for y in ys]  # type: ignore[misc]


def test_the_page_holds_the_photo_the_crop_and_both_cards():
    page = pic.draw(photo(), traced(photo()))
    # The crop, 95 x 65, fits 600 x 512 as 600 x 411 and gets its frame.
    assert page.width == pic.MARGIN + 760 + pic.GAP + 600 + 2 * pic.FRAME + pic.MARGIN
    assert page.height > TOP + 520 + 100
    assert page.getpixel((pic.MARGIN, TOP)) == GREY
    assert page.getpixel((pic.MARGIN + 759, TOP + 519)) == GREY
    assert page.getpixel((pic.MARGIN - 1, TOP)) == ImageColor.getrgb(pic.PAPER)


def test_attention_is_laid_over_the_image():
    weights = Image.new("F", (4, 2))
    weights.paste(3.5, (2, 0, 4, 2))
    kept = AttentionMap.of(weights, (0.0, 0.0, 1.0, 1.0))
    page = pic.draw(photo(), replace(traced(photo()), attention=kept))
    for x, color in ((pic.MARGIN, pic.HEAT[0]), (pic.MARGIN + 759, pic.HEAT[1])):
        mixed = [(a + b) // 2 for a, b in zip(GREY, ImageColor.getrgb(color), strict=True)]
        assert list(page.getpixel((x, TOP + 519))) == pytest.approx(mixed, abs=1)


def test_the_box_is_drawn_in_the_micro_colour_between_white_lines():
    page = pic.draw(photo(), traced(photo()))
    x, y = pic.MARGIN + 190, TOP + 130  # the box's upper left corner
    ring = [WHITE, *[MICRO] * pic.FRAME, WHITE]
    middle = (y + 260) // 2 + 60
    assert [page.getpixel((x + n, middle)) for n in range(-1, 7)] == [GREEN, *ring, GREEN]
    assert column(page, x + 60, range(y - 1, y + 7)) == [GREEN, *ring, GREEN]
    right, bottom = pic.MARGIN + 380, TOP + 260  # exclusive
    assert [page.getpixel((right - 1 - n, middle)) for n in range(-1, 7)] == [GREEN, *ring, GREEN]
    assert column(page, x + 60, range(bottom - 7, bottom + 1)) == [GREEN, *ring, GREEN]


def test_the_crop_is_framed_beside_the_photo():
    page = pic.draw(photo(), traced(photo()))
    x = pic.MARGIN + 760 + pic.GAP
    y = TOP + (520 - 411 - 2 * pic.FRAME) // 2
    assert column(page, x + 300, range(y - 1, y + 5)) == [MATTE, *[MICRO] * pic.FRAME, GREEN]
    assert page.getpixel((x, TOP + 260)) == MICRO
    assert page.getpixel((x + pic.FRAME, TOP + 260)) == GREEN


def count(page: Image.Image, color: tuple[int, ...], y: int) -> int:
    return sum(page.getpixel((x, y)) == color for x in range(pic.MARGIN, pic.MARGIN + 760))


@pytest.mark.parametrize(
    ("settings", "thin"), [({}, 0), ({"box_margin": 10}, 4), ({"protocol": "release"}, 4)]
)
def test_a_crop_that_differs_from_the_box_is_drawn_thinner(settings: dict, thin: int):
    """Pixels of the micro colour on a row through the box: two thick lines, and two thin ones of 2 pixels."""
    page = pic.draw(photo(), traced(photo(), **settings))
    assert count(page, MICRO, TOP + 195) == 2 * pic.FRAME + thin


def test_a_box_of_no_size_is_still_a_visible_ring():
    image = photo()
    trace = traced(image, locate="[0.50, 0.50, 0.50, 0.50]")
    assert trace.fallback == "empty_region"
    assert count(pic.draw(image, trace), MICRO, TOP + 260) == 2 * pic.FRAME


def test_a_box_outside_of_the_image_is_drawn_where_it_meets_it():
    page = pic.draw(photo(), traced(photo(), locate="[-0.5, -0.5, 1.5, 1.5]"))
    assert page.getpixel((pic.MARGIN, TOP)) == WHITE
    assert page.getpixel((pic.MARGIN + 1, TOP + 1)) == MICRO
    assert page.getpixel((pic.MARGIN + 758, TOP + 518)) == MICRO


def test_every_region_is_drawn_and_every_crop_framed():
    """Two boxes beside each other, each with a thinner crop around it; their crops below each other."""
    image = photo()
    two = "[0.10, 0.25, 0.20, 0.50], [0.60, 0.25, 0.70, 0.50]"
    trace = traced(image, locate=two, regions="separate")
    page = pic.draw(image, trace)
    assert count(page, MICRO, TOP + 195) == 2 * (2 * pic.FRAME + 4)
    x = pic.MARGIN + 760 + pic.GAP
    width = page.width - x - pic.MARGIN
    middle = column(page, x + width // 2, range(TOP, TOP + 520))
    assert middle.count(MICRO) == 4 * pic.FRAME
    assert middle[260 - pic.BETWEEN // 2 : 260 + pic.BETWEEN // 2] == [MATTE] * pic.BETWEEN
    stacked = pic.crops_of(image, trace)
    assert stacked.size == (46, 79 + pic.BETWEEN + 79)


@pytest.mark.parametrize(
    ("select", "macro_card", "micro_card"),
    [("macro", pic.MACRO_TINT, "white"), ("micro", "white", pic.MICRO_TINT)],
)
def test_the_chosen_card_is_tinted(select: str, macro_card: str, micro_card: str):
    page = pic.draw(photo(), traced(photo(), select=select))
    y = TOP + 520 + 14 + 50
    for x, expected in ((pic.MARGIN + 700, macro_card), (pic.MARGIN + 760 + pic.GAP + 500, micro_card)):
        assert page.getpixel((x, y)) == ImageColor.getrgb(expected)


@pytest.mark.parametrize(
    ("locate", "settings", "fallback"),
    [
        ("I see none.", {}, "no_box"),
        ("[0.5, 0.5, 0.5, 0.9]", {}, "empty_region"),
        ("[0, 0, 1, 1]", {"skip_confidence": 0.5}, "skip_confidence"),
        ("[0, 0, 1, 1]", {"pathway": "macro"}, "pathway_macro"),
    ],
)
def test_without_a_micro_answer_the_page_says_why(locate: str, settings: dict, fallback: str):
    trace = traced(photo(), locate, **settings)
    assert trace.fallback == fallback
    assert pic.verdict(trace) == f"Macro answer: {pic.WHY[fallback]}"
    page = pic.draw(photo(), trace)
    x = pic.MARGIN + 760 + pic.GAP
    assert page.width == x + pic.NARROWEST + pic.MARGIN
    assert page.getpixel((x, TOP)) == page.getpixel((x + pic.NARROWEST - 1, TOP + 519)) == MATTE
    words = page.crop((x, TOP, x + pic.NARROWEST, TOP + 520))
    assert sum(n for n, color in words.getcolors(words.width * words.height) if color != MATTE) > 500  # ink


def test_a_reason_of_another_version_is_shown_as_it_is():
    trace = Trace.from_json(traced(photo(), "none").to_json().replace("no_box", "moon_phase"))
    assert pic.verdict(trace) == "Macro answer: moon_phase"
    pic.draw(photo(), trace)


LONG = "It says: " + "no parking between the hours of eight and nine on market days, " * 20


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 2), (4000, 3000), (5000, 40), (30, 5000)])
@pytest.mark.parametrize(
    ("locate", "protocol"),
    [("[0.40, 0.40, 0.41, 0.60]", "paper"), ("[0, 0, 1, 1]", "release"), ("nothing", "paper")],
)
def test_any_image_gives_a_page_of_a_readable_size(size: tuple[int, int], locate: str, protocol: str):
    image = Image.new("RGB", size, GREY)
    page = pic.draw(image, traced(image, locate, protocol=protocol))
    assert 2 * (pic.NARROWEST + pic.MARGIN) + pic.GAP <= page.width <= 1500
    assert 400 <= page.height <= 900


@pytest.mark.parametrize(
    ("said", "lines"),
    [("", 1), ("yes", 1), (LONG, pic.MOST_LINES), ("W" * 5000, pic.MOST_LINES), ("\n\t \x00 é 日 ✓", 1)],
)
def test_any_answer_and_question_fits(said: str, lines: int):
    image = Image.new("RGB", (300, 300), GREY)
    short = pic.draw(image, traced(image))
    page = pic.draw(image, traced(image, macro=Reply(said), question=said or "?"))
    title, answer = round(28 * 1.3), round(24 * 1.3)
    most = short.height + (lines - 1) * (title + answer)
    assert page.width == short.width
    assert short.height + (lines - 1) * answer <= page.height <= most


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_is_drawn(mode: str):
    image = photo()
    trace = traced(image)
    assert pic.draw(image.convert(mode), trace).size == pic.draw(image, trace).size


def test_the_photo_given_is_left_alone_and_must_be_the_one_that_was_asked_about():
    image = photo()
    before = image.tobytes()
    trace = traced(image)
    pic.draw(image, trace)
    assert image.tobytes() == before
    with pytest.raises(ValueError, match=r"\(380, 260\) pixels, this one has \(260, 380\)"):
        pic.draw(image.transpose(Image.Transpose.ROTATE_90), trace)


@pytest.mark.parametrize(
    ("text", "width", "most", "lines"),
    [
        ("", 5, 3, [""]),
        ("one", 5, 3, ["one"]),
        ("one two", 7, 3, ["one two"]),
        ("one two", 6, 3, ["one", "two"]),
        ("a bb ccc dddd", 4, 9, ["a bb", "ccc", "dddd"]),
        ("abcdefgh", 3, 9, ["abc", "def", "gh"]),
        ("x abcdefgh", 4, 9, ["x ab", "cdef", "gh"]),
        ("one two six", 3, 2, ["one", "tw…"]),
        ("one two six", 3, 3, ["one", "two", "six"]),
        ("ab", 1, 9, ["a", "b"]),
    ],
)
def test_wrap(text: str, width: int, most: int, lines: list[str]):
    assert pic._wrap(text, len, width, most) == lines


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.000"), (1.23456, "1.235"), (87.654, "87.65"), (9999, "9999.00"), (1e300, "1.0e+300")],
)
def test_number(value: float, text: str):
    assert pic.number(value) == text


@pytest.mark.parametrize("settings", [{}, {"protocol": "release"}, {"pathway": "macro"}])
def test_the_question_is_found_again(settings: dict):
    assert pic.question_of(traced(photo(), question="What says it: {a}?", **settings)) == "What says it: {a}?"


@pytest.mark.parametrize(
    ("macro", "answer", "margin"),
    [
        (-0.1, "Macro", "+0.400: macro is more certain"),
        (-0.9, "Micro", "-0.400: micro is more certain"),
        (-0.5, "Micro", "+0.000: a tie"),
    ],
)
def test_verdict(macro: float, answer: str, margin: str):
    line = f"{answer} answer, chosen by the rule ppl; ln PPL(micro) - ln PPL(macro) = {margin}"
    assert pic.verdict(traced(photo(), macro=Reply("red", (macro,)))) == line


def test_the_perplexities_are_those_that_were_compared():
    own = traced(photo(), macro=Reply("red", (-0.1,)))
    assert (pic.perplexity_name(own), pic.perplexity(own, "macro")) == ("perplexity", "1.105")
    joint = traced(photo(), macro=Reply("red", (-0.1,)), protocol="release")
    assert pic.perplexity_name(joint) == "perplexity by release"
    shown = [float(pic.perplexity(joint, pathway)) for pathway in ("macro", "micro")]
    assert shown == pytest.approx([math.exp(value) for value in joint.selection.compared], abs=0.001)
    assert shown != pytest.approx([joint.ppl["macro"], joint.ppl["micro"]], abs=0.01)
    same = traced(photo(), micro=Reply("red", (-0.5,)), protocol="release")  # a tie: nothing is scored
    assert [pic.perplexity(same, pathway) for pathway in ("macro", "micro")] == ["-", "-"]
    skipped = traced(photo(), locate="no box", protocol="release")
    assert pic.perplexity_name(skipped) == "perplexity"


def test_the_image_shows_the_perplexities_that_were_compared(monkeypatch: pytest.MonkeyPatch):
    written = []
    block = pic._TextBlock
    monkeypatch.setattr(pic, "_TextBlock", lambda text, *rest: written.append(text) or block(text, *rest))
    trace = traced(photo(), protocol="release")
    pic.draw(photo(), trace)
    lines = [text for text in written if text.startswith("perplexity")]
    assert lines == [f"perplexity by release {pic.perplexity(trace, way)}" for way in ("macro", "micro")]


def test_two_rectangles_have_a_legend():
    one, two = (traced(photo(), **settings) for settings in ({}, {"protocol": "release"}))
    assert pic.draw(photo(), two).height - pic.draw(photo(), one).height == round(16 * 1.3)


def test_save_writes_what_the_ending_says(tmp_path: Path):
    for name, kind in (("a.png", "PNG"), ("a.JPG", "JPEG")):
        pic.save(photo(), tmp_path / name)
        with Image.open(tmp_path / name) as written:
            assert (written.format, written.size) == (kind, (380, 260))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "'a.txt' is not the name of an image file: end it with .png or .jpg."),
        ("a", "'a' is not the name of an image file"),
        ("none/a.png", "The folder .*none' of the image does not exist: make it first."),
        ("folder.png", "Cannot write the image"),
    ],
)
def test_save_refuses(name: str, message: str, tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=message):
        pic.save(photo(), tmp_path / name)
