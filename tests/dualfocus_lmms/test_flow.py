"""The two passes on a scripted model: what it is asked, and what becomes of a batch."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from scripted_flow import (
    BOX,
    LETTER,
    Q1_PAPER,
    Q1_RELEASE,
    Q2_PAPER,
    Q2_RELEASE,
    SCRIPT,
    number_of,
    photo,
    question,
    run,
)

from dualfocus_lmms import (
    Conversation,
    GenerationError,
    Question,
    Settings,
    StopCriteria,
    UserError,
    answer_batch,
    flow,
)
from dualfocus_lmms.testing import FakeBackend, Reply


@pytest.mark.parametrize(
    ("protocol", "q1", "q2", "crop"),
    [
        ("paper", Q1_PAPER, Q2_PAPER, (20, 5, 40, 15)),
        # 20..40 x 5..15 -> a square of 20 -> + 25: all but the last row and column
        ("release", Q1_RELEASE, Q2_RELEASE, (0, 0, 39, 19)),
    ],
)
def test_what_the_model_is_asked(protocol: str, q1: str, q2: str, crop: tuple[int, int, int, int]) -> None:
    backend, asked = FakeBackend(SCRIPT), question()
    (trace,) = run(backend, asked, protocol=protocol)
    bare, full = "What is object 0?", f"What is object 0?\nA. cat\nB. dog\n{LETTER}"

    assert [(call.stage, call.keep) for call in backend.calls] == [
        ("macro", "image"),
        ("locate", "conversation"),
        ("micro", None),
    ]
    macro, locate, micro = (call.texts for call in backend.calls)
    assert macro == [f"user: <image>{full}"]
    assert locate == [f"user: <image>{q1}{bare}"]
    assert micro == [f"user: <image>{q1}{bare}\nassistant: {BOX}\nuser: <image>{q2}{full}"]

    conversation = backend.calls[2].conversations[0]
    whole, part = conversation.images
    assert whole is asked.image
    assert part.tobytes() == asked.image.crop(crop).tobytes()
    assert trace.locate is not None
    assert conversation.turns[1].tokens == trace.locate.tokens

    assert trace.prompts == {"macro": full, "locate": q1 + bare, "micro": q2 + full}
    assert trace.box == (0.5, 0.25, 1, 0.75)
    assert trace.crop == crop
    assert trace.image_size == (40, 20)
    assert trace.key == {"task": "t", "doc_id": 0}
    assert trace.fallback is None


def test_limits_reach_both_answers() -> None:
    backend = FakeBackend(SCRIPT)
    limits = [StopCriteria(3, ("\n",)), StopCriteria(5)]
    answer_batch(backend, [question("0"), question("1")], limits, Settings.of())
    macro, locate, micro = backend.calls
    assert macro.limits == micro.limits == tuple(limits)
    assert locate.limits == (StopCriteria(64), StopCriteria(64))
    release = FakeBackend(SCRIPT)
    run(release, question(), protocol="release")
    assert release.calls[1].limits == (StopCriteria(128),)


def test_macro_alone_is_one_call() -> None:
    backend = FakeBackend(SCRIPT)
    traces = run(backend, question("0"), question("1"), pathway="macro")
    assert [(call.stage, call.keep, len(call.conversations)) for call in backend.calls] == [
        ("macro", None, 2)
    ]
    assert [trace.selection.text for trace in traces] == ["cat", "cat"]
    assert {trace.fallback for trace in traces} == {"pathway_macro"}
    assert all(list(trace.prompts) == ["macro"] for trace in traces)


KINDS = ["both", "no_box", "empty_region", "skip_confidence"]


@pytest.mark.parametrize(
    "kinds", [*itertools.permutations(KINDS), ["both"] * 3, ["no_box"] * 3, ["skip_confidence"] * 2]
)
def test_mixed_rows_keep_their_order(kinds) -> None:
    """Every trace holds its own question's replies, whatever became of its neighbours."""

    def script(stage: str, conversation: Conversation) -> Reply:
        number = number_of(conversation)
        kind = kinds[number]
        if stage == "macro":
            return Reply(f"macro {number}", (-0.001,) if kind == "skip_confidence" else (-1.0,))
        if stage == "locate":
            return Reply(
                {"no_box": "none", "empty_region": "[0.5, 0.5, 0.5, 0.5]"}.get(
                    kind, f"[0, 0, 0.{number + 1}, 1]"
                )
            )
        return Reply(f"micro {number}", (-0.5,))

    questions = [question(str(number), photo(40 + number, 20)) for number in range(len(kinds))]
    limits = [StopCriteria(10 + number) for number in range(len(kinds))]
    backend = FakeBackend(script)
    traces = answer_batch(backend, questions, limits, Settings.of(skip_confidence=0.9))

    assert [trace.question_id for trace in traces] == [each.id for each in questions]
    for number, (kind, trace) in enumerate(zip(kinds, traces, strict=True)):
        assert trace.fallback == (None if kind == "both" else kind)
        assert trace.macro.text == f"macro {number}"
        assert trace.selection.text == (f"micro {number}" if kind == "both" else f"macro {number}")
        assert trace.image_size == (40 + number, 20)
        assert f"object {number}?" in trace.prompts["macro"]
    for call in backend.calls:
        numbers = [number_of(conversation) for conversation in call.conversations]
        assert numbers == sorted(numbers)
        if call.stage != "locate":
            assert [limit.max_new_tokens - 10 for limit in call.limits] == numbers
        for number, conversation in zip(numbers, call.conversations, strict=True):
            assert conversation.images[0] is questions[number].image
            if call.stage == "micro":
                assert conversation.turns[1].text == f"[0, 0, 0.{number + 1}, 1]"
                assert conversation.images[1].size == (math.ceil((40 + number) * (number + 1) / 10), 20)
    expected = {
        "macro": len(kinds),
        "locate": sum(kind != "skip_confidence" for kind in kinds),
        "micro": kinds.count("both"),
    }
    asked = {call.stage: len(call.conversations) for call in backend.calls}
    assert asked == {stage: count for stage, count in expected.items() if count}


