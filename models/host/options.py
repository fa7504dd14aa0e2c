"""The model arguments of `--model dualfocus`, and those that are the same wherever a model runs.

All are checked before anything is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.models.checkpoint.loading import check_placing
from dualfocus_lmms.models.run.batches import AUTO, LARGEST_SIZE
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.zoom import check_bounds

# Options that stay as they were written; the host makes numbers of digits.
TEXTS = (
    "pretrained",
    "family",
    "trace",
    "second",
    "revision",
    "device",
    "grounding_checkpoint",
    "base_url",
    "model",
    "api_key",
    "processor",
)

# What does not decide an answer. The key is a secret besides.
_SAME_ANSWERS = (
    "trace",
    "resume",
    "batch_size",
    "max_batch_size",
    "device",
    "device_map",
    "engine",
    "cuda_graphs",
    "attn_implementation",
    "base_url",
    "api_key",
    "concurrency",
    "retries",
    "timeout",
)

CHECKPOINTS = ("pretrained", "grounding_checkpoint", "processor")  # folders or hub names
FOLDERS = (*CHECKPOINTS, "trace")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOptions:
    """What a user can set with `--model_args` wherever the model runs. None is the default of the protocol.

    trace: folder for one line of JSON a sample. resume: continue the run in that folder. min_pixels,
    max_pixels: bounds of the pixels of every image, for families with dynamic resolution. The others: see
    `Settings`.
    """

    protocol: str = "paper"
    pathway: str = "both"
    select: str | None = None
    skip_confidence: float = 1.0
    box_margin: int | None = None
    count_eos: bool | None = None
    grounding: str = "model"
    grounding_checkpoint: str | None = None
    box_shift: int = 0
    prompts: str | None = None
    crop_pixels: str | int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    trace: str | None = None
    resume: bool = False

    def check_traces(self) -> None:
        """UserError where there is no folder, or no run to continue."""
        if self.resume not in (True, False):
            raise UserError(f"resume is True or False, got {self.resume!r}.")
        if self.trace == "":  # a variable of the shell that is not set
            raise UserError("trace= is empty: give a folder for the traces, or leave it out.")
        if self.resume and self.trace is None:
            raise UserError("resume=True needs trace=<folder>: the folder of the run to continue.")

    def settings(self) -> Settings:
        """How DualFocus answers, checked."""
        check_bounds(self.min_pixels, self.max_pixels)
        known = signature(Settings.of).parameters
        return Settings.of(**{name: value for name, value in asdict(self).items() if name in known})

    def identity(self) -> dict[str, Any]:
        """What decides the answers, all defaults filled in: two runs of one trace folder must agree on it."""
        chosen = asdict(self) | self.settings().to_dict()
        for name in CHECKPOINTS:
            if chosen.get(name) and Path(chosen[name]).is_dir():  # however it was written
                chosen[name] = str(Path(chosen[name]).resolve())
        return {name: chosen[name] for name in chosen if name not in _SAME_ANSWERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(FlowOptions):
    """Everything a user can set with `--model_args`. None is the default of the protocol or the device.

    pretrained, revision: checkpoint folder or hub name. subimage: see `Settings`. batch_size: questions
    answered together, or "auto" for as many as memory holds, max_batch_size at most. device_map: "auto"
    spreads one model over all GPUs. family, engine: names, None is what suits the checkpoint.
    cuda_graphs: record decoding steps, see docs/speed.md.
    """

    pretrained: str
    subimage: str = "turn"
    batch_size: int | str = 1
    max_batch_size: int = LARGEST_SIZE
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    engine: str | None = None
    cuda_graphs: bool = False
    revision: str | None = None
    family: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ModelOptions:
        """Options from what the user gave. UserError for an unknown name or an impossible value."""
        values = known_values(cls, given, "model argument")
        if not given.get("pretrained"):
            raise UserError("No checkpoint: give --model_args pretrained=<folder or hub name>.")
        values["batch_size"] = _batch_size(values.get("batch_size", 1))
        values["max_batch_size"] = _questions("max_batch_size", values.get("max_batch_size", LARGEST_SIZE))
        options = cls(**values)
        options.check_traces()
        check_placing(options.device, options.device_map)
        return options


def known_values(options: type[FlowOptions], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What the user gave for a class of options, texts as texts. UserError for a name that it lacks."""
    shared = [field.name for field in fields(FlowOptions)]
    own = [field.name for field in fields(options) if field.name not in shared]
    allowed = [*own, *shared]
    for name in given:
        if name not in allowed:
            raise choose(what, name, allowed)
    values = dict(given)
    for name in TEXTS:  # a plain digit is a folder's name too
        if values.get(name) is not None:
            values[name] = str(values[name])
    for name in FOLDERS:  # no shell expands trace=~/traces
        if values.get(name) is not None:
            values[name] = os.path.expanduser(values[name])
    return values


def parse_model_args(text: str) -> dict[str, Any]:
    """Values of `--model_args` by name, as the host reads them but for TEXTS. UserError for another form.

    The host would make 1000.0 of a folder called 1e3 and infinity of some commit hashes.
    """
    from lmms_eval.utils import simple_parse_args_string

    try:
        values = simple_parse_args_string(text)
    except ValueError as error:
        raise UserError(
            f"--model_args is name=value,name=value, got {text!r}. "
            "A name with a comma cannot be given: use a link without one."
        ) from error
    for name in TEXTS:
        if isinstance(values.get(name), (bool, int, float)):
            values[name] = re.findall(rf"(?:^|,)\s*{name}=([^,]*)", text)[-1].strip()
    return values


def _batch_size(value: Any) -> int | str:
    return AUTO if value == AUTO else _questions("batch_size", value, f" or {AUTO!r}")


def _questions(name: str, value: Any, otherwise: str = "") -> int:
    """A number of questions, 1 or more. UserError for anything else."""
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1 or (isinstance(value, float) and not value.is_integer()):
        raise UserError(f"{name} is a whole number of questions, 1 or more{otherwise}, got {value!r}.")
    return size
