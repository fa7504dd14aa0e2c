"""Drafts: what they expect, that they change no answer, and how many forwards they save."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from dualfocus_lmms import BoxFormat, Conversation, Question, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.engines.batch_rows import Row
from dualfocus_lmms.models.engines.drafts import Draft, box_draft
from dualfocus_lmms.models.engines.naive import NaiveBackend
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.engines.tree import TreeBackend
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.tiny.families import save_tiny_family
from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN, load_tokenizer
from dualfocus_lmms.types import Prompt

TOLERANCE = 1e-4  # nats, float32
BOX = Draft(((1, 2), (3, 4), (5,)), (2, 1), gap_token=60)


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ([], (1, 2)),
        ([1], (2,)),
        ([1, 2], ()),
        ([1, 2, 70], ()),
        ([1, 2, 70, 71], (3, 4)),
        ([1, 2, 70, 71, 3], (4,)),
        ([1, 2, 70, 71, 3, 4], ()),
        ([1, 2, 70, 71, 3, 4, 72], (5,)),
        ([1, 2, 70, 71, 3, 4, 72, 5], ()),
        ([1, 2, 70, 71, 3, 4, 72, 5, 9], ()),
        ([9], ()),
        ([1, 9], ()),
        ([1, 2, 70, 71, 72], ()),  # a number that is longer than usual
        ([1, 2, 70, 71, 72, 3], (4,)),
        ([1, 2, 70, 3], (4,)),  # and a shorter one
        ([1, 2, 70, 71, 3, 9], ()),
    ],
)
def test_a_draft_expects_the_next_run(generated: list[int], expected: tuple[int, ...]):
    assert BOX.after(generated) == expected


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ([], ()),
        ([1, 2], ()),  # two unknown ones
        ([1, 2, 70], (60, 3, 4)),
        ([1, 2, 70, 71], ()),
        ([1, 2, 70, 71, 72], ()),
        ([1, 2, 70, 71, 3, 4], ()),  # before the last run
        ([9, 2, 70], ()),
    ],
)
def test_past_an_unknown_token_a_draft_expects_the_next_run(generated: list[int], expected: tuple[int, ...]):
    assert BOX.past_gap(generated) == expected
    assert replace(BOX, gap_token=None).past_gap(generated) == ()


def test_a_draft_of_one_run_is_a_reply_and_the_empty_draft_expects_nothing():
    assert Draft(((4, 5, 6),)).after([]) == (4, 5, 6)
    assert Draft(((4, 5, 6),)).after([4, 5]) == (6,)
    assert Draft(((4, 5, 6),)).after([4, 5, 6]) == ()
    assert Draft(((),)).after([]) == Draft().after([]) == Draft().after([4]) == ()


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.mark.parametrize(
    ("template", "scale", "frame", "runs", "gaps"),
    [
        ("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", 1, "original", ("[0.", ", 0.", ", 0.", ", 0.", "]"), (2,) * 4),
        ("<b>({:d},{:d}),({:d},{:d})", 1000, "square", ("<b>(", ",", "),(", ",", ")"), (3,) * 4),
        ("{:d} {:d} {:d} {:d}", 1, "resized", ("", " ", " ", " "), (3,) * 3),
    ],
)
def test_the_draft_of_a_box_is_what_all_boxes_share(template, scale, frame, runs, gaps):
    draft = box_draft(BoxFormat(template, scale, frame), characters)
    assert (draft.runs, draft.gaps) == (tuple(tuple(characters(run)) for run in runs), gaps)
    assert chr(draft.gap_token) in "0123456789"


def test_a_tokenizer_that_cuts_boxes_irregularly_has_no_draft():
    assert box_draft(BoxFormat(), lambda text: characters(text.replace("12", "!"))) == Draft()


def test_llamas_tokenizer_writes_a_box_of_24_tokens_8_of_them_unknown(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "llama"))
    renderer = Renderer(tokenizer, LLAVA, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    draft = box_draft(LLAVA.box_format, renderer.reply)
    assert draft.gaps == (2, 2, 2, 2)
    assert sum(len(run) for run in draft.runs) == 24 - 8
    assert tokenizer.decode(sum(draft.runs, ())) == "[0., 0., 0., 0.]"


def plain_questions(count: int) -> list[Question]:
    """Questions about plain colours, which the taught model answers with a word and a box."""
    colors = [(220, 40, 30), (20, 180, 200), (240, 200, 10), (10, 20, 250)]
    return [
        Question(
            str(number), Image.new("RGB", (40 + number, 30), colors[number % 4]), "is it red?", "is it red?"
        )
        for number in range(count)
    ]


def assert_same(traces, others):
    for trace, other in zip(traces, others, strict=True):
        assert (trace.box, trace.crop, trace.fallback) == (other.box, other.crop, other.fallback)
        for answer, oracle in zip(trace.answers, other.answers, strict=True):
            assert (answer.tokens, answer.ended, answer.text) == (oracle.tokens, oracle.ended, oracle.text)
            assert answer.logprobs == pytest.approx(oracle.logprobs, abs=TOLERANCE)


def test_boxes_and_repeated_answers_take_few_forwards(engine):
    questions, limits = plain_questions(4), [StopCriteria(8)] * 4
    plain, quick = engine("shared"), engine("template")
    expected = answer_batch(plain, questions, limits, Settings.of())
    traces = answer_batch(quick, questions, limits, Settings.of())
    assert_same(traces, expected)
    for trace in traces:
        assert len(trace.locate.tokens) == 25  # its blank is a separate token
        assert all(answer.ended for answer in trace.answers)
        assert trace.micro.tokens == trace.macro.tokens
    macro = max(len(trace.macro.tokens) for trace in traces) + 1
    assert plain.counts.forwards == macro + 26 + macro
    assert quick.counts.forwards == macro + 6 + 1
    assert quick.counts.encodes == plain.counts.encodes == 8
    assert quick.counts.tokens == sum(answer.usage.tokens for trace in traces for answer in trace.answers)


@pytest.mark.parametrize(("name", "alone"), [("template", 5), ("tree", 0)])
def test_a_wrong_lookahead_costs_the_forward_that_it_would_have_saved(engine, monkeypatch, name, alone):
    questions, limits = plain_questions(4), [StopCriteria(64)] * 4
    expected = answer_batch(engine("naive"), questions, limits, Settings.of())
    propose = Row.propose

    def propose_wrongly(row: Row) -> None:
        row.lookahead = None if row.lookahead is None else 5
        propose(row)

    monkeypatch.setattr(Row, "propose", propose_wrongly)
    quick = engine(name)
    traces = answer_batch(quick, questions, limits, Settings.of())
    assert_same(traces, expected)
    assert quick.counts.forwards == alone + 9 + 1
    assert quick.counts.tokens == sum(answer.usage.tokens for trace in traces for answer in trace.answers)


def test_a_reply_is_confirmed_in_one_forward_and_a_wrong_draft_changes_nothing(engine):
    questions, limits = plain_questions(4), [StopCriteria(30)] * 4
    conversations = [Conversation().user(question.prompt, question.image) for question in questions]
    expected = engine("shared").generate(Prompt.batch("macro", conversations, limits))
    for drafts in (
        [answer.tokens for answer in expected],
        [(*answer.tokens[:1], 7, 8, 9) for answer in expected],
        [(), expected[1].tokens, (*expected[2].tokens, 5, 5), (6,) * 40],
    ):
        backend = engine("template")
        answers = backend.generate(Prompt.batch("macro", conversations, limits, drafts=drafts))
        for answer, other in zip(answers, expected, strict=True):
            assert (answer.tokens, answer.ended) == (other.tokens, other.ended)
            assert answer.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
        assert backend.counts.tokens == sum(answer.usage.tokens for answer in answers)
        if drafts[0] == expected[0].tokens:
            assert backend.counts.forwards == 1


def forced(checkpoint, name):
    """An engine without end of turn: replies of the length of their limit."""
    backend = make_engine(name, checkpoint)
    backend.eos_ids = frozenset()
    return backend


@pytest.mark.parametrize("most", [1, 2, 3, 20, 40])
def test_limits_and_stop_strings_cut_a_draft(checkpoint, ragged, most):
    questions, _ = ragged(8)
    conversations = [Conversation().user(question.prompt, question.image) for question in questions]
    whole = forced(checkpoint, "shared").generate(
        Prompt.batch("macro", conversations, [StopCriteria(40)] * 8)
    )
    drafts = [answer.tokens for answer in whole]
    stops = [(), (), *((answer.text[2:4],) for answer in whole[2:])]
    limits = [StopCriteria(most, stop) for stop in stops]
    plain, quick = forced(checkpoint, "shared"), forced(checkpoint, "template")
    expected = plain.generate(Prompt.batch("macro", conversations, limits))
    for answer, other in zip(
        quick.generate(Prompt.batch("macro", conversations, limits, drafts=drafts)), expected, strict=True
    ):
        assert (answer.tokens, answer.text, answer.ended) == (other.tokens, other.text, other.ended)
        assert answer.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
    assert quick.counts.forwards == {40: 3, 20: 2}.get(most, 1)


def test_a_drafted_reply_can_be_extended(engine):
    """The holes of rejected draft tokens stay in the kept cache and stay invisible to what extends it."""
    questions, limits = plain_questions(4), [StopCriteria(64)] * 4
    settings = Settings.of()
    plain, quick = engine("shared"), engine("template")
    runs = quick._box.runs
    quick._box = replace(quick._box, runs=(*runs[:3], (9, 9), *runs[4:]))
    assert_same(
        answer_batch(quick, questions, limits, settings), answer_batch(plain, questions, limits, settings)
    )


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_drafts_are_exact_in_other_families(tmp_path, ragged, name):
    """Half of each draft is correct: the other slots become holes, and positions go on without them."""
    loaded = load_checkpoint(str(save_tiny_family(tmp_path, name)), device="cpu")
    questions = [one for one in ragged(30)[0] if min(one.image.size) >= 30][:5]
    conversations = [Conversation().user(question.prompt, question.image) for question in questions]
    limits = [StopCriteria(9 + number) for number in range(len(questions))]
    expected = make_engine("naive", loaded).generate(Prompt.batch("macro", conversations, limits))
    backend = make_engine("template", loaded)
    drafts = [(*answer.tokens[: 2 + number], 6, 7) for number, answer in enumerate(expected)]
    answers = backend.generate(Prompt.batch("macro", conversations, limits, "conversation", drafts))
    extensions = [
        conversation.assistant(answer.text, answer.tokens).user("and now?", question.image.rotate(90))
        for conversation, answer, question in zip(conversations, answers, questions, strict=True)
    ]
    answers += backend.generate(
        Prompt.batch("micro", extensions, limits, drafts=[answer.tokens for answer in answers])
    )
    expected += make_engine("naive", loaded).generate(Prompt.batch("micro", extensions, limits))
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.tokens, answer.ended) == (other.tokens, other.ended)
        assert answer.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["shared", "template"])
def test_questions_about_one_image_read_it_once(engine, name):
    first, second = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 50), "blue")
    texts = ["is it?", "what is it, then?", "is it red?", "is it?", "where?"]
    questions = [
        Question(str(number), second if number == 3 else first, text, text)
        for number, text in enumerate(texts)
    ]
    limits = [StopCriteria(8)] * 5
    backend = engine(name)
    traces = answer_batch(backend, questions, limits, Settings.of())
    assert_same(traces, answer_batch(engine("naive"), questions, limits, Settings.of()))
    assert backend.counts.tokens == sum(answer.usage.tokens for trace in traces for answer in trace.answers)
    assert [trace.macro.usage.encodes for trace in traces] == [1, 0, 0, 1, 0]
    apart = [answer_batch(engine(name), [question], limits[:1], Settings.of())[0] for question in questions]
    rendered = backend.renderer.render(Conversation().user("is it?", first), backend.image_reader.ids)
    trunk = sum(rendered.spans[0])
    saved = [
        one.macro.usage.tokens - trace.macro.usage.tokens for one, trace in zip(apart, traces, strict=True)
    ]
    assert saved == [0, trunk, trunk, 0, trunk]


def test_equal_but_different_images_are_read_each_by_itself(engine):
    questions = [Question(str(n), Image.new("RGB", (40, 30), "red"), "is it?", "is it?") for n in range(3)]
    backend = engine("shared")
    answer_batch(backend, questions, [StopCriteria(1)] * 3, Settings.of(pathway="macro"))
    assert (backend.counts.forwards, backend.counts.encodes) == (1, 3)


def test_logits_that_are_not_numbers_stop_a_draft(checkpoint):
    backend = make_engine("template", checkpoint)
    weight = checkpoint.model.lm_head.weight
    healthy = weight.detach().clone()
    conversation = Conversation().user("is it red?", Image.new("RGB", (40, 30), "red"))
    try:
        with torch.no_grad():
            weight[5, 0] = float("nan")
        with pytest.raises(RuntimeError):
            backend.generate(Prompt.batch("macro", [conversation], [StopCriteria(8)], drafts=[(5, 6, 7)]))
    finally:
        with torch.no_grad():
            weight.copy_(healthy)


def test_the_fastest_engine_is_the_default_of_a_family(checkpoint):
    assert type(make_engine(None, checkpoint)) is TreeBackend
    generic = replace(checkpoint, family=replace(checkpoint.family, engine="naive"))
    assert type(make_engine(None, generic)) is NaiveBackend
    for name in ("shared", "template", "tree"):
        with pytest.raises(UserError):
            make_engine(name, generic)