@pytest.mark.parametrize("failing", ["macro", "locate", "micro"])
@pytest.mark.parametrize("error", [GenerationError("NaN"), KeyError("bug")])
def test_an_error_propagates_and_frees_the_model(failing: str, error: Exception) -> None:
    def script(stage: str, conversation: Conversation) -> Reply:
        if stage == failing and number_of(conversation) == 1:
            raise error
        return SCRIPT[stage]

    backend = FakeBackend(script)
    with pytest.raises(type(error)) as caught:
        run(backend, question("0"), question("1"))
    assert caught.value is error
    assert backend.forgotten == 1


@pytest.mark.parametrize("pathway", ["both", "macro"])
def test_the_model_is_freed_after_a_batch(pathway: str) -> None:
    backend = FakeBackend(SCRIPT)
    run(backend, question(), pathway=pathway)
    assert backend.forgotten == 1


def test_questions_without_a_key_are_told_apart() -> None:
    questions = [Question(name, photo(), "What?", "What?") for name in ("a", "b")]
    assert [trace.key for trace in run(FakeBackend(SCRIPT), *questions)] == [{"id": "a"}, {"id": "b"}]


def test_limits_of_another_number_of_questions() -> None:
    backend = FakeBackend(SCRIPT)
    with pytest.raises(ValueError, match=r"1 .*2"):
        answer_batch(backend, [question()], [StopCriteria(1)] * 2, Settings.of())
    assert backend.calls == []


def test_no_questions() -> None:
    assert run(FakeBackend(SCRIPT)) == []


@pytest.mark.parametrize(
    ("settings", "q1", "q2"),
    [
        ({}, Q1_PAPER, Q2_PAPER),
        ({"prompts": "release"}, Q1_RELEASE, Q2_RELEASE),
        ({"prompts": "figure8"}, Q1_RELEASE, Q2_PAPER),
        ({"protocol": "release", "prompts": "paper"}, Q1_PAPER, Q2_PAPER),
        ({"prompts": "native"}, "Where? ", Q2_PAPER),
        ({"protocol": "release", "prompts": "native"}, "Where? ", Q2_RELEASE),
    ],
)
def test_wordings_are_chosen_apart_from_the_rest_of_the_protocol(settings: dict, q1: str, q2: str) -> None:
    backend = FakeBackend(SCRIPT, native_locate="Where? {question}")
    (trace,) = run(backend, question(), **settings)
    asked = question()
    prompts = {"macro": asked.prompt, "locate": q1 + asked.text, "micro": q2 + asked.prompt}
    assert trace.prompts == prompts
    assert backend.calls[2].texts[0].splitlines()[0] == f"user: <image>{prompts['locate']}"
    own = Settings.of(protocol=settings.get("protocol", "paper"))
    assert Settings.of(**settings).box_margin == own.box_margin
    assert Settings.of(**settings).rule_name == own.rule_name


def test_a_family_without_a_wording_of_its_own() -> None:
    backend = FakeBackend(SCRIPT)
    with pytest.raises(UserError):
        run(backend, question(), prompts="native")
    assert backend.calls == []


def test_a_fingerprint_that_a_question_carries_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(flow, "image_hash", lambda image: hashed.append(image) or "computed")
    first, second = question("0"), replace(question("1"), image_hash="carried")
    traces = run(FakeBackend(SCRIPT), first, second)
    assert [trace.image_hash for trace in traces] == ["computed", "carried"]
    assert hashed == [first.image]


def test_a_trace_holds_plain_strings_for_its_fallback_reason() -> None:
    (trace,) = run(FakeBackend(SCRIPT), question(), pathway="macro")
    assert type(trace.fallback) is str
