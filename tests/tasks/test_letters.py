"""Letters in replies: what names an option, and what does not."""

from __future__ import annotations

import pytest

from dualfocus_lmms.tasks.common.letters import normalise, read_letter
from dualfocus_lmms.tasks.common.scoring import NO_ANSWER

OPTIONS = ["a cat", "a dog", "vitamin C", "a tree"]
COLOURS = ["red", "blue", "green", "a lot of them"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes.", "yes"),
        ("  A   Red car! ", "a red car"),
        ("'stop'", "stop"),
        ("(left)", "left"),
        ("**Blue**", "blue"),
        ("\u201cStop\u201d", "stop"),
        ("red, white", "red white"),
        ("t-shirt", "t-shirt"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("-5", "-5"),
        ("U.S.", "u.s"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(D)", "D"),
        ("**C**", "C"),
        ("The answer is B.", "B"),
        ("The answer is: (b)", "B"),
        ("Answer: C", "C"),
        ("Answer: C\nIt is a pill.", "C"),
        ("Option D", "D"),
        ("The correct answer is option C.", "C"),
        ("B. a dog", "B"),
        ("b. a dog", "B"),
        ("(B) A dog.", "B"),
        ("B. Because it barks.", "B"),
        ("C. Vitamin C", "C"),
        # The option's own text.
        ("a dog", "B"),
        ("A dog.", "B"),
        ("The answer is vitamin C.", "C"),
        ("vitamin C", "C"),
        # Two letters.
        ("A and B", None),
        ("A or B.", None),
        ("A, B", None),
        ("a, b", None),
        ("(A)(B)", None),
        ("A. No, the answer is B.", None),
        # None.
        ("", None),
        ("E", None),
        ("none of these", None),
        ("A bird", None),
        ("The answer is not B.", None),
        ("Option A is wrong.", None),
        ("b. because it barks", None),
    ],
)
def test_read_letter(reply: str, letter: str | None) -> None:
    assert read_letter(reply, OPTIONS) == letter


def test_a_letter_names_an_option_even_where_options_are_letters() -> None:
    assert read_letter("B", ["B", "A"]) == "B"
    assert read_letter("K", ["K", "M"]) == "A"


def test_an_empty_reply_names_no_option_even_one_of_marks_alone() -> None:
    for reply in ("", " ", "?", NO_ANSWER):
        assert read_letter(reply, ["!", "?", "a cat"]) is None
    assert read_letter("B", ["!", "?", "a cat"]) == "B"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        # Where a reply marks its answer.
        ("\\boxed{B}", "B"),
        ("$\\boxed{B}$.", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("\\boxed{\\text{B. blue}}", "B"),
        ("\\boxed{(b)}", "B"),
        ("\\boxed{blue}", "B"),
        ("The answer is \\boxed{B}.", "B"),
        ("The answer is: $\\boxed{\\mathrm{B}}$", "B"),
        ("It is neither red nor green. So the answer is \\boxed{B}.", "B"),
        ("A is wrong and C is wrong.\n\n\\boxed{B}", "B"),
        ("\\boxed{B}, that is, \\boxed{B}", "B"),
        ("<answer>B</answer>", "B"),
        ("<ANSWER> B. blue </ANSWER>", "B"),
        ("<answer>The answer is B.</answer>", "B"),
        ("<think>Not A, maybe C?</think>\n<answer>B</answer>", "B"),
        ("<answer>\\boxed{B}</answer>", "B"),
        ("<answer>blue</answer>", "B"),
        ("Answer: B\n<answer>B</answer>", "B"),
        # Sentences.
        ("B is correct", "B"),
        ("B is correct.", "B"),
        ("**B** is correct.", "B"),
        ("(B) is the correct answer.", "B"),
        ("B is the right option", "B"),
        ("Option B is correct.", "B"),
        ("B is correct because the cup is blue.", "B"),
        ("B is correct. The cup is blue.", "B"),
        ("A is correct", "A"),
        ("The answer is: B is correct", "B"),
        ("It is B", "B"),
        ("It is B.", "B"),
        ("It's B", "B"),
        ("It\u2019s (B).", "B"),
        ("It is **B**.", "B"),
        ("It is option B.", "B"),
        ("It is A.", "A"),
        ("option b", "B"),
        ("Option (b).", "B"),
        ("option a", "A"),
        ("choice d", "D"),
        # Marks of East Asian writing.
        ("Answer\uff1aB", "B"),
        ("Answer\uff1a\uff08B\uff09", "B"),
        ("The answer is\uff1aB\u3002", "B"),
        ("B\uff0e blue", "B"),
        ("B\u3001because it is", "B"),
        ("\u3010B\u3011", "B"),
    ],
)
def test_letters_in_the_forms_of_recent_models(reply: str, letter: str) -> None:
    assert read_letter(reply, COLOURS) == letter


@pytest.mark.parametrize(
    "reply",
    [
        # Articles, pronouns, and letters that are words or parts of them.
        "It is a dog",
        "It is A dog",
        "A dog",
        "a dog is correct",
        "It is a",
        "It is b",
        "It is a.",
        "It's a bird.",
        "It is A. Lincoln.",
        "It is B-flat.",
        "It is D-Day.",
        "It is vitamin B.",
        "B flat is correct",
        "Vitamin B is correct",
        "option a dog",
        "option because it is there",
        "a choice",
        "Options",
        "It is Blue Lagoon",
        "Correct",
        "It is correct",
        # Denied.
        "not B",
        "Not B.",
        "B is not correct",
        "B is incorrect",
        "B is wrong.",
        "B isn't correct",
        "Option B is not correct.",
        "It is not B",
        "It isn't B.",
        "It's not (B).",
        "not option b",
        "option b is wrong",
        "B is correct. No, wait.",
        "B is correct, but only at night",
        "B is correct if the light is on",
        "It is not clear that option B is correct",
        "I don't think that option B is correct.",
        "<answer>not B</answer>",
        "<answer></answer>",
        "<answer>a bird</answer>",
        "\\boxed{}",
        "\\boxed{5}",
        "\\boxed{E}",
        "not \\boxed{B}",
        "The answer is not \\boxed{B}.",
        "\\boxed{B} is wrong",
        "<answer>B</answer> is not correct",
        # Asked.
        "Is B correct?",
        "B is correct?",
        "Is it true that option B is correct?",
        "It is B?",
        # Two of them.
        "It is B or C",
        "It is B, C",
        "B is correct, C is correct",
        "B is correct. C is correct too.",
        "Both B and C are correct",
        "A or B is correct",
        "option b or c",
        "option a, option b",
        "\\boxed{B} or \\boxed{C}",
        "\\boxed{B, C}",
        "\\boxed{B} or C",
        "<answer>B</answer><answer>C</answer>",
        "<answer>B and C</answer>",
        "Answer: C\n<answer>B</answer>",
        "Answer\uff1aB\u3001C",
        # None of the options.
        "It is E.",
        "E is correct",
        "option z",
        "Answer\uff1a",
        "It is I.",
    ],
)
def test_replies_without_a_letter(reply: str) -> None:
    assert read_letter(reply, COLOURS) is None
