"""The options of a model: each declared once, with its name, type, default, bounds and description.

The model arguments, the keywords of `DualFocusModel`, the flags of the command line and the tables in the
docs come from here and from what extends it, such as `dualfocus_lmms.models.host.options`. Loads no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
)
from pydantic.fields import FieldInfo

from dualfocus_lmms.attention_map import MOST_BYTES
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.family import EngineName
from dualfocus_lmms.grounding import load_grounding
from dualfocus_lmms.plugins import load_family, load_rule
from dualfocus_lmms.prompts import MOST_REGIONS, PROMPTS
from dualfocus_lmms.protocol import load_protocol
from dualfocus_lmms.settings import NATIVE, Pathway, Regions, Settings, Subimage
from dualfocus_lmms.types import Template

# --- kinds of values ---------------------------------------------------------------------------------------


def must_be(what: str) -> WrapValidator:
    """A value of another kind or out of bounds is refused with a message that says `what` it must be."""

    def check(value: Any, validate: Callable[[Any], Any], info: ValidationInfo) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            raise ValueError(f"{info.field_name} is {what}, got {value!r}.") from error

    return WrapValidator(check)


def one_of(names: Iterable[str], what: str | None = None) -> BeforeValidator:
    """A value outside of these names is refused with a message that lists them.

    what: the word for one of them in the message; None is the option's own name.
    """
    allowed = tuple(names)

    def check(value: Any, info: ValidationInfo) -> Any:
        if value not in allowed:
            raise ValueError(str(choose(what or str(info.field_name), value, allowed)))
        return value

    return BeforeValidator(check)


def known_to(load: Callable[[str], object]) -> BeforeValidator:
    """A name that `load` does not find is refused with the message of its UserError."""

    def check(value: Any) -> Any:
        try:
            load(_as_text(value))
        except UserError as error:
            raise ValueError(str(error)) from error
        return value

    return BeforeValidator(check)


def _as_text(value: Any) -> Any:
    """lmms-eval makes numbers of digits, and a folder or a version may be called 007."""
    return str(value) if isinstance(value, (bool, int, float, os.PathLike)) else value


def _without_tilde(value: Any) -> Any:
    """No shell expands trace=~/traces."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def _zero_or_one(value: Any) -> Any:
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


Text = Annotated[str, BeforeValidator(_as_text), must_be("a text")]
Folder = Annotated[str, BeforeValidator(_without_tilde), BeforeValidator(_as_text), must_be("a path or name")]
Bool = Annotated[bool, Field(strict=True), must_be("True or False")]
Switch = Annotated[Bool, BeforeValidator(_zero_or_one)]  # resume=1 is True, resume=yes is a mistake
Pixels = Annotated[int, Field(strict=True, ge=0), must_be("a number of pixels, 0 or more")]
PixelCount = Annotated[int, Field(strict=True, ge=1), must_be("a whole number of pixels, 1 or more")]
LookCount = Annotated[int, Field(strict=True, ge=1), must_be("a whole number of looks, 1 or more")]
CropPixels = Annotated[
    Literal["auto", "original"] | Annotated[int, Field(strict=True, ge=1)],
    must_be("'auto', 'original' or a whole number of pixels, 1 or more"),
]
Probability = Annotated[
    float,
    Field(strict=True, ge=0, le=1),
    must_be("a probability from 0 (always skip) to 1 (never skip)"),
]
DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
Rule = Annotated[Text, known_to(load_rule)]
FamilyName = Annotated[Text, known_to(lambda name: name and load_family(name))]  # family= is none


def option(
    default: Any = ...,
    *,
    help: str,
    unset: str = "none",
    decides: bool = True,
    checkpoint: bool = False,
    secret: bool = False,
) -> Any:
    """One option, for the body of a class of `Options`; without a default it is required.

    help: what it means, in Markdown; links are those of docs/reference.md. unset: what None stands for.
    decides: whether it can change an answer. checkpoint: whether it names a folder or a model of the hub.
    secret: whether it is left out where options are shown.
    """
    extra: dict[str, Any] = {"unset": unset, "decides": decides, "checkpoint": checkpoint}
    return Field(default, description=help, json_schema_extra=extra, repr=not secret)


def as_written(values: Mapping[str, Any], text: str, options: type[Options]) -> dict[str, Any]:
    """Values that the host read from `name=value,name=value`, with texts as they stand there.

    The host would make 1000.0 of a folder called 1e3 and infinity of some commit hashes.
    """
    read = dict(values)
    for name, field in options.model_fields.items():
        if is_text(field.annotation) and isinstance(read.get(name), (bool, int, float)):
            read[name] = re.findall(rf"(?:^|,)\s*{name}=([^,]*)", text)[-1].strip()
    return read


