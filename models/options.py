"""The model arguments of `--model dualfocus`, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.flow import Settings


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Everything a user can set with `--model_args`. None is the default of the protocol or the device.

    pretrained, revision: checkpoint folder or hub name. protocol, pathway, select, skip_confidence,
    box_margin, count_eos: see `flow.Settings`. trace: folder for one line of JSON a sample. resume: continue
    the run in that folder. batch_size: questions answered together. engine: "shared" or "naive".
    """

    pretrained: str
    protocol: str = "paper"
    pathway: str = "both"
    select: str | None = None
    skip_confidence: float = 1.0
    box_margin: int | None = None
    count_eos: bool | None = None
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
        for name in ("pretrained", "trace", "revision", "device"):  # the host turns digits into numbers
            if values.get(name) is not None:
                values[name] = str(values[name])
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
            self.protocol, self.pathway, self.select, self.skip_confidence, self.box_margin, self.count_eos
        )

    def identity(self) -> dict[str, Any]:
        """What decides the answers, all defaults filled in: two runs of one trace folder must agree on it."""
        chosen = asdict(self)
        same_answers = ("trace", "resume", "batch_size", "device", "engine", "attn_implementation")
        return {name: chosen[name] for name in chosen if name not in same_answers} | self.settings().to_dict()


def _batch_size(value: Any) -> int:
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1 or (isinstance(value, float) and not value.is_integer()):
        raise UserError(f"batch_size is a whole number of questions, 1 or more, got {value!r}.")
    return size
