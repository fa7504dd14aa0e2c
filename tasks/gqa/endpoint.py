"""Distractors from a chat model behind any endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import openai

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.tasks.gqa.distractors import DISTRACTORS, GqaQuestion, NoDistractorsError, unlike

KEY = "OPENAI_API_KEY"
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
        with self._lock:
            self.replies += 1
            self.uncounted += usage is None
            self.prompt_tokens += getattr(usage, "prompt_tokens", None) or 0
            self.completion_tokens += getattr(usage, "completion_tokens", None) or 0


class ChatEndpoint:
    """Asks a chat model for distractors; may be called from several threads.

    url: the base, such as http://localhost:8000/v1. The key is $OPENAI_API_KEY, where it is set. retries: of
    one request that was refused (429), failed (5xx) or got no reply, with growing pauses or as long as the
    endpoint asks for. UserError when it knows neither the key nor the model.
    """

    def __init__(self, url: str, model: str, retries: int = 5) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"The endpoint is {url!r}: give a URL such as http://localhost:8000/v1.")
        self.url, self.model, self.spent = url, model, Spent()
        # The client insists on a key, endpoints of one's own do not.
        key = os.environ.get(KEY) or "none"
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=retries, timeout=TIMEOUT)

    def __call__(self, question: GqaQuestion) -> list[str]:
        for _ in range(ATTEMPTS):
            reply = self._ask(PROMPT.format(question=question.text, answer=question.answer))
            chosen = unlike(question.answer, read_list(reply, question.answer))
            if len(chosen) == DISTRACTORS:
                return chosen
        raise NoDistractorsError(
            f"{ATTEMPTS} replies without {DISTRACTORS} usable answers, the last: {reply[:200]!r}"
        )

    def _ask(self, prompt: str) -> str:
        try:
            completion = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}]
            )
        except (openai.AuthenticationError, openai.NotFoundError) as error:
            raise UserError(
                f"{self.url} answered {error.status_code} for the model {self.model!r}: check --endpoint, "
                f"--model and the key in {KEY}."
            ) from error
        except (openai.APIError, json.JSONDecodeError) as error:
            raise NoDistractorsError(f"{type(error).__name__}: {error}") from error
        self.spent.add(getattr(completion, "usage", None))
        return _content(completion)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


def _content(completion: Any) -> str:
    """The text of a reply; empty when it has none (a body in another form, a reply that was held back)."""
    choices = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    return getattr(message, "content", None) or ""


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
