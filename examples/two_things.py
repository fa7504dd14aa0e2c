"""Questions about two things with one region and with a region each, on drawn scenes.

python examples/two_things.py --questions 200     # the table of docs/regions.md#measured

"Which digit is larger, the red circle's or the blue square's?" `dualfocus-nano` reads digits, but was taught
no such question. So a script answers: it shows the model the images of a conversation, asks for each digit by
itself, takes of several crops the reply with the lowest perplexity, and compares. All else (what is cropped,
what is shown, which answer is chosen) is the flow's, with the annotated boxes.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence

from PIL import Image
from tabulate import tabulate

from dualfocus_lmms import Box, Conversation, DualFocusModel, Question, Settings, StopCriteria, answer_batch
from dualfocus_lmms.prompts import PROMPTS, SHORT_ANSWER
from dualfocus_lmms.scenes import DETAIL, Thing, make_scene
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.types import Backend, Prompt

LARGER = "Which digit is larger, the {}'s or the {}'s?"
NAMES = re.compile(r"the (\w+ \w+)'s or the (\w+ \w+)'s")
LIMIT = StopCriteria(8)

# Questions, their answers, and the share of the image that the box around both things covers.
Asked = Sequence[tuple[Question, str, float]]


def questions(count: int) -> Iterator[tuple[Question, str, float]]:
    """A question about the two things of a scene that are farthest apart, its answer, and the share of the
    image that the box around both covers."""
    number = 0
    while count:
        scene = make_scene("test", 0, number)
        number += 1
        pairs = [(one, two) for one in scene.things for two in scene.things if one.name < two.name]
        one, two = max(pairs, key=lambda pair: math.dist(*((thing.x, thing.y) for thing in pair)))
        if one.digit != two.digit:
            yield (
                question(scene.name, scene.image(), one, two),
                max(one.digit, two.digit),
                around(one, two).area,
            )
            count -= 1


def question(name: str, image: Image.Image, one: Thing, two: Thing) -> Question:
    text = LARGER.format(one.name, two.name)
    boxes = (one.box, two.box)
    return Question(name, image, text, f"{text}\n{SHORT_ANSWER}", {"id": name}, around(one, two), boxes=boxes)


def around(one: Thing, two: Thing) -> Box:
    return Box.around([one.box, two.box])


class Eyes:
    """Answers a conversation about two things by asking a model for the digit of each."""

    def __init__(self, model: Backend) -> None:
        self.model = model

    def __call__(self, stage: str, conversation: Conversation) -> Reply:
        text = conversation.turns[0].text
        found = NAMES.search(text)
        assert found is not None
        digits, logprobs = [], []
        for name in found.groups():
            prompts = [Prompt("micro", asked, LIMIT) for asked in self.about(name, conversation)]
            answers = self.model.generate(prompts)
            self.model.forget()
            best = min(answers, key=lambda answer: answer.nll())
            digits.append(best.text)
            logprobs += best.logprobs[: max(len(best.tokens), 1)]
        return Reply(max(digits), tuple(logprobs))

    def about(self, name: str, conversation: Conversation) -> Sequence[Conversation]:
        """The conversation with the question about one thing; one for each crop, as the model was taught."""
        text = DETAIL.format(name)
        prompt, first = f"{text}\n{SHORT_ANSWER}", conversation.turns[0]
        if len(conversation.turns) == 1:
            return [Conversation().user(prompt, *first.images)]
        wording = PROMPTS["paper"]
        located = Conversation().user(wording.locate.format(question=text), *first.images)
        boxes = conversation.turns[1].text.split("], ")
        return [
            located.assistant(box if box.endswith("]") else f"{box}]").user(
                wording.micro.format(prompt=prompt), crop
            )
            for box, crop in zip(boxes, conversation.turns[2].images, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=200)
    asked = list(questions(parser.parse_args().questions))
    model = DualFocusModel("dualfocus-nano", device="cpu").backend
    rows = []
    for regions in ("union", "separate"):
        settings = Settings.of(grounding="annotated", regions=regions)
        backend = FakeBackend(Eyes(model))
        traces = answer_batch(backend, [one for one, _, _ in asked], [LIMIT] * len(asked), settings)
        parts = [("all", asked), *(("box of both " + name, part) for name, part in by_area(asked))]
        right = {
            trace.question_id: [
                text == answer for text in (trace.macro.text, trace.micro.text, trace.selection.text)
            ]
            for trace, (_, answer, _) in zip(traces, asked, strict=True)
        }
        for name, part in parts:
            scores = [right[one.id] for one, _, _ in part]
            means = [100 * sum(column) / len(column) for column in zip(*scores, strict=True)]
            rows.append([f"`{regions}`", name, len(part), *(f"{mean:.1f}" for mean in means)])
    print(tabulate(rows, ["regions", "questions", "n", "macro", "micro", "selected"], "github"))


def by_area(asked: Asked) -> list[tuple[str, Asked]]:
    """The questions whose box around both things covers less, and more, than a third of the image."""
    small = [one for one in asked if one[2] < 1 / 3]
    return [("below 1/3 of the image", small), ("above", [one for one in asked if one[2] >= 1 / 3])]


if __name__ == "__main__":
    main()
