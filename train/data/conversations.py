"""From training data to conversations, and from conversations to token ids with labels.

Prompts, boxes and ids are those of inference: `flow.locate_prompt`, `flow.micro_prompt`, `BoxFormat.write`,
`models.checkpoint.tokenize_chat.Renderer`. Knows nothing about batches, files of samples or weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from PIL import Image

from dualfocus_lmms.boxes import PADDING, WHOLE, Box, BoxFormat
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.flow import locate_prompt, micro_prompt
from dualfocus_lmms.models.checkpoint.tokenize_chat import ImageIds, Renderer
from dualfocus_lmms.protocol import Protocol
from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample, cut_out
from dualfocus_lmms.types import Question
from dualfocus_lmms.zoom import DynamicResolution, zoomed

IGNORED = -100  # the label of a token that is not learned
_IMAGE = "<image>"
# (width, height) in pixels of an image as the encoder gets it.
InputSize = Callable[[Image.Image], tuple[int, int]]

_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """A conversation to learn, ending with the assistant.

    id: for messages. boxes: how many of its replies, from the first, are boxes.
    """

    id: str
    conversation: Conversation
    boxes: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """The model input of one example; three rows of the same length L.

    ids: with one placeholder for every image token. labels: the id where a token is learned, IGNORED
    elsewhere. weights: the factor on each token's loss. images: those of the placeholders, in order.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    weights: tuple[float, ...]
    images: tuple[Image.Image, ...]
    rounds: int = 1


def question_of(sample: TrainingSample, instruction: str, image: Image.Image | None = None) -> Question:
    """The question of a sample as in evaluation; `instruction` stands on a line of its own."""
    text = sample.question.strip()
    return Question(
        id=sample.id,
        image=sample.image.decode() if image is None else image,
        text=text,
        prompt=f"{text}\n{instruction}" if instruction else text,
    )


def from_sample(
    sample: TrainingSample,
    protocol: Protocol,
    box_format: BoxFormat,
    instruction: str = "",
    macro_only: bool = False,
    input_size: InputSize | None = None,
    resolution: DynamicResolution | None = None,
    separate: bool = False,
) -> Example:
    """Two rounds (section 3.2, format 1): image and Q1, the box; crop and Q2, the answer.

    A sample without a box is one macro round, and so is any with macro_only. instruction: how to answer, as
    the macro and Q2 prompts of an evaluation carry it; "" for nothing. input_size: needed by a box format in
    the frame of the resized image. resolution: of the model that learns, as `flow` has it: the crop is
    enlarged as at inference. separate: with a box and a crop for each region, as regions=separate has them.
    """
    question = question_of(sample, instruction)
    boxes, crops = ((), ()) if macro_only else sample.regions(separate)
    if not boxes:
        macro = Conversation().user(question.prompt, question.image)
        return Example(sample.id, macro.assistant(sample.answer))
    resized = input_size(question.image) if input_size and box_format.frame == "resized" else None
    shown = [enlarged_crop(crop, question.image.size, protocol, resolution) for crop in crops]
    conversation = (
        Conversation()
        .user(locate_prompt(question, protocol), question.image)
        .assistant(box_format.write_all(boxes, question.image.size, resized))
        .user(micro_prompt(question, protocol, len(shown)), *shown)
        .assistant(sample.answer)
    )
    return Example(sample.id, conversation, boxes=1)


def jittered(sample: TrainingSample, share: float, protocol: Protocol) -> TrainingSample:
    """The sample with crops that are not quite its boxes, as a box that the model locates is not quite the
    annotated one: each edge is moved by up to `share` (0 to below 0.5) of the box's side, evenly drawn.

    The boxes to learn stay. The moves depend on the sample's id alone, so that a run can be repeated.
    """
    if share == 0 or sample.box is None or sample.box == WHOLE:  # nothing of a whole image is cut off
        return sample
    chance = Random(f"jitter {sample.id}")  # seeded by text: the same in every process, on every machine
    image = sample.image.decode()
    shown = [_moved(sample.box, share, chance)]
    shown += [_moved(box, share, chance).grown(PADDING) for box in sample.boxes]
    crop, *crops = (cut_out(box, image, protocol, compress_level=1) for box in shown)
    return replace(sample, crop=crop, crops=tuple(crops))


def _moved(box: Box, share: float, chance: Random) -> Box:
    """`box` with its edges moved by up to `share` of its sides."""
    x0, y0, x1, y1 = box.xyxy
    dx, dy = share * (x1 - x0), share * (y1 - y0)
    return Box(*(edge + chance.uniform(-d, d) for edge, d in zip(box.xyxy, (dx, dy) * 2, strict=True)))


def enlarged_crop(
    crop: SampleImage, whole: tuple[int, int], protocol: Protocol, resolution: DynamicResolution | None
) -> Image.Image:
    """A sample's crop as the micro pathway shows it. whole: (width, height) of its image."""
    return zoomed(crop.decode(), whole, protocol.crop_pixels, resolution)


