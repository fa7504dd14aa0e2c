"""Questions for a server, and their answers."""

from __future__ import annotations

from typing import Any

from PIL import Image

from dualfocus_lmms import Question, Settings, StopCriteria, Trace
from dualfocus_lmms.models.server.client import answer_each

QUICK = {"retry-after-ms": "5"}  # the client obeys it instead of its own pauses


def questions(count: int) -> list[Question]:
    names = ["cat", "dog", "tv", "car", "person", "bus"]
    return [
        Question(
            str(number),
            Image.new("RGB", (40 + 9 * number, 30), (number * 37 % 256, 90, 255 - number * 51 % 256)),
            f"Is there a {names[number % 6]}?",
            f"Is there a {names[number % 6]}?\nAnswer the question using a single word or phrase.",
        )
        for number in range(count)
    ]


def answered(
    backend: Any, asked: list[Question], limits: list[StopCriteria], settings: Settings, concurrency: int = 16
) -> list[Trace]:
    """One trace for each question, in order, where `concurrency` are under way at once."""
    traces = answer_each(backend, asked, limits, settings, concurrency)
    done = {trace.question_id: trace for trace in traces}
    return [done[question.id] for question in asked]


def ask(backend: Any, count: int = 1, **settings: Any) -> list[Trace]:
    return answered(backend, questions(count), [StopCriteria(8)] * count, Settings.of(**settings))
