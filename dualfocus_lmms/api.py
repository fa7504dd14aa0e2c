"""DualFocus from Python: a checkpoint, an image, a question. Loads torch only when a model is made.

from dualfocus_lmms import DualFocusModel
model = DualFocusModel("path/or/hub-name")
trace = model.ask("photo.jpg", "What is on the sign?")
print(trace.selection.text, trace.ppl)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike
from typing import Any, NoReturn

from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.flow import answer_batch
from dualfocus_lmms.grounding import ATTENTION, ATTENTIONS, MODEL_GROUNDINGS
from dualfocus_lmms.images import UNREADABLE, is_address, open_image, unreadable
from dualfocus_lmms.imports import large_imports
from dualfocus_lmms.notebook import remember
from dualfocus_lmms.options import Keywords, SettingOptions, keywords
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Backend, Question, StopCriteria

Source = str | PathLike[str] | Image.Image


class DualFocusModel:
    """A model that answers questions about images.

    backend: what does the work. settings: how it answers. The keywords are the model arguments of the same
    names; `options.Keywords` describes them.
    """

    def __init__(
        self,
        pretrained: str | PathLike[str],
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        family: str | None = None,
        chat_template: str = "auto",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        engine: str | None = None,
        cuda_graphs: bool = False,
        protocol: str = "paper",
        pathway: str = "both",
        select: str | None = None,
        skip_confidence: float = 1.0,
        box_margin: int | None = None,
        count_eos: bool | None = None,
        grounding: str = "model",
        grounding_checkpoint: str | None = None,
        box_shift: int = 0,
        prompts: str | None = None,
        subimage: str = "turn",
        crop_pixels: str | int | None = None,
        regions: str = "union",
        looks: int = 1,
        keep_maps: bool = False,
        **unknown: NoReturn,
    ) -> None:
        """Load a checkpoint folder or hub name; UserError when that is impossible."""
        given = Keywords.of(keywords(locals()))
        settings = given.settings()
        with large_imports():
            from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
            from dualfocus_lmms.models.engines.registry import make_engine

        checkpoint = load_checkpoint(
            given.pretrained,
            given.revision,
            given.dtype,
            given.device,
            given.attn_implementation,
            given.family,
            given.device_map,
            given.chat_template,
            given.min_pixels,
            given.max_pixels,
        )
        self.backend: Backend = make_engine(given.engine, checkpoint, given.cuda_graphs)
        self.settings = _bind_grounding(settings, self.backend)

    @classmethod
    def on(
        cls,
        backend: Backend,
        *,
        protocol: str = "paper",
        pathway: str = "both",
        select: str | None = None,
        skip_confidence: float = 1.0,
        box_margin: int | None = None,
        count_eos: bool | None = None,
        grounding: str = "model",
        grounding_checkpoint: str | None = None,
        box_shift: int = 0,
        prompts: str | None = None,
        subimage: str = "turn",
        crop_pixels: str | int | None = None,
        regions: str = "union",
        looks: int = 1,
        keep_maps: bool = False,
        **unknown: NoReturn,
    ) -> DualFocusModel:
        """The same on an existing backend, such as `testing.FakeBackend`."""
        settings = SettingOptions.of(keywords(locals())).settings()
        model = cls.__new__(cls)
        model.settings, model.backend = _bind_grounding(settings, backend), backend
        return model

    def __repr__(self) -> str:
        backend, settings = type(self.backend).__name__, self.settings
        return f"DualFocusModel({backend}, protocol={settings.protocol.name}, select={settings.rule_name})"

    def ask(
        self, image: Source, question: str, instruction: str | None = None, max_new_tokens: int = 128
    ) -> Trace:
        """Everything the model did with one question: `trace.selection.text` is the answer.

        image: a path or a Pillow image. instruction: how to answer, on a line after the question in both
        pathways; None requests a single word or phrase, "" adds nothing.
        """
        return self.ask_many([(image, question)], 1, instruction, max_new_tokens)[0]

    def heat_map(self, image: Source, question: str) -> Image.Image | None:
        """What the model attends to in `image` for the bare question, a grey image of its shape.

        It is the attention from which `grounding=attention` or `attention_plain` takes the region; None with
        any other grounding.
        """
        if self.settings.grounding not in ATTENTIONS:
            return None
        from dualfocus_lmms.models.grounding.attention import heat_map

        relative = self.settings.grounding == ATTENTION
        return heat_map(self.backend, load_image(image), question, relative)

    def ask_many(
        self,
        pairs: Iterable[tuple[Source, str]],
        batch_size: int = 1,
        instruction: str | None = None,
        max_new_tokens: int = 128,
    ) -> list[Trace]:
        """One trace for each pair (image, question), in order; key {"id": "0"}, {"id": "1"}, ...

        Images are opened batch by batch.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size must be a whole number, 1 or more, got {batch_size!r:.80}.")
        if instruction is None:
            instruction = SHORT_ANSWER
        elif not isinstance(instruction, str):
            raise UserError(f"instruction is a text or None, got {type(instruction).__name__}.")
        if isinstance(pairs, str | Mapping) or not isinstance(pairs, Iterable):
            kind = type(pairs).__name__
            raise UserError(f'Pairs such as [("photo.jpg", "What is this?")] are expected, got {kind}.')
        limits, requested = StopCriteria(max_new_tokens), list(pairs)
        traces: list[Trace] = []
        for number, pair in enumerate(requested):
            _check_pair(number, pair)
        for start in range(0, len(requested), batch_size):
            questions = [
                Question(
                    id=str(number),
                    image=load_image(image),
                    text=text,
                    prompt=f"{text}\n{instruction}" if instruction else text,
                )
                for number, (image, text) in enumerate(requested[start : start + batch_size], start)
            ]
            for asked in questions:
                remember(asked.image)
            traces += answer_batch(self.backend, questions, [limits] * len(questions), self.settings)
        return traces


def _check_pair(number: int, pair: object) -> None:
    """UserError unless a pair is an image, which `load_image` checks, and the text of a question."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise UserError(f"Question {number}: a pair of image and question is expected, got {pair!r:.80}.")
    if not isinstance(pair[1], str):
        raise UserError(f"Question {number}: its question is a text, got {type(pair[1]).__name__}.")


def _bind_grounding(settings: Settings, backend: Backend) -> Settings:
    """`settings` with the model that their grounding needs; torch is not imported where it needs none."""
    if settings.grounding not in MODEL_GROUNDINGS:
        return settings
    from dualfocus_lmms.models.grounding.bind import bind_grounding

    return bind_grounding(settings, backend)


def load_image(source: Source) -> Image.Image:
    """An image rotated as its EXIF data require, in RGB.

    source is a path or a Pillow image. UserError when the file does not exist or holds no image.
    """
    if not isinstance(source, str | PathLike | Image.Image):
        kind = type(source).__name__
        advice = " Image.fromarray makes one of an array." if hasattr(source, "shape") else ""
        raise UserError(f"An image is a path or a Pillow image, got {kind}.{advice}")
    try:
        return open_image(source)
    except FileNotFoundError as error:
        if is_address(source):
            raise UserError(f"{source!r} is a web address, and nothing is fetched: give a file.") from error
        raise UserError(f"No image exists at {str(source)!r}: check the path.") from error
    except UNREADABLE as error:
        advice = "give an image file such as PNG or JPEG."
        raise unreadable(f"The image {str(source)!r}", error, advice) from error
