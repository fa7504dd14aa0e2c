"""Both engines on a tiny Qwen-VL: the same tokens and log-probabilities, and the images encoded once."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import StopCriteria
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.engines.naive import NaiveBackend
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.types import Prompt


def stages(backend: Any, questions: Any, limits: Any) -> list[Any]:
    """The answers of all three stages; the micro stage shows a part of the image."""
    macro = [Conversation().user(question.prompt, question.image) for question in questions]
    locate = [Conversation().user(f"Where? {question.text}", question.image) for question in questions]
    answers = backend.generate(Prompt.batch("macro", macro, limits, keep="image"))
    boxes = backend.generate(Prompt.batch("locate", locate, limits, keep="conversation"))
    micro = []
    for conversation, box, question in zip(locate, boxes, questions, strict=True):
        crop = question.image.resize((50, 40), Image.Resampling.NEAREST)
        micro.append(conversation.assistant(box.text, box.tokens).user(question.prompt, crop))
    return [*answers, *boxes, *backend.generate(Prompt.batch("micro", micro, limits))]


def test_engines_agree(qwen: Any, ragged: Any):
    questions, limits = ragged(4)
    limits = [StopCriteria(6 + number) for number in range(len(limits))]
    naive, shared = NaiveBackend(qwen), SharedBackend(qwen)
    expected, answers = stages(naive, questions, limits), stages(shared, questions, limits)
    for one, other in zip(expected, answers, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.ended == other.ended
    assert any(len(answer.tokens) > 1 for answer in answers)
    assert shared.counts.encodes == 2 * len(questions)
    assert shared.counts.tokens < naive.counts.tokens / 2