def keywords(names: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a function with explicit keywords and `**unknown`, from its `locals()` on entry.

    `self`, `cls` and `backend` are no options.
    """
    given = {name: value for name, value in names.items() if name not in ("self", "cls", "backend")}
    return given | given.pop("unknown")


# --- options -----------------------------------------------------------------------------------------------


Own = TypeVar("Own", bound="Options")


class Options(BaseModel):
    """What a user may give, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **given: Any) -> None:
        """UserError with all that is wrong with what was given, one fault a line."""
        empty = {name for name, value in given.items() if value in (None, "") and self._is_needed(name)}
        try:
            super().__init__(**{name: value for name, value in given.items() if name not in empty})
        except ValidationError as error:
            raise UserError("\n".join(dict.fromkeys(self._faults(error)))) from error

    @classmethod
    def of(cls: type[Own], given: Mapping[str, Any]) -> Own:
        """Options from what a user gave. UserError for an unknown name or an impossible value."""
        return cls(**given)

    def but(self: Own, **changes: Any) -> Own:
        """The same with other values, checked."""
        return type(self)(**self.model_dump() | changes)

    @classmethod
    def kind(cls) -> str:
        """What one of them is called in a message."""
        return "setting"

    @classmethod
    def missing(cls, name: str) -> str:
        """The message where a required one is not given."""
        return f"{name} is missing."

    @classmethod
    def _is_needed(cls, name: str) -> bool:
        """Whether it is a text that must be given, and an empty one will not do."""
        field = cls.model_fields.get(name)
        return field is not None and field.is_required() and is_text(field.annotation)

    @classmethod
    def _faults(cls, error: ValidationError) -> Iterator[str]:
        """A message for each fault; what is missing counts as one."""
        faults = error.errors(include_url=False)
        for fault in faults:
            name = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                yield str(choose(cls.kind(), name, cls.model_fields))
            elif fault["type"] == "value_error":
                yield str(fault["ctx"]["error"])
            elif fault["type"] != "missing":
                yield f"{name}: {fault['msg']}, got {fault['input']!r}."
        missing = [str(fault["loc"][0]) for fault in faults if fault["type"] == "missing"]
        if missing:
            yield cls.missing(missing[0])


class FlowChoices(Options):
    """How DualFocus answers, wherever the model runs: see `Settings`."""

    protocol: Annotated[Text, known_to(load_protocol)] = option(
        "paper", help="`paper` or `release`: [what is asked, cropped and compared](#protocols)"
    )
    pathway: Annotated[Text, one_of(get_args(Pathway))] = option(
        "both", help="`both`, or `macro`, which runs the plain model alone, the baseline"
    )
    select: Rule | None = option(
        None,
        unset="the protocol's",
        help="rule that picks the answer: `ppl`, `ppl_tie_macro`, `release`, `micro_context`, `macro`, "
        "`micro`, one of another package, or `calibrated:FILE`, [fitted on a run](calibration.md). "
        "`release` and `micro_context` [score both answers under one "
        "context](tasks.md#both-answers-under-one-context)",
    )
    prompts: Annotated[Text, one_of((*PROMPTS, NATIVE))] | None = option(
        None,
        unset="the protocol's",
        help="wordings of the two questions: `paper`, `figure8` (the paper's figure 8), `release` or "
        "`native`. With `native` the region is requested in the words that the model's family was "
        "trained with, if any; the second question is the protocol's",
    )
    skip_confidence: Probability = option(
        1.0,
        help="no second look where the macro answer's confidence is above it. Confidence is the geometric "
        "mean of the answer's token probabilities, 1/PPL. 1 never skips, 0 always",
    )
    box_margin: Pixels | None = option(
        None,
        unset="the protocol's",
        help="pixels of the original image by which the region grows on each side",
    )
    crop_pixels: CropPixels | None = option(
        None,
        unset="the protocol's",
        help="pixels to which a crop is enlarged, for families with [dynamic "
        "resolution](families.md#zoom): `auto`, as many as the whole image has in the model, "
        "`original`, as it is, or a number",
    )
    count_eos: Bool | None = option(
        None, unset="the protocol's", help="whether end-of-turn tokens count in the perplexity"
    )
    grounding: Annotated[Text, known_to(load_grounding)] = option(
        "model",
        help="where the region comes from: `model`, its own reply; `annotated`, the box in the data; "
        "`whole`, all of the image; `center`, its middle half in both directions; `random`, a quarter "
        "of its area, seeded by the question; `dino`, GroundingDINO; `attention` and `attention_plain`, "
        "the model's own attention. Only `model` requests the region; any other box appears in the "
        "conversation as if the model had generated it: [docs/grounding.md](grounding.md)",
    )
    grounding_checkpoint: Folder | None = option(
        None,
        unset="a GroundingDINO of the hub",
        checkpoint=True,
        help="for `grounding=dino`: folder or hub name of a GroundingDINO; else "
        "`IDEA-Research/grounding-dino-base`",
    )
    box_shift: Pixels = option(
        0,
        help="pixels of the original image by which the region is moved before it is cropped, in a direction "
        "seeded by the question, as in the paper's table 5. The text of the conversation stays; a "
        "region moved off the image leaves the macro answer",
    )
    regions: Annotated[Text, one_of(get_args(Regions))] = option(
        "union",
        help="`union`, one region: the first box of the reply, or the one around all that a detector or the "
        f"data have; `separate`, each of them in a crop of its own, {MOST_REGIONS} at most: "
        "[docs/regions.md](regions.md)",
    )
    looks: LookCount = option(
        1,
        help="looks after the macro answer, at most: after each, the model may locate again inside the crop, "
        "while [the perplexity falls](regions.md#several-looks)",
    )

    def settings(self) -> Settings:
        """How DualFocus answers. UserError for choices that exclude each other."""
        return Settings.chosen(self)


