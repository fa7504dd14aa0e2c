"""Scores of a tiny model against an independent computation: the prompt written out, a full forward, sums."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dualfocus_lmms import (
    Conversation,
    GenerationError,
    Prompt,
    Settings,
    StopCriteria,
    UserError,
    answer_batch,
)
from dualfocus_lmms.joint_rules import short_prompt
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN
from dualfocus_lmms.zoom import pad_to_square

ENGINES = ("naive", "shared")
TOLERANCE = 1e-4  # nats, float32
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def talk(*said: str) -> Conversation:
    """A question about an image of its own before each reply."""
    conversation = Conversation()
    for number, text in enumerate(said):
        image = Image.new("RGB", (60 + 20 * number, 40), (10, 90 * number, 200))
        conversation = conversation.user(f"what {number}?", image).assistant(text)
    return conversation


def by_hand(checkpoint, conversation):
    """For each reply the log-probabilities of its tokens and of "</s>", summed in float64.

    The text is written out and tokenised piece by piece, which changes nothing for single characters.
    """
    tokenizer, model = checkpoint.tokenizer, checkpoint.model

    def read(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    ids, spans = read(f"<s>{SYSTEM}"), []
    for turn in conversation.turns:
        if turn.role == "user":
            ids += read(f"USER: {IMAGE_TOKEN}\n{turn.text} ASSISTANT:")
        else:
            said = read(f" {turn.text}" if turn.text else "") if turn.tokens is None else turn.tokens
            spans.append((len(ids), len(ids) + len(said) + 1))
            ids += [*said, *read("</s>")]
    places = [place for place, token in enumerate(ids) if token == model.config.image_token_id]
    length = model.config.image_seq_length
    spread = [
        copy for token in ids for copy in [token] * (length if token == model.config.image_token_id else 1)
    ]
    mean = tuple(int(255 * value) for value in checkpoint.image_processor.image_mean)
    squares = [pad_to_square(image, mean) for image in conversation.images]
    pixels = checkpoint.image_processor(images=squares, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([spread]), pixel_values=pixels).logits[0].double()
    scores = []
    for begin, end in spans:
        moved = sum(place < begin for place in places) * (length - 1)
        scores.append(
            [
                float(logits[at - 1, spread[at]] - logits[at - 1].exp().sum().log())
                for at in range(begin + moved, end + moved)
            ]
        )
    return scores


def assert_close(scores, others):
    assert [len(turn) for turn in scores] == [len(turn) for turn in others]
    for turn, other in zip(scores, others, strict=True):
        assert turn == pytest.approx(other, abs=TOLERANCE)


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize(
    "said",
    [
        ("yes",),
        ("",),
        ("[0.10, 0.20, 0.30, 0.40]", "no"),
        ("[0.10, 0.20, 0.30, 0.40]", ""),
        ("", "a long answer, with a comma"),
        ("a", "b", "c"),
    ],
)
def test_every_turn_is_scored_with_its_closing_token(checkpoint, engine, engine_name, said):
    (scores,) = engine(engine_name).score([talk(*said)])
    assert_close(scores, by_hand(checkpoint, talk(*said)))
    words = [
        len(checkpoint.tokenizer(f" {text}", add_special_tokens=False).input_ids) if text else 0
        for text in said
    ]
    assert [len(turn) for turn in scores] == [count + 1 for count in words]


def test_rows_do_not_see_each_other(engine):
    talks = [talk("yes"), talk("[0.10, 0.20, 0.30, 0.40]", "no"), talk("yes", "yes")]
    together = engine("shared").score(talks)
    for scores, row in zip(together, talks, strict=True):
        assert_close(scores, engine("shared").score([row])[0])
    assert engine("naive").score([]) == []


def test_a_turn_is_scored_with_the_tokens_it_carries(checkpoint, engine):
    tokenizer = checkpoint.tokenizer
    odd = (*tokenizer(" yes", add_special_tokens=False).input_ids, tokenizer.convert_tokens_to_ids("q"))
    plain = talk("yes", "no")
    carried = Conversation().user("what 0?", plain.images[0]).assistant("yes", odd)
    (scores,) = engine("shared").score([carried])
    (other,) = engine("shared").score([carried.user("what?").assistant("no")])
    assert [len(turn) for turn in scores] == [len(odd) + 1]
    assert_close(scores, other[:1])  # what comes later changes nothing
    assert_close([scores[0][: len(odd) - 1]], [by_hand(checkpoint, talk("yes"))[0][:-1]])


def test_a_template_without_a_closing_token_leaves_the_model_s_own(checkpoint, engine, monkeypatch):
    """As the templates of the hub's LLaVA checkpoints, which put a blank after a reply."""
    backend = engine("shared")
    (closed,) = backend.score([talk("yes")])
    own = backend.renderer.template
    monkeypatch.setattr(
        backend.renderer, "template", replace(own, text=own.text.replace("{{ eos_token }}", " "))
    )
    (blank,) = backend.score([talk("yes")])
    assert_close(blank, closed)


