"""The two passes on a scripted model: what it is asked, what becomes of its replies."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from PIL import Image

from dualfocus_lmms import (
    BoxFormat,
    Conversation,
    GenerationError,
    Question,
    Settings,
    StopCriteria,
    Trace,
    UserError,
    answer_batch,
    flow,
)
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.zoom import DynamicResolution

LETTER = "Answer with the option's letter from the given choices directly."
BOX = "[0.50, 0.25, 1.00, 0.75]"
SCRIPT = {"macro": Reply("cat", (-0.5,)), "locate": Reply(BOX, (-0.1, -0.2)), "micro": Reply("dog", (-0.25,))}
Q1_PAPER = "Provide the coordinates of the region this question is asking about: "
Q1_RELEASE = "Please provide the bounding box coordinate of the region this question asks: "
Q2_PAPER = "Combine these two images and answer the question: "
Q2_RELEASE = "Please combine the information from these two images and answer this question: "


def photo(width: int = 40, height: int = 20) -> Image.Image:
    """Every pixel its own colour."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x % 256, y % 256, x // 256) for y in range(height) for x in range(width)])
    return image


def question(name: str = "0", image: Image.Image | None = None) -> Question:
    text = f"What is object {name}?"
    prompt = f"{text}\nA. cat\nB. dog\n{LETTER}"
    return Question(name, image or photo(), text, prompt, {"task": "t", "doc_id": int(name)})


def run(backend: FakeBackend, *questions: Question, **settings) -> list[Trace]:
    return answer_batch(backend, questions, [StopCriteria(16)] * len(questions), Settings.of(**settings))


def number_of(conversation: Conversation) -> int:
    """The number in the question's name, read from the first turn."""
    return int(conversation.turns[0].text.split("object ")[1].split("?")[0])


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


def test_the_box_is_repeated_to_the_letter() -> None:
    odd = "The region: [.5,0.25 , 1, 0.75]!"
    backend = FakeBackend(SCRIPT | {"locate": odd})
    (trace,) = run(backend, question())
    assert backend.calls[2].conversations[0].turns[1].text == odd
    assert trace.crop == (20, 5, 40, 15)


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


@pytest.mark.parametrize("reply", ["", "The whole image.", "[0.1, 0.2, 0.3]", "nan, nan, nan, nan"])
@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_no_box_in_the_reply(reply: str, protocol: str) -> None:
    backend = FakeBackend(SCRIPT | {"locate": reply})
    (trace,) = run(backend, question(), protocol=protocol)
    assert [call.stage for call in backend.calls] == ["macro", "locate"]
    assert (trace.selection.text, trace.selection.margin) == ("cat", None)
    assert (trace.fallback, trace.box, trace.crop, trace.micro) == ("no_box", None, None, None)
    assert trace.locate is not None
    assert trace.locate.text == reply
    assert list(trace.prompts) == ["macro", "locate"]
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(
    ("protocol", "reply", "size", "crop"),
    [
        # a point or a line
        ("paper", "[0.50, 0.50, 0.50, 0.50]", (40, 20), None),
        ("paper", "[0.50, 0.00, 0.50, 1.00]", (40, 20), None),
        ("release", "[0.50, 0.50, 0.50, 0.50]", (400, 200), (175, 75, 225, 125)),
        ("release", "[0.00, 0.00, 0.00, 0.00]", (400, 200), None),
        # outside the image, wholly or in part
        ("paper", "[1.20, 0.20, 1.40, 0.40]", (40, 20), None),
        ("release", "[1.20, 0.20, 1.40, 0.40]", (400, 200), (374, 0, 399, 125)),
        ("paper", "[0.50, -0.50, 1.50, 0.50]", (40, 20), (20, 0, 40, 10)),
        ("release", "[0.50, -0.50, 1.50, 0.50]", (400, 200), (175, 0, 399, 199)),
        # one pixel wide or high
        ("paper", "[0.00, 0.50, 1.00, 0.75]", (1, 8), (0, 4, 1, 6)),
        ("paper", "[0.50, 0.00, 0.75, 1.00]", (8, 1), (4, 0, 6, 1)),
        ("paper", "[0.10, 0.10, 0.90, 0.90]", (1, 1), (0, 0, 1, 1)),
        ("release", "[0.00, 0.50, 1.00, 0.75]", (1, 8), None),
        ("release", "[0.10, 0.10, 0.90, 0.90]", (1, 1), None),
    ],
)
def test_odd_boxes_and_photos(protocol, reply, size, crop) -> None:
    backend = FakeBackend(SCRIPT | {"locate": reply})
    (trace,) = run(backend, question(image=photo(*size)), protocol=protocol)
    assert trace.crop == crop
    assert trace.box is not None
    if crop is None:
        assert trace.fallback == "empty_region"
        assert trace.selection.text == "cat"
        assert len(backend.calls) == 2
    else:
        part = backend.calls[2].conversations[0].images[1]
        assert part.size == (crop[2] - crop[0], crop[3] - crop[1])
        assert trace.fallback is None
        assert trace.selection.text == ("dog" if protocol == "paper" else "cat")  # a tie, in the release
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(
    ("threshold", "probability", "skipped"),
    [
        (1, 1.0, False),  # 1 never skips
        (1.0, 0.99, False),
        (0, 0.001, True),  # 0 always does
        (0.5, 0.5, False),  # strictly above
        (0.5, 0.5000001, True),
        (0.5, 0.4999999, False),
        (0.8, 0.81, True),
        (0.8, 0.79, False),
    ],
)
def test_skip_gate(threshold: float, probability: float, skipped: bool) -> None:
    logprob = math.log(probability)
    backend = FakeBackend(SCRIPT | {"macro": Reply("cat", (logprob, logprob), eos=-5.0)})
    (trace,) = run(backend, question(), skip_confidence=threshold)
    assert len(backend.calls) == (1 if skipped else 3)
    assert trace.fallback == ("skip_confidence" if skipped else None)
    if skipped:
        assert (trace.selection.text, trace.locate, trace.micro) == ("cat", None, None)