class SettingOptions(FlowChoices):
    """How DualFocus answers where the model runs in this process: the keywords of `Settings.of`."""

    subimage: Annotated[Text, one_of(get_args(Subimage))] = option(
        "turn",
        help="`turn` shows the crop in a second turn of the conversation; `patch` makes it one more tile of "
        "the image, for families with tiles (table 6, LLaVA-NeXT)",
    )
    keep_maps: Switch = option(
        False,
        decides=False,
        help="for `grounding=attention` and `attention_plain`: `True` keeps the attention in the trace, "
        f"{MOST_BYTES:,} bytes a question at most, [for the report](grounding.md#kept-in-traces)",
    )

    def settings(self) -> Settings:
        return Settings.chosen(self, self.subimage, self.keep_maps)  # type: ignore[arg-type]


class ImageBounds(Options):
    """How large an image may be: see `zoom.DynamicResolution`."""

    min_pixels: PixelCount | None = option(
        None,
        unset="the checkpoint's",
        help="fewest pixels of an image, for families with dynamic resolution, such as Qwen2.5-VL",
    )
    max_pixels: PixelCount | None = option(
        None, unset="the checkpoint's", help="most pixels of an image, for the same families"
    )


class LoadingOptions(Options):
    """Which model, and how it is loaded: see `load_checkpoint` and `make_engine`."""

    pretrained: Folder = option(
        checkpoint=True, help="checkpoint: a folder or a hub name, or `dualfocus-nano`"
    )
    revision: Text | None = option(None, unset="newest", help="version of a checkpoint on the hub")
    dtype: Annotated[Text, one_of(get_args(DtypeName))] = option(
        "auto",
        help="`auto`, `float32`, `float16` or `bfloat16`; `auto` is the checkpoint's own on a GPU, `float32` "
        "on a CPU",
    )
    device: Text | None = option(
        None,
        unset="a GPU if any",
        decides=False,
        help="`cpu`, `cuda`, `cuda:1`; with several processes each takes its own",
    )
    device_map: Text | Mapping[str, Any] | None = option(
        None,
        decides=False,
        help="`auto` spreads a model that is too large for one GPU [over all of "
        "them](scaling.md#one-model-on-several-gpus), instead of `device`",
    )
    attn_implementation: Text | None = option(
        None, unset="transformers' choice", decides=False, help="`eager`, `sdpa`, ..."
    )
    family: FamilyName | None = option(
        None,
        unset="by the checkpoint's type",
        help="model family, [docs/families.md](families.md); `generic` for models that none handles",
    )
    chat_template: Annotated[Text, one_of(get_args(Template))] = option(
        "auto",
        help="whose template writes the prompts: `checkpoint`, `family` or `auto`, the one of them that the "
        "model was trained with: [docs/families.md](families.md#chat-templates)",
    )
    engine: Annotated[Text, one_of(get_args(EngineName))] | None = option(
        None,
        unset="the family's fastest",
        decides=False,
        help="`tree`, `template`, `shared`, `batched` or `naive`: the same answers at [different "
        "speeds](architecture.md#engines)",
    )
    cuda_graphs: Switch = option(
        False,
        decides=False,
        help="`True` records decoding steps of small batches on a GPU: [half the "
        "time](speed.md#on-a-gpu) at batch size 1",
    )


class Keywords(ImageBounds, SettingOptions, LoadingOptions):
    """Everything that `DualFocusModel` takes."""

    @classmethod
    def kind(cls) -> str:
        return "keyword of DualFocusModel"


# --- about an option ---------------------------------------------------------------------------------------


def decides(field: FieldInfo) -> bool:
    """Whether an option can change an answer."""
    return bool(_extra(field)["decides"])


def names_checkpoint(field: FieldInfo) -> bool:
    """Whether an option names a folder or a model of the hub."""
    return bool(_extra(field)["checkpoint"])


def is_text(kind: Any) -> bool:
    """Whether an annotation takes texts, in whatever stands around it."""
    return kind is str or any(map(is_text, get_args(kind)))


def unset(field: FieldInfo) -> str:
    """What None stands for."""
    return str(_extra(field)["unset"])


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra  # type: ignore[return-value]
