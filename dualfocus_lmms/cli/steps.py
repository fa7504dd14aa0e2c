"""What `dualfocus app` shows of a question, step by step, while the model works. Knows no page.

for shown in steps(backend, image, "What digit is on the red circle?", select="macro"):
    print(shown.status)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from PIL import Image, ImageDraw

from dualfocus_lmms import visualize
from dualfocus_lmms.api import DualFocusModel, Source, load_image
from dualfocus_lmms.boxes import Box
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer, Backend, Prompt


@dataclass(frozen=True)
class Shown:
    """One state of the page. image: with the located boxes on it. crop: what the second look sees; None
    until there is one. macro, micro: (answer, perplexity). trace: of the finished question."""

    status: str
    image: Image.Image
    crop: Image.Image | None = None
    macro: tuple[str, str] = ("", "")
    micro: tuple[str, str] = ("", "")
    trace: Trace | None = None


class _Watched:
    """A backend that tells what it is given and what it returns; for the rest it is the given one."""

    def __init__(self, backend: Backend, tell: Callable[[Prompt, Answer | None], None]) -> None:
        self._backend, self._tell = backend, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        for prompt in prompts:
            self._tell(prompt, None)
        answers = self._backend.generate(prompts)
        for prompt, answer in zip(prompts, answers, strict=True):
            self._tell(prompt, answer)
        return answers


def steps(backend: Backend, source: Source, question: str, **settings: Any) -> Iterator[Shown]:
    """The states of a question: after the macro answer, the box, the crop, the micro answer, the choice.

    settings: keywords of `DualFocusModel.on`. What the flow raises is raised here: UserError,
    GenerationError.
    """
    image = load_image(source)
    model = DualFocusModel.on(backend, **settings)
    events: SimpleQueue[tuple[Prompt, Answer | None] | Trace | BaseException] = SimpleQueue()
    model.backend = _Watched(backend, lambda *event: events.put(event))  # type: ignore[assignment]

    def work() -> None:
        try:
            events.put(model.ask(image, question))
        except BaseException as error:
            events.put(error)

    threading.Thread(target=work, daemon=True).start()
    shown = Shown("Looking at the whole image ...", image)
    yield shown
    while True:
        event = events.get()
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Trace):
            yield _finished(image, event)
            return
        after = _after(shown, *event, backend)
        if after is not shown:
            shown = after
            yield shown


def _after(shown: Shown, prompt: Prompt, answer: Answer | None, backend: Backend) -> Shown:
    """What is shown after one prompt was given (without answer) or answered."""
    if answer is None:
        if prompt.stage != "micro":
            return shown
        crop = prompt.conversation.turns[-1].images[0]
        return replace(shown, crop=crop, status="Looking at the zoomed region ...")
    if prompt.stage == "locate":
        form, image = backend.box_format, prompt.conversation.turns[0].images[0]
        if image.size != shown.image.size:
            return shown  # a further look, inside the crop: its box is shown at the end
        resized = backend.input_size(image) if form.frame == "resized" else None
        box = form.read(answer.text, image.size, resized)
        return replace(
            shown,
            image=_marked(image, [box] if box else []),
            status=f"Located: {answer.text}",
        )
    words = (answer.text, visualize.number(answer.ppl()))
    if prompt.stage == "macro":
        return replace(shown, macro=words, status="Locating the region ...")
    return replace(shown, micro=words)


def _finished(image: Image.Image, trace: Trace) -> Shown:
    boxes = trace.boxes or (() if trace.box is None else (trace.box,))
    micro = ("", "") if trace.micro is None else (trace.micro.text, visualize.perplexity(trace, "micro"))
    return Shown(
        status=f"{trace.selection.text} - {visualize.verdict(trace)}",
        image=_marked(image, [Box(*box) for box in boxes]),
        crop=visualize.crops_of(image, trace) if trace.micro is not None else None,
        macro=(trace.macro.text, visualize.perplexity(trace, "macro")),
        micro=micro,
        trace=trace,
    )


def _marked(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with the boxes' outlines in the micro colour."""
    marked = image.copy()
    pen = ImageDraw.Draw(marked)
    width = max(round(max(image.size) / 150), 2)
    for box in boxes:
        edges = [value * side for value, side in zip(box.clip().xyxy, image.size * 2, strict=True)]
        pen.rectangle(edges, outline=visualize.MICRO_COLOR, width=width)
    return marked