@pytest.mark.parametrize("conversation", [Conversation(), talk("yes").user("and?")])
def test_a_conversation_ends_with_the_assistant(engine, conversation):
    with pytest.raises(ValueError, match="assistant"):
        engine("shared").score([conversation])


def test_logits_that_are_no_numbers_stop_the_run(engine, monkeypatch):
    backend = engine("shared")
    logits = backend.logits
    monkeypatch.setattr(backend, "logits", lambda *given: logits(*given) * math.nan)
    with pytest.raises(GenerationError):
        backend.score([talk("yes")])


# --- the rules that use it --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine_name", ENGINES)
def test_the_micro_answer_s_own_logprobs_are_its_scores_under_the_micro_context(engine, ragged, engine_name):
    """So that `micro_context` needs no forward for it."""
    questions, limits = ragged(8)
    asked, backend = [], engine(engine_name)
    generate = backend.generate

    def spy(prompts):
        answers = generate(prompts)
        rows = zip(prompts, answers, strict=True)
        asked.extend((prompt.conversation, answer) for prompt, answer in rows if prompt.stage == "micro")
        return answers

    backend.generate = spy
    answer_batch(backend, questions, limits, Settings.of())
    assert len(asked) >= 4
    for conversation, answer in asked:
        (scores,) = engine(engine_name).score([conversation.assistant(answer.text, answer.tokens)])
        assert scores[-1][: len(answer.logprobs)] == pytest.approx(answer.logprobs, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("rule", "options"), [("release", ()), ("release", ("[0", "Not so", "Yes sir")), ("micro_context", ())]
)
@pytest.mark.parametrize("count_eos", [True, False])
def test_the_rules_against_sums_written_out(checkpoint, engine, ragged, rule, options, count_eos):
    questions, limits = ragged(12, seed=3)
    questions = [replace(question, options=options) for question in questions]
    settings = Settings.of(protocol="release", select=rule, count_eos=count_eos)
    traces = answer_batch(engine("shared"), questions, limits, settings)
    compared = 0
    for question, trace in zip(questions, traces, strict=True):
        if trace.micro is None or trace.judged.winner is not None:
            continue
        asked = Conversation().user(trace.prompts["locate"], question.image)
        if rule == "release":
            asked = asked.assistant(trace.locate.text).user(
                short_prompt(question), question.image.crop(trace.crop)
            )
        else:
            asked = asked.assistant(trace.locate.text, trace.locate.tokens)
            asked = asked.user(trace.prompts["micro"], question.image.crop(trace.crop))
        nlls = []
        for answer, text in (
            (trace.macro, trace.macro.text),
            (trace.micro, trace.micro.text.strip("\n").strip(".")),
        ):
            if options:
                (text,) = (option for option in options if text in option or option in text)
            said = (text, None) if rule == "release" else (answer.text, answer.tokens)
            turns = by_hand(checkpoint, asked.assistant(*said))
            turns = turns if rule == "release" else turns[-1:]
            closed = rule == "release" or answer.ended
            counted = [value for turn in turns for value in turn[:-1]]
            if count_eos or not counted:
                counted += [turn[-1] for turn in turns] if closed else []
            nlls.append(-sum(counted) / len(counted))
        assert trace.selection.margin == pytest.approx(nlls[1] - nlls[0], abs=TOLERANCE)
        tie = "macro" if rule == "release" else "micro"
        expected = "micro" if nlls[1] < nlls[0] else "macro" if nlls[1] > nlls[0] else tie
        assert abs(nlls[1] - nlls[0]) < TOLERANCE or trace.selection.pathway == expected
        compared += 1
    assert compared >= 2