def from_llava(record: Mapping[str, Any], open_image: Callable[[str], Image.Image]) -> Example:
    """A record of LLaVA's instruction data: {"id", "image": name or names, "conversations": [...]}.

    As LLaVA does, an image opens the turn that names it, and turns before the first question are dropped; so
    are those after the last answer. Without an "image" the placeholder is removed from the text.
    `open_image` is called once for each image. UserError for a record of another form.
    """
    name = _name(record)
    listed = record.get("image")
    files = [] if not listed else [listed] if isinstance(listed, str) else list(listed)
    turns = _llava_turns(name, record)
    placeholders = sum(text.count(_IMAGE) for _, text in turns)
    if files and placeholders != len(files):
        raise UserError(f"Record {name!r} has {placeholders} {_IMAGE} placeholders for {len(files)} images.")
    waiting = iter(files)
    conversation = Conversation()
    for role, text in turns:
        images = [open_image(next(waiting)) for _ in range(text.count(_IMAGE))] if files else []
        text = text.replace(_IMAGE, "").strip()
        conversation = conversation.user(text, *images) if role == "user" else conversation.assistant(text)
    return Example(name, conversation)


def _llava_turns(name: str, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of the record's turns, from the first question to the last answer."""
    entries = record.get("conversations")
    if not isinstance(entries, list) or not all(isinstance(turn, Mapping) for turn in entries):
        raise UserError(f"Record {name!r} has no list of turns under 'conversations'.")
    turns = [(_ROLES.get(str(turn.get("from")), "?"), turn.get("value")) for turn in entries]
    while turns and turns[0][0] != "user":
        turns.pop(0)
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    if not turns or [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise UserError(f"The turns of record {name!r} are not 'human' and 'gpt' in alternation.")
    for number, (role, text) in enumerate(turns, 1):
        if not isinstance(text, str):
            what = "reply" if role == "assistant" else "question"
            raise UserError(
                f"Record {name!r} has no {what} in turn {number}: 'value' is {text!r}, not a text."
            )
        if role == "assistant" and _IMAGE in text:
            raise UserError(f"An answer of record {name!r} contains {_IMAGE}.")
    return turns  # type: ignore[return-value]


def blank_replies(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of checked records with a reply of nothing but white space, which is learned as it is."""
    blank = []
    for record in records:
        name = _name(record)
        if not all(text.strip() for role, text in _llava_turns(name, record) if role == "assistant"):
            blank.append(name)
    return blank


def _name(record: Mapping[str, Any]) -> str:
    return str(record.get("id", "?"))


class Encoder:
    """Token ids and labels of examples, by the renderer of inference.

    image_ids: what stands for an image. closing: the id that ends a reply, and is learned with it.
    box_weight: factor on the loss of box tokens (and their closing token); 1 is the plain mean over all
    learned tokens.
    """

    def __init__(
        self,
        renderer: Renderer,
        image_ids: ImageIds,
        closing: int,
        max_length: int,
        box_weight: float = 1.0,
    ) -> None:
        self._renderer = renderer
        self._image_ids = image_ids
        self._closing = closing
        self._max_length = max_length
        self._box_weight = box_weight

    def encode(self, example: Example) -> Encoded | None:
        """The example's ids and labels, cut to as many whole rounds as fit into max_length; else None.

        A round is never cut in two, so neither are an image's tokens nor a reply. The loss is on every
        reply and its closing token and on nothing else (eq. 4).
        """
        rendered = self._renderer.render(example.conversation, self._image_ids)
        ends = [start + length + 1 for start, length in rendered.replies]
        kept = [end for end in ends if end <= self._max_length]
        if not kept:
            return None
        ids = rendered.ids[: kept[-1]]
        labels, weights = [IGNORED] * len(ids), [0.0] * len(ids)
        for number, (start, length) in enumerate(rendered.replies[: len(kept)]):
            end = start + length + 1
            if ids[end - 1] != self._closing:
                raise UserError(
                    "The chat template does not close an assistant turn with the end-of-text token: "
                    "a model trained on it would not stop."
                )
            labels[start:end] = ids[start:end]
            weights[start:end] = [self._box_weight if number < example.boxes else 1.0] * (end - start)
        image_count = sum(start < kept[-1] for start, _ in rendered.spans)
        return Encoded(ids, tuple(labels), tuple(weights), rendered.images[:image_count], len(kept))


def rounds(example: Example) -> int:
    """How many rounds an example has."""
    return len(example.conversation.turns) // 2


def check_llava(records: Iterable[Mapping[str, Any]], listed: int = 3) -> None:
    """UserError that names the first faulty records, so that a long run does not stop at one of them."""
    problems: list[str] = []
    for record in records:
        try:
            _check_names(record)
            from_llava(record, lambda _: _NO_IMAGE)
        except UserError as error:
            problems.append(str(error))
    if problems:
        messages = "\n".join(problems[:listed])
        raise UserError(f"{len(problems)} records cannot be used:\n{messages}")


def _check_names(record: Mapping[str, Any]) -> None:
    """UserError where `image` is neither the name of an image nor a list of names."""
    image = record.get("image")
    names = image if isinstance(image, list) else [] if image is None else [image]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"Record {_name(record)!r} has {str(image)[:80]!r} under 'image', not a file's name.")


_NO_IMAGE = Image.new("RGB", (1, 1))
