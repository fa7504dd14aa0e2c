"""What is compared under one context: which option a reply names, what is scored, what wins at once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from dualfocus_lmms import Question, Settings, StopCriteria, Trace, answer_batch
from dualfocus_lmms.joint_rules import option_of
from dualfocus_lmms.testing import FakeBackend, Reply, as_text
from dualfocus_lmms.types import JointScores, Scores

CATS = ("a black cat", "a dog", "Cat")
BOX = "[0.00, 0.00, 0.50, 0.50]"
ASKED = Question("0", Image.new("RGB", (200, 100)), "What is it?", "What is it?\nBriefly.")
CHOICE = replace(ASKED, options=("red", "blue", "dark red"), short="Say: What is it?")
SCRIPT = {
    "macro": Reply("red.", (-0.5,)),
    "locate": Reply(BOX, (-0.1, -0.2)),
    "micro": Reply("blue.", (-0.2,)),
}
Q1 = "Please provide the bounding box coordinate of the region this question asks: What is it?"
Q2 = "Please combine the information from these two images and answer this question: What is it?"
SHORT = "Answer the question using a single word or phrase."


def run(backend: FakeBackend, *questions: Question, **settings) -> list[Trace]:
    chosen = Settings.of(**{"protocol": "release", **settings})
    return answer_batch(backend, questions, [StopCriteria(16)] * len(questions), chosen)


@pytest.mark.parametrize(
    ("reply", "options", "expected"),
    [
        # letters, however they are followed; case does not matter
        ("A", CATS, "a black cat"),
        ("b", CATS, "a dog"),
        ("C.", CATS, "Cat"),
        ("B. a black cat", CATS, "a dog"),
        ("b) Cat", CATS, "a dog"),
        ("Because it barks", CATS, "a dog"),
        ("a dog", CATS, "a black cat"),
        # a letter without an option is none; a single character is nothing else
        ("D", CATS, None),
        ("C", CATS[:2], None),
        ("5", ("5", "6"), None),
        ("", CATS, None),
        # the first option that is contained in the reply, or the reply in it
        ("It is a dog.", CATS, "a dog"),
        ("It is a DOG", CATS, "a dog"),
        ("dog", CATS, "a dog"),
        ("I see one black cat", CATS, "Cat"),
        ("It is a black cat, no dog", CATS, "a black cat"),
        ("Diagonal", ("left", "on"), "on"),
        ("Yes, it is", ("No", "Yes"), "Yes"),
        ("15", ("5", "15"), "5"),
        ("nothing of it", CATS, None),
        ("(B)", CATS, None),
        ("The answer is B", CATS, None),
        # letters go as far as there are options
        ("Z", tuple(f"number {n:02d}" for n in range(26)), "number 25"),
        ("number 26", tuple(f"number {n:02d}" for n in range(30)), "number 13"),
    ],
)
def test_which_option_a_reply_names(reply: str, options: tuple[str, ...], expected: str | None) -> None:
    assert option_of(reply, options) == expected


@pytest.mark.parametrize(
    ("question", "short"),
    [(ASKED, f"{Q2}\n{SHORT}"), (replace(ASKED, short="What is it?\nIn a word."), "What is it?\nIn a word.")],
)
def test_the_release_scores_both_texts_after_the_short_question(question: Question, short: str) -> None:
    backend = FakeBackend(SCRIPT)
    run(backend, question)
    before = f"user: <image>{Q1}\nassistant: {BOX}\nuser: <image>{short}\nassistant: "
    assert [as_text(said) for said in backend.scored] == [f"{before}red.", f"{before}blue"]
    (generated,) = backend.calls[2].conversations
    for said in backend.scored:
        assert all(mine is theirs for mine, theirs in zip(said.images, generated.images, strict=True))
        assert [turn.tokens for turn in said.turns] == [None] * 4  # tokenised anew


@pytest.mark.parametrize(
    ("macro", "micro", "scored"),
    [
        ("A", "B", ["red", "blue"]),
        ("B.", "It is dark red", ["blue", "red"]),  # the first option contained in it
        ("dark", "..A..", ["dark red", "red"]),
    ],
)
def test_options_are_scored_in_the_place_of_letters(macro: str, micro: str, scored: list[str]) -> None:
    backend = FakeBackend(SCRIPT | {"macro": macro, "micro": micro})
    run(backend, CHOICE)
    assert [as_text(said).splitlines()[-2:] for said in backend.scored] == [
        ["user: <image>Say: What is it?", f"assistant: {text}"] for text in scored
    ]


@pytest.mark.parametrize(
    ("question", "macro", "micro", "winner"),
    [
        (CHOICE, "A", "none of them", "macro"),
        (CHOICE, "none of them", "B", "micro"),
        (CHOICE, "none of them", "no idea", "macro"),
        (CHOICE, "A", "A. red", "macro"),  # one option: a tie
        (CHOICE, "", "", "macro"),
        (ASKED, "red", "red.", "macro"),  # only the micro reply loses its full stop
    ],
)
def test_what_wins_without_scores(question: Question, macro: str, micro: str, winner: str) -> None:
    backend = FakeBackend(SCRIPT | {"macro": macro, "micro": micro})
    (trace,) = run(backend, question)
    assert backend.scored == []
    assert trace.judged == JointScores("release", winner=winner)
    assert (trace.selection.pathway, trace.selection.margin) == (winner, None)
    assert trace.selection.text == (macro if winner == "macro" else micro)


@pytest.mark.parametrize(
    ("scores", "count_eos", "pathway", "margin"),
    [
        # macro: box, its end, answer, its end; micro the same with another answer
        ({"red": (-0.8, -0.1), "blue": (-0.4, -0.1)}, True, "micro", -0.4 / 5),
        ({"red": (-0.4, -0.1), "blue": (-0.4, -0.2)}, True, "macro", 0.1 / 5),
        ({"red": (-0.4, -0.1), "blue": (-0.4, -0.1)}, True, "macro", 0),
        ({"red": (-0.4, -0.1), "blue": (-0.4, -0.1)}, False, "macro", 0),
        ({"red": (-0.4, -0.1), "blue": (-0.3, -0.9)}, True, "macro", 0.7 / 5),
        ({"red": (-0.4, -0.1), "blue": (-0.3, -0.9)}, False, "micro", -0.1 / 3),
        # a longer text dilutes what the box cost: (1.2 + 0.8) / 5 against (1.2 + 0.9) / 6
        ({"red": (-0.7, -0.1), "blue": (-0.4, -0.4, -0.1)}, True, "micro", 2.1 / 6 - 2 / 5),
    ],
)
def test_the_box_and_every_end_of_a_turn_count(scores, count_eos, pathway, margin) -> None:
    backend = FakeBackend(SCRIPT | {"macro": "A", "micro": "B"}, scores={BOX: (-0.5, -0.4, -0.3), **scores})
    (trace,) = run(backend, CHOICE, count_eos=count_eos)
    assert (trace.selection.pathway, trace.selection.rule) == (pathway, "release")
    assert trace.selection.margin == pytest.approx(margin)
    assert trace.judged == JointScores(
        "release",
        Scores("red", (-0.5, -0.4, *scores["red"][:-1]), (-0.3, scores["red"][-1])),
        Scores("blue", (-0.5, -0.4, *scores["blue"][:-1]), (-0.3, scores["blue"][-1])),
    )
    assert Trace.from_json(trace.to_json()) == trace


def test_an_answer_keeps_its_own_perplexity_in_the_trace() -> None:
    backend = FakeBackend(SCRIPT, scores={"red.": (-0.1, -0.1), "blue": (-5.0, -5.0)})
    (trace,) = run(backend, ASKED, count_eos=False)
    assert trace.selection.pathway == "macro"  # by the scores under one context
    assert trace.ppl["macro"] > trace.ppl["micro"]
    macro, micro = trace.selection.compared
    assert macro < micro
    assert micro - macro == trace.selection.margin
    assert Trace.from_json(trace.to_json()) == trace
    older = json.loads(trace.to_json())
    del older["selection"]["compared"]
    assert Trace.from_json(json.dumps(older)).selection == replace(trace.selection, compared=None)


@pytest.mark.parametrize("rule", ["release", "micro_context"])
@pytest.mark.parametrize(
    ("script", "settings", "fallback"),
    [
        ({"locate": "no box"}, {}, "no_box"),
        ({"locate": "[2.00, 2.00, 2.10, 2.10]"}, {"protocol": "paper"}, "empty_region"),
        ({}, {"skip_confidence": 0}, "skip_confidence"),
        ({}, {"pathway": "macro"}, "pathway_macro"),
    ],
)
def test_nothing_is_scored_without_a_micro_answer(rule, script, settings, fallback) -> None:
    backend = FakeBackend(SCRIPT | script)
    (trace,) = run(backend, ASKED, select=rule, **settings)
    assert (trace.selection.text, trace.selection.margin, trace.fallback) == ("red.", None, fallback)
    assert (trace.judged, backend.scored) == (None, [])


def test_rows_of_every_kind_keep_their_order() -> None:
    """Scored, settled and without a box, in one batch."""
    replies = {
        "macro": ["A", "A", "A", "nothing", "red"],
        "locate": [BOX, "no", BOX, BOX, BOX],
        "micro": ["B", "-", "A", "B", "C"],
    }

    def script(stage: str, conversation) -> str:
        return replies[stage][conversation.images[0].width - 200]

    questions = [
        replace(CHOICE, id=str(n), image=Image.new("RGB", (200 + n, 100)), key={"doc_id": n})
        for n in range(5)
    ]
    backend = FakeBackend(script, scores={"blue": (-0.05, -0.01), "dark red": (-9.0, -9.0)})
    traces = run(backend, *questions)
    assert [trace.selection.text for trace in traces] == ["B", "A", "A", "B", "red"]
    assert [trace.judged and trace.judged.winner for trace in traces] == [None, None, "macro", "micro", None]
    assert [said.images[0].width - 200 for said in backend.scored] == [0, 0, 4, 4]


def test_micro_context_scores_the_macro_answer_where_the_micro_answer_was_given() -> None:
    backend = FakeBackend(SCRIPT, scores={"red.": (-0.1, -7.0), BOX: (-9.0, -9.0, -9.0)})
    (trace,) = run(backend, CHOICE, select="micro_context", count_eos=False)
    (said,) = backend.scored
    assert as_text(said) == f"{backend.calls[2].texts[0]}\nassistant: red."
    assert [turn.tokens for turn in said.turns[1::2]] == [trace.locate.tokens, trace.macro.tokens]
    assert trace.judged == JointScores(
        "micro_context", Scores("red.", (-0.1,), (-7.0,)), Scores("blue.", (-0.2,), (-0.01,))
    )
    assert (trace.selection.pathway, trace.selection.margin) == ("macro", pytest.approx(0.2 - 0.1))
    (trace,) = run(backend, CHOICE, select="micro_context", count_eos=True)
    assert trace.selection.pathway == "micro"


def test_micro_context_counts_no_end_that_the_model_did_not_reach() -> None:
    script = SCRIPT | {"macro": Reply("red", (-0.5,), None)}
    backend = FakeBackend(script, scores={"red": (-0.1, -7.0)})
    (trace,) = run(backend, ASKED, select="micro_context", count_eos=True)
    assert trace.judged is not None
    assert trace.judged.macro == Scores("red", (-0.1,))


@pytest.mark.parametrize("own", [-0.1, -3.0])
def test_micro_context_scores_nothing_where_both_answers_are_one(own: float) -> None:
    script = SCRIPT | {"macro": Reply("blue.", (own,)), "micro": Reply("blue.", (-0.2,))}
    backend = FakeBackend(script)
    (trace,) = run(backend, ASKED, select="micro_context")
    assert backend.scored == []
    assert (trace.selection.pathway, trace.selection.margin) == ("micro", 0)  # eq. 8: a tie goes to micro


def test_an_empty_answer_is_its_closing_token() -> None:
    script = SCRIPT | {"macro": Reply("", (), -0.3)}
    backend = FakeBackend(script, scores={"": (-0.25,), BOX: (-0.5, -0.5)})
    (trace,) = run(backend, ASKED, select="micro_context", count_eos=False)
    assert trace.judged is not None
    assert trace.judged.macro == Scores("", (), (-0.25,))
    (trace,) = run(backend, ASKED)
    assert trace.judged is not None
    assert trace.judged.macro == Scores("", (-0.5,), (-0.5, -0.25))
