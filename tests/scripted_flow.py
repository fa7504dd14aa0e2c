"""Questions, images and a scripted model for the tests of the flow."""

from __future__ import annotations

from PIL import Image

from dualfocus_lmms import Conversation, Question, Settings, StopCriteria, Trace, answer_batch
from dualfocus_lmms.testing import FakeBackend, Reply

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
