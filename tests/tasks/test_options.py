"""What tasks with options share: letters in replies, images of the hub, a preference for a position."""

from __future__ import annotations

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.tasks.common import options

CHOICES = ["One", "Two", "A lot", "None of the above"]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        # A letter in various forms.
        ("A", "A"),
        (" a ", "A"),
        ("(C)", "C"),
        ("[D]", "D"),
        ("B)", "B"),
        ("B:", "B"),
        ("**B.**", "B"),
        ("B\n", "B"),
        ("A.\n\nOne towel hangs there.", "A"),
        ("The answer is A", "A"),
        ("The correct answer is (D).", "D"),
        ("Answer: B", "B"),
        ("Option C", "C"),
        ("The correct option is B. Two", "B"),
        # An option's text. A sentence that begins with the article is no letter.
        ("one", "A"),
        ("Two.", "B"),
        ("A lot", "C"),
        ("a lot.", "C"),
        ("The answer is a lot.", "C"),
        ("none of the above", "D"),
        ("D. None of the above", "D"),
        ("C. A lot", "C"),
        # None, or more than one.
        ("", None),
        (".", None),
        ("E", None),
        ("5", None),
        ("There are two.", None),
        ("A towel hangs on the wall.", None),
        ("I cannot tell.", None),
        ("A or B", None),
        ("B, C", None),
        ("AB", None),
        ("A. One\nB. Two\nC. A lot", None),
        ("It is neither A nor B.", None),
        ("The answer is not A.", None),
    ],
)
def test_letters(reply: str, letter: str | None) -> None:
    doc = {"options": CHOICES, "answer": "B"}
    assert options.read_choice(doc, reply) == {"said": letter, "right": "B"}


@pytest.mark.parametrize("reply", ["The choice is hers.", "the choice is hers"])
def test_an_option_that_begins_like_a_lead_in_is_matched_whole(reply: str) -> None:
    doc = {"options": ["The choice is his", "The choice is hers"], "answer": "A"}
    assert options.read_choice(doc, reply)["said"] == "B"


def choices(predicted: str, correct: str) -> list[options.Choice]:
    """One character a reply, "-" where it names no letter."""
    return [
        options.Choice(said=None if letter == "-" else letter, right=answer)
        for letter, answer in zip(predicted, correct, strict=True)
    ]


@pytest.mark.parametrize(
    ("predicted", "correct", "bias"),
    [
        ("ABCD", "ABCD", 0.0),
        ("ABCD", "DCBA", 0.0),  # wrong everywhere, and without any preference
        ("AAAA", "ABCD", 75.0),
        ("AAAA", "AAAA", 0.0),
        ("BBBB", "AAAA", 100.0),
        ("AABB", "AAAB", 25.0),
        ("A---", "ABCD", 75.0),
        ("AB--", "ABAB", 0.0),
        ("AAB", "ABB", 100 / 3),
        ("----", "ABCD", 0.0),
    ],
)
def test_letter_bias(predicted: str, correct: str, bias: float) -> None:
    assert options.letter_bias(choices(predicted, correct)) == pytest.approx(bias)


@pytest.mark.parametrize("value", ["C", "", None, 1, "AB", "a lot"])
def test_a_correct_answer_that_is_not_a_letter_raises(value: object) -> None:
    assert options.correct_letter(" b ", ["x", "y"], "here") == "B"
    with pytest.raises(UserError, match=r"file\.json:3"):
        options.correct_letter(value, ["x", "y"], "file.json:3")


@pytest.mark.parametrize("in_a_list", [False, True])
def test_images_of_the_hub_are_found_by_their_row(in_a_list: bool) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.new("L", (width, 4)) for width in (5, 6)]
    feature = datasets.List(datasets.Image()) if in_a_list else datasets.Image()
    column = [[image] for image in images] if in_a_list else images
    features = datasets.Features({"image": feature})
    options.share_images("df_test", datasets.Dataset.from_dict({"image": column}, features))
    doc = options.hub_row("df_test", 1)
    (image,) = options.images(doc)
    assert (image.mode, image.size, doc["questions_without_image"]) == ("RGB", (6, 4), 0)
