"""Distractors from a chat model behind any endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from dualfocus_lmms.chat_client import KEY, check_url, connect, public, read_json, server_errors
from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.tasks.gqa.distractors import DISTRACTORS, GqaQuestion, NoDistractorsError, unlike
from dualfocus_lmms.text_output import excerpt

ATTEMPTS = 3  # replies requested until one can be parsed
TIMEOUT = 60.0  # seconds a reply may take

PROMPT = """\
Here is a question about a picture, and its right answer.
Question: {question}
Answer: {answer}
Write five wrong answers for a multiple-choice test. Each must be of the same kind and form as the right \
answer (a colour for a colour, as many words) and likely for such a picture. None may be right as well: no \
synonym of the right answer, nothing more general and nothing more special. Reply with a JSON list of the \
five texts and nothing else."""


@dataclass
class Spent:
    """What an endpoint was used for: replies, tokens as it counts them, and replies without a count."""

    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def add(self, usage: Any) -> None:
        """Count one reply. usage: that of the reply; None when the endpoint gave none."""
        given = usage if isinstance(usage, dict) else {}
        counted = [given.get(f"{name}_tokens") for name in ("prompt", "completion")]
        whole = [count for count in counted if type(count) is int and count >= 0]
        known = len(whole) == len(counted)
        with self._lock:
            self.replies += 1
            self.uncounted += not known
            self.prompt_tokens += whole[0] if known else 0
            self.completion_tokens += whole[1] if known else 0


class ChatEndpoint:
    """Asks a chat model for distractors; may be called from several threads.

    url: the base, such as http://localhost:8000/v1. The key is $OPENAI_API_KEY, where it is set. retries: of
    one request that was refused (429), failed (5xx) or got no reply, with growing pauses or as long as the
    endpoint asks for. UserError when it knows neither the key nor the model.
    """

    def __init__(self, url: str, model: str, retries: int = 5) -> None:
        check_url(url, "--endpoint")
        self.url, self.model, self.spent = public(url), model, Spent()
        self._client = connect(url, os.environ.get(KEY), retries, TIMEOUT)

    def __call__(self, question: GqaQuestion) -> list[str]:
        for _ in range(ATTEMPTS):
            reply, shown = self._ask(PROMPT.format(question=question.text, answer=question.answer))
            chosen = unlike(question.answer, read_list(reply, question.answer))
            if len(chosen) == DISTRACTORS:
                return chosen
        raise NoDistractorsError(
            f"{ATTEMPTS} replies without {DISTRACTORS} usable answers, the last: {shown!r}"
        )

    def _ask(self, prompt: str) -> tuple[str, str]:
        """(the text of a reply, what is shown of it): an unreadable reply has no text."""
        try:
            with server_errors(self._client):
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}]
                )
        except UserError as error:
            code = getattr(error.__cause__, "status_code", 0)
            if code in (401, 404) or code < 400:  # the key, the model, the address: of all questions
                raise UserError(f"{error} Check --endpoint, --model and the key in {KEY}.") from error
            raise NoDistractorsError(str(error)) from error
        except GenerationError as error:
            raise NoDistractorsError(str(error)) from error
        try:
            completion = read_json(raw.http_response, self.url)
        except GenerationError as error:
            self.spent.add(None)
            return "", str(error)
        self.spent.add(completion.get("usage"))
        text = _content(completion)
        return text, excerpt(text)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


def _content(completion: dict[str, Any]) -> str:
    """The text of a reply; empty when it has none (a body in another form, a reply that was held back)."""
    match completion:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
    return ""


def read_list(reply: str, answer: str) -> list[str]:
    """The texts of the JSON list in a reply, on one line each, without case where the answer has none.

    >>> read_list('Sure: ["Red.", "Dark  blue"]', "green")
    ['red', 'dark blue']
    """
    try:
        values = json.loads(reply[reply.find("[") : reply.rfind("]") + 1])
    except json.JSONDecodeError:
        return []
    texts = [" ".join(value.split()).rstrip(".") for value in values if isinstance(value, str)]
    return [text.lower() if answer.islower() else text for text in texts if text]
