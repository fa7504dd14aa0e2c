"""The model arguments of `--model dualfocus_replay`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import field_validator

from dualfocus_lmms.calibrated import CalibratedRule, is_calibrated
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.options import Bool, Folder, Options, Probability, Rule, option
from dualfocus_lmms.settings import Settings

_FROM_RUN = ("protocol", "pathway", "select", "skip_confidence", "count_eos")


class ReplayOptions(Options):
    """Everything a user can set with `--model_args`."""

    trace: Folder = option(help="trace folder of a finished run")
    select: Rule | None = option(
        None,
        unset="the run's",
        help="rule that picks the answer: `macro`, `micro`, `ppl`, `ppl_tie_macro`, "
        "`calibrated:FILE`, or one of another package; `release` or `micro_context` on a run with this rule",
    )
    skip_confidence: Probability | None = option(
        None,
        unset="the run's; 1 with `second`",
        help="samples whose macro answer is more confident keep it, as if the second look had been skipped",
    )
    count_eos: Bool | None = option(
        None,
        unset="the run's",
        help="whether the end-of-turn token counts in perplexity and confidence",
    )
    second: Folder | None = option(
        None, help="trace folder of another run: its macro answer takes the place of the micro one"
    )

    @field_validator("select", mode="before")
    @classmethod
    def _is_no_oracle(cls, rule: Any) -> Any:
        if rule == "oracle":
            raise ValueError(
                "select=oracle needs the right answers, which no model is given: `dualfocus report RUN` has "
                "the oracle beside the scores of macro and micro."
            )
        return rule

    @classmethod
    def kind(cls) -> str:
        return "model argument of dualfocus_replay"

    @classmethod
    def missing(cls, name: str) -> str:
        return "No run to replay: give --model_args trace=<trace folder of a finished run>."

    def settings(self, run: Mapping[str, Any]) -> Settings:
        """How the answers of a run with the settings `run` (its run.json) are chosen, checked."""
        values = {name: run[name] for name in _FROM_RUN if name in run}
        # The file of a fitted rule may have changed.
        fitted = {"select": None} if is_calibrated(str(values.get("select"))) else {}
        try:
            Settings.of(**values | fitted)
        except (UserError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{Path(self.trace) / 'run.json'} has settings that no run writes ({error}): restore it, "
                "or give another run."
            ) from error
        if self.second is not None:
            values |= {"pathway": "both", "skip_confidence": 1.0}
        elif values.get("pathway") == "macro":
            if self.select not in (None, "macro"):
                raise UserError(
                    f"The run in {self.trace} has macro answers only (pathway=macro): select={self.select} "
                    "has nothing to choose from. Leave select out, or replay a run with pathway=both."
                )
            values["select"] = "macro"
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        settings = Settings.of(**values | {name: given[name] for name in _FROM_RUN if name in given})
        if self.second is None and run.get("looks", 1) != 1 and settings.count_eos != run.get("count_eos"):
            raise UserError(
                f"The run in {self.trace} has looks={run['looks']}: by its perplexities, with count_eos="
                f"{run.get('count_eos')}, it looked again or stopped. Leave count_eos out, or run it again."
            )
        if self.select is None and isinstance(settings.rule, CalibratedRule):
            _check_calibration(self.trace, settings, run.get("calibration"))
        return settings


def _check_calibration(folder: str, settings: Settings, then: Mapping[str, Any] | None) -> None:
    """UserError where the file of the run's own rule is not what it was. then: what it was."""
    if settings.to_dict().get("calibration") != then:
        raise UserError(
            f"The file of select={settings.rule_name} has changed since the run in {folder}: put the old one "
            f"back, or give select={settings.rule_name} to choose by the new one."
        )
