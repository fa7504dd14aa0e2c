"""What is read from chat completions as vLLM, SGLang and others word them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dualfocus_lmms import Answer, GenerationError, StopCriteria
from dualfocus_lmms.models.server.reply import Source, read_reply


def completion(
    pieces: list[str],
    text: str | None = None,
    finish: str = "stop",
    spoken: int | None = None,
    values: list[Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A completion of the tokens `pieces`, whose log-probabilities are -0.1, -0.2, ... unless given."""
    values = [-(n + 1) / 10 for n in range(len(pieces))] if values is None else values
    listed = [{"token": piece, "logprob": value} for piece, value in zip(pieces, values, strict=True)]
    spoken = len(pieces) if spoken is None else spoken
    said = {
        "id": "1",
        "created": 0,
        "model": "m",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(pieces) if text is None else text},
                "logprobs": {"content": listed},
                "finish_reason": finish,
                **extra,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": spoken, "total_tokens": 7 + spoken},
    }
    return json.loads(json.dumps(said))


def read(reply: Any, stop: tuple[str, ...] = (), needs_end: bool = False) -> Answer:
    return read_reply(Source("http://h/v1", "macro"), reply, StopCriteria(16, stop), needs_end, 1, 0.5)


def test_a_reply_that_ends_by_itself_has_its_closing_token_last():
    answer = read(completion([" Yes", "</s>"], " Yes", stop_reason=None, token_ids=[31, 2]), needs_end=True)
    assert (answer.text, answer.tokens, answer.ended) == ("Yes", (31,), True)
    assert answer.logprobs == (-0.1, -0.2)
    assert (answer.nll(), answer.nll(count_eos=True)) == (pytest.approx(0.1), pytest.approx(0.15))


def test_a_closing_token_that_is_not_listed_does_not_count_and_is_refused_where_it_must():
    reply = completion([" Yes", " sir"], spoken=3)
    answer = read(reply)
    assert (answer.ended, answer.logprobs) == (False, (-0.1, -0.2))
    with pytest.raises(GenerationError):
        read(reply, needs_end=True)


def test_a_reply_that_ran_into_its_limit_is_no_ended_one():
    answer = read(completion(["a", "b"], finish="length"), needs_end=True)
    assert (answer.ended, len(answer.tokens), len(answer.logprobs)) == (False, 2, 2)


def test_a_reply_of_nothing_but_the_closing_token():
    answer = read(completion(["</s>"], ""))
    assert (answer.text, answer.tokens, answer.ended, answer.logprobs) == ("", (), True, (-0.1,))
    with pytest.raises(GenerationError):
        read(completion([], "", spoken=1))


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "kept"),
    [
        (["Yes", ".", "\n", "\n"], "\n\n", "Yes.", 2),
        (["Yes", ".\n\n"], "\n\n", "Yes.", 1),
        (["Yes", "no", " ##", "#"], "###", "Yesno ", 2),
        (["Yes", "The", "end"], "The end", "Yes ", 1),  # a tokenizer whose tokens lose their blanks
        (["###"], "###", "", 1),  # an answer of nothing else keeps a token
    ],
)
@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
def test_a_stop_string_and_its_tokens_are_cut(pieces, stop, text, kept, name):
    answer = read(completion(pieces, text, **{name: stop}), (stop,))
    assert (answer.text, answer.ended) == (text.strip(), False)
    assert answer.logprobs == tuple(-(n + 1) / 10 for n in range(kept))
    assert len(answer.tokens) == kept


def test_a_stop_string_is_found_where_the_server_does_not_name_it_and_cut_where_it_did_not():
    answer = read(completion(["Yes", "###", "x"]), ("\n\n", "###"))
    assert (answer.text, answer.ended, answer.logprobs) == ("Yes", False, (-0.1,))
    answer = read(completion(["Yes", "</s>"], "Yes"), ("###",))
    assert (answer.text, answer.ended) == ("Yes", True)


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        ([" Two", " cats", "</s>"], " Two cats", ("Two", " cats")),
        (["Two", "cats", "</s>"], "Two cats", ("Two", " cats")),
        (["<0xE7>", "<0x8C>", "<0xAB>", "</s>"], "猫", ("", "", "猫")),
        (["<|box|>", "0.5", "</s>"], "0.5", ("", "0.5")),  # a special token that the server leaves out
        (["<|box|>", "0.5", "</s>"], "<|box|>0.5", ("<|box|>", "0.5")),
    ],
)
def test_the_text_of_each_token(pieces, text, expected):
    answer = read(completion(pieces, text, stop_reason=None))
    assert (answer.text, answer.pieces) == (text.strip(), expected)