def test_skip_gate_counts_the_closing_token_when_told() -> None:
    script = SCRIPT | {"macro": Reply("cat", (math.log(0.9),), eos=math.log(0.1))}  # 0.9 without, 0.3 with it
    assert run(FakeBackend(script), question(), skip_confidence=0.5)[0].fallback == "skip_confidence"
    assert run(FakeBackend(script), question(), skip_confidence=0.5, count_eos=True)[0].fallback is None


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


@pytest.mark.parametrize(
    ("settings", "expected", "rule"),
    [
        ({}, "dog", "ppl"),
        ({"select": "macro"}, "cat", "macro"),
        ({"select": "micro"}, "dog", "micro"),
        ({"count_eos": True}, "cat", "ppl"),
        # the release counts the closing token
        ({"protocol": "release", "select": "ppl_tie_macro"}, "cat", "ppl_tie_macro"),
        ({"protocol": "release", "select": "ppl_tie_macro", "count_eos": False}, "dog", "ppl_tie_macro"),
        ({"protocol": "release", "select": "micro"}, "dog", "micro"),
    ],
)
def test_selection_by_rule(settings: dict, expected: str, rule: str) -> None:
    script = SCRIPT | {"macro": Reply("cat", (-0.5,), eos=-0.1), "micro": Reply("dog", (-0.25,), eos=-2.0)}
    (trace,) = run(FakeBackend(script), question(), **settings)
    assert (trace.selection.text, trace.selection.rule) == (expected, rule)
    count_eos = Settings.of(**settings).count_eos
    macro, micro = ((0.5 + 0.1) / 2, (0.25 + 2.0) / 2) if count_eos else (0.5, 0.25)
    assert trace.selection.margin == pytest.approx(micro - macro)
    assert trace.ppl == pytest.approx({"macro": math.exp(macro), "micro": math.exp(micro)})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("ppl", "dog"), ("ppl_tie_macro", "cat"), ("release", "cat"), ("micro_context", "dog")],
)
def test_ties(rule: str, expected: str) -> None:
    script = SCRIPT | {"macro": Reply("cat", (-0.3,)), "micro": Reply("dog", (-0.3,))}
    backend = FakeBackend(script, scores={"cat": (-0.3, -0.01), "dog": (-0.3, -0.01)})
    (trace,) = run(backend, question(), select=rule)
    assert trace.selection.text == expected
    assert trace.selection.margin == 0


