"""The model arguments of `--model dualfocus`, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.flow import Settings

# Options that stay as they were written; the host makes numbers of digits.
TEXTS = ("pretrained", "trace", "second", "revision", "device")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Everything a user can set with `--model_args`. None is the default of the protocol or the device.

    pretrained, revision: checkpoint folder or hub name. protocol, pathway, select, skip_confidence,
    box_margin, count_eos, grounding, box_shift: see `flow.Settings`. trace: folder for one line of JSON a
    sample. resume: continue the run in that folder. batch_size: questions answered together. engine: "shared"
    or "naive".
    """

    pretrained: str
    protocol: str = "paper"
    pathway: str = "both"
    select: str | None = None
    skip_confidence: float = 1.0
    box_margin: int | None = None
    count_eos: bool | None = None
    grounding: str = "model"
    box_shift: int = 0
    trace: str | None = None
    resume: bool = False
    batch_size: int = 1
    dtype: str = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    engine: str = "shared"
    revision: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ModelOptions:
        """Options from what the user gave. UserError for an unknown name or an impossible value."""
        allowed = [field.name for field in fields(cls)]
        for name in given:
            if name not in allowed:
                raise choose("model argument", name, allowed)
        if not given.get("pretrained"):
            raise UserError(
                "No checkpoint: give --model_args pretrained=<folder or hub name of a LLaVA checkpoint>."
            )
        values = dict(given)
        for name in TEXTS:  # a plain digit is a folder's name too
            if values.get(name) is not None:
                values[name] = str(values[name])
        for name in ("pretrained", "trace"):  # no shell expands the ~ in --model_args trace=~/traces
            if values.get(name) is not None:
                values[name] = os.path.expanduser(values[name])
        values["batch_size"] = _batch_size(values.get("batch_size", 1))
        options = cls(**values)
        if options.resume not in (True, False):
            raise UserError(f"resume is True or False, got {options.resume!r}.")
        if options.resume and options.trace is None:
            raise UserError("resume=True needs trace=<folder>: the folder of the run to continue.")
        return options

    def settings(self) -> Settings:
        """How DualFocus answers, checked."""
        return Settings.of(
            protocol=self.protocol,
            pathway=self.pathway,
            select=self.select,
            skip_confidence=self.skip_confidence,
            box_margin=self.box_margin,
            count_eos=self.count_eos,
            grounding=self.grounding,
            box_shift=self.box_shift,
        )

    def identity(self) -> dict[str, Any]:
        """What decides the answers, all defaults filled in: two runs of one trace folder must agree on it."""
        chosen = asdict(self)
        if Path(self.pretrained).is_dir():  # however it was written
            chosen["pretrained"] = str(Path(self.pretrained).resolve())
        same_answers = ("trace", "resume", "batch_size", "device", "engine", "attn_implementation")
        return {name: chosen[name] for name in chosen if name not in same_answers} | self.settings().to_dict()


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


def _batch_size(value: Any) -> int:
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1 or (isinstance(value, float) and not value.is_integer()):
        raise UserError(f"batch_size is a whole number of questions, 1 or more, got {value!r}.")
    return size