def test_forwards_are_one_for_each_answer_that_is_scored(engine, ragged):
    questions, limits = ragged(12, seed=3)
    for rule, most in (("ppl", 0), ("micro_context", 1), ("release", 2)):
        backend, scored = engine("shared"), []
        logits = backend.logits
        backend.logits = lambda *given, logits=logits, scored=scored: scored.append(given) or logits(*given)
        traces = answer_batch(backend, questions, limits, Settings.of(protocol="release", select=rule))
        micros = [trace for trace in traces if trace.micro is not None]
        if rule == "release":
            expected = 2 * sum(trace.judged.winner is None for trace in micros)
        else:
            same = sum((t.macro.tokens, t.macro.ended) == (t.micro.tokens, t.micro.ended) for t in micros)
            expected = most * (len(micros) - same)
        assert len(scored) == expected
        assert bool(most) == bool(expected)


PENALTIES = [
    {"repetition_penalty": 1.3},
    {"do_sample": True, "temperature": 5.0, "top_k": 3},
    {"num_beams": 4, "length_penalty": 2.0},
    {"no_repeat_ngram_size": 1, "min_new_tokens": 9},
    {"num_return_sequences": 2, "prompt_lookup_num_tokens": 3},
    {"forced_bos_token_id": 5, "bad_words_ids": [[7]], "max_length": 3},
]


@pytest.mark.parametrize("own", PENALTIES)
def test_the_checkpoint_s_own_generation_settings_change_no_answer(
    checkpoint, engine, ragged, monkeypatch, own
):
    questions, limits = ragged(5)
    plain = answer_batch(engine("naive"), questions, limits, Settings.of())
    for name, value in own.items():
        monkeypatch.setattr(checkpoint.model.generation_config, name, value, raising=False)
    kept = checkpoint.model.generation_config
    for name in ("naive", "tree"):
        traces = answer_batch(engine(name), questions, limits, Settings.of())
        for trace, other in zip(traces, plain, strict=True):
            assert [one.tokens for one in trace.answers] == [one.tokens for one in other.answers]
            assert trace.selection.text == other.selection.text
    assert checkpoint.model.generation_config is kept


def test_the_template_s_closing_token_ends_an_answer(checkpoint, engine, monkeypatch):
    """A token that neither the tokenizer nor the generation settings name as an end."""
    question = Conversation().user("what?", Image.new("RGB", (20, 20)))
    [prompt] = Prompt.batch("macro", [question], [StopCriteria(6)])
    [answer] = engine("naive").generate([prompt])
    closing = answer.tokens[2]
    assert closing not in answer.tokens[:2]
    monkeypatch.setattr(Renderer, "closing_ids", frozenset({closing}))
    for name in ("naive", "batched", "shared", "tree"):
        [ended] = engine(name).generate([prompt])
        assert (ended.tokens, ended.ended) == (answer.tokens[:2], True)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "default"])
def test_rotary_positions_that_depend_on_the_length_are_refused_beyond_it(checkpoint, monkeypatch, kind):
    """Up to it the engines agree; beyond it only the plain one computes what the model does."""
    text = checkpoint.model.config.get_text_config()
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    monkeypatch.setattr(text, "rope_parameters", rope)
    question = Conversation().user("what?", Image.new("RGB", (20, 20)))
    [prompt] = Prompt.batch("macro", [question], [StopCriteria(4)])
    [answer] = make_engine("tree", checkpoint).generate([prompt])
    length = answer.usage.tokens + 1  # of the prompt and the reply: its last token is not computed
    monkeypatch.setattr(text, "max_position_embeddings", length)
    assert make_engine("tree", checkpoint).generate([prompt])[0].tokens == answer.tokens
    monkeypatch.setattr(text, "max_position_embeddings", length - 1)
    if kind == "default":
        assert make_engine("tree", checkpoint).generate([prompt])[0].tokens == answer.tokens
        return
    for name in ("tree", "batched"):
        with pytest.raises(UserError, match="naive"):
            make_engine(name, checkpoint).generate([prompt])
    assert make_engine("naive", checkpoint).generate([prompt])[0].tokens