def test_answers_without_words_or_hope() -> None:
    script = SCRIPT | {"macro": Reply("", (), eos=-0.4), "micro": Reply("dog", (-900.0,))}
    (trace,) = run(FakeBackend(script), question())
    assert (trace.selection.pathway, trace.selection.text) == ("macro", "")
    assert trace.ppl["macro"] == pytest.approx(math.exp(0.4))
    assert trace.micro is not None
    assert trace.micro.ppl() == math.inf
    assert Trace.from_json(trace.to_json()) == trace


def test_margin_in_pixels() -> None:
    backend = FakeBackend(SCRIPT)
    (trace,) = run(backend, question(), box_margin=3)
    assert trace.crop == (17, 2, 40, 18)
    (trace,) = run(backend, question(image=photo(400, 200)), protocol="release", box_margin=0)
    assert trace.crop == (200, 0, 399, 199)


def test_the_backend_s_own_box_format() -> None:
    thousandths = BoxFormat("<box>({:d},{:d}),({:d},{:d})</box>", scale=1000)
    backend = FakeBackend(SCRIPT | {"locate": "<box>(500,250),(1000,750)</box>"}, thousandths)
    (trace,) = run(backend, question())
    assert trace.box == (0.5, 0.25, 1, 0.75)
    assert trace.crop == (20, 5, 40, 15)


def test_questions_without_a_key_are_told_apart() -> None:
    questions = [Question(name, photo(), "What?", "What?") for name in ("a", "b")]
    assert [trace.key for trace in run(FakeBackend(SCRIPT), *questions)] == [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_pictures_of_any_mode(mode: str) -> None:
    backend = FakeBackend(SCRIPT)
    (trace,) = run(backend, question(image=photo().convert(mode)))
    assert trace.crop == (20, 5, 40, 15)
    assert backend.calls[2].conversations[0].images[1].size == (20, 10)


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


def test_the_seconds_of_the_joint_scores_are_shared_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the flow stands still but while answers are scored, which takes eight seconds."""
    clock = [100.0]
    monkeypatch.setattr("dualfocus_lmms.flow.time.perf_counter", lambda: clock[0])
    backend = FakeBackend(SCRIPT)
    score = backend.score

    def slow(conversations):
        clock[0] += 8
        return score(conversations)

    backend.score = slow
    traces = run(backend, *(question(str(number)) for number in range(4)), select="micro_context")
    assert [trace.judged.seconds for trace in traces] == [2.0] * 4


@pytest.mark.parametrize(
    ("settings", "shown", "received"),
    [
        ({}, (588, 308), (588, 308)),  # as many pixels as the image has in the model
        ({"crop_pixels": 70_000}, (364, 196), (364, 196)),
        ({"crop_pixels": "original"}, (300, 150), (308, 140)),
        ({"protocol": "release", "select": "ppl"}, (324, 299), (336, 308)),
        ({"protocol": "release", "select": "ppl", "crop_pixels": "auto"}, (448, 420), (448, 420)),
    ],
)
def test_a_crop_is_enlarged_where_tokens_follow_an_images_size(settings, shown, received):
    image = photo(600, 300)
    backend = FakeBackend(SCRIPT, resolution=DynamicResolution(28, 56 * 56, 3584 * 3584))
    (trace,) = run(backend, question(image=image), **settings)
    crop = backend.calls[-1].conversations[0].images[-1]
    original = image.crop(trace.crop)
    assert (trace.input_size, trace.crop_size, crop.size) == ((588, 308), received, shown)
    expected = original if shown == original.size else original.resize(shown, Image.Resampling.BICUBIC)
    assert crop.tobytes() == expected.tobytes()


def test_a_model_of_one_resolution_gets_the_crop_as_it_is_and_refuses_a_number_of_pixels():
    backend = FakeBackend(SCRIPT)
    (trace,) = run(backend, question())
    assert backend.calls[-1].conversations[0].images[-1].tobytes() == photo().crop(trace.crop).tobytes()
    assert (trace.input_size, trace.crop_size) == (None, None)
    with pytest.raises(UserError, match="crop_pixels=50000"):
        run(backend, question(), crop_pixels=50_000)
