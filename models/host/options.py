"""The model arguments of `--model dualfocus`, and those that are the same wherever a model runs.

All are checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.checkpoint.placing import check_placing
from dualfocus_lmms.models.run.batches import LARGEST_SIZE
from dualfocus_lmms.options import (
    FlowChoices,
    Folder,
    Keywords,
    Options,
    Switch,
    as_written,
    decides,
    must_be,
    names_checkpoint,
    option,
)

_Questions = Annotated[int, Field(ge=1), must_be("a whole number of questions, 1 or more")]
_BatchSize = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1)],
    must_be("a whole number of questions, 1 or more or 'auto'"),
]


class FlowOptions(FlowChoices):
    """What a user can set with `--model_args` wherever the model runs."""

    trace: Folder | None = option(
        None, decides=False, help="folder for the traces, one line of JSON a question"
    )
    resume: Switch = option(False, decides=False, help="continue the run in the trace folder")

    @model_validator(mode="after")
    def _check_traces(self) -> FlowOptions:
        if self.trace == "":  # a variable of the shell that is not set
            raise ValueError("trace= is empty: give a folder for the traces, or leave it out.")
        if self.resume and self.trace is None:
            raise ValueError("resume=True needs trace=<folder>: the folder of the run to continue.")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the answers, all defaults filled in: two runs of one trace folder must agree on it."""
        chosen = self.model_dump() | self.settings().to_dict()
        fields = type(self).model_fields
        for name, field in fields.items():
            if names_checkpoint(field) and chosen[name] and Path(chosen[name]).is_dir():
                chosen[name] = str(Path(chosen[name]).resolve())  # however it was written
        return {name: value for name, value in chosen.items() if name not in fields or decides(fields[name])}


class ModelOptions(FlowOptions, Keywords):
    """Everything a user can set with `--model_args`."""

    batch_size: _BatchSize = option(
        1,
        decides=False,
        help="questions answered together; lmms-eval's `--batch_size` sets it too. `auto`: as many as memory "
        "holds, [docs/scaling.md](scaling.md)",
    )
    max_batch_size: _Questions = option(
        LARGEST_SIZE,
        decides=False,
        help="the most that `batch_size=auto` tries; lmms-eval's `--max_batch_size` sets it too",
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ModelOptions:
        options = super().of(given)
        check_placing(options.device, options.device_map)
        return options

    @classmethod
    def kind(cls) -> str:
        return "model argument"

    @classmethod
    def missing(cls, name: str) -> str:
        return "No checkpoint: give --model_args pretrained=<folder or hub name>."


def parse_model_args(text: str, options: type[Options] = ModelOptions) -> dict[str, Any]:
    """Values of `--model_args` by name, see `as_written`. UserError for another form."""
    from lmms_eval.utils import simple_parse_args_string

    try:
        values = simple_parse_args_string(text)
    except ValueError as error:
        raise UserError(
            f"--model_args is name=value,name=value, got {text!r}. "
            "A name with a comma cannot be given: use a link without one."
        ) from error
    return as_written(values, text, options)