def test_a_token_that_a_stop_string_ends_in_keeps_the_text_before_it():
    assert read(completion(["Yes", ".\n\n"], "Yes.", stop_reason="\n\n"), ("\n\n",)).pieces == ("Yes",)
    assert read(completion(["Yes", ".", "\n", "\n"], "Yes.", stop_reason="\n\n"), ("\n\n",)).pieces == (
        "Yes",
        ".",
    )


@pytest.mark.parametrize("reason", [None, 32007])
def test_a_closing_token_is_no_stop_string(reason):
    answer = read(completion(["Yes", "<|end|>"], "Yes", stop_reason=reason), ("\n\n",))
    assert (answer.text, answer.ended, len(answer.tokens)) == ("Yes", True, 1)


def test_tokens_without_ids_are_negative_and_equal_where_their_texts_are():
    first, second, third = (read(completion([*text, "</s>"], text)) for text in ("ab", "ac", "ab"))
    assert all(token < 0 for token in first.tokens + second.tokens)
    assert first.tokens[0] == second.tokens[0]
    assert first.tokens[1] != second.tokens[1]
    assert first.tokens == third.tokens


@pytest.mark.parametrize(
    "broken",
    [
        completion(["a", "b"], values=[-0.1, float("nan")]),
        completion(["a", "b"], values=[-0.1, float("-inf")]),
        completion(["a", "b"], values=[-0.1, -9999.0]),
        completion(["a", "b"], values=[-0.1, None]),
        completion(["a"], logprobs=None),
        completion(["a"], logprobs={"content": None}),
        completion(["a", "b"], spoken=9),
        completion(["a"], finish="content_filter"),
        completion(["a"], finish="tool_calls"),
        completion(["token_id:5", "token_id:6"], "a", stop_reason="###"),
        {"id": "1", "choices": []},
    ],
)
def test_a_reply_without_usable_log_probabilities_is_a_failure(broken):
    with pytest.raises(GenerationError):
        read(broken, ("###",))


def test_usage_leaves_out_what_the_server_had_cached():
    reply = completion(["a", "</s>"], "a")
    assert read(reply).usage.tokens == 7 + 1
    reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 5}
    assert (read(reply).usage.tokens, read(reply).usage.encodes, read(reply).usage.seconds) == (3, 1, 0.5)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["<think>", "Hm", "</think>", "\n\n", "Yes", "</s>"], "<think>Hm</think>\n\nYes"),
        (["Hm", "</think>", "\n\n", "Yes", "</s>"], "Hm</think>\n\nYes"),  # the prompt had opened it
        (["<|channel>", "thought", "\n", "<channel|>", "Yes", "<turn|>"], "thought\nYes"),
    ],
)
def test_an_answer_begins_after_its_reasoning(pieces, text):
    values = [-0.1 * number for number, _ in enumerate(pieces)]
    answer = read(completion(pieces, text, values=values))
    assert (answer.text, len(answer.tokens), answer.ended) == ("Yes", 1, True)
    assert answer.logprobs == tuple(values[-2:])


@pytest.mark.parametrize("pieces", [["<think>", "Hm"], ["<think>", "Hm", "</think>"]])
def test_reasoning_without_an_answer_is_a_failure(pieces):
    with pytest.raises(GenerationError, match="enable_thinking"):
        read(completion(pieces, finish="length"))


@pytest.mark.parametrize(
    ("pieces", "text", "written"),
    [
        (["yes", " <b> ", "</s>"], "yes <b>", ("yes", " <b>")),  # looks special, and is in the text
        (["a", " [B]", " c", "</s>"], "a [B] c", ("a", " [B]", " c")),
        (["<|im|>", "yes", "</s>"], "yes", ("", "yes")),
    ],
)
def test_each_token_has_its_part_of_the_text(pieces, text, written):
    assert read(completion(pieces, text)).pieces == written
