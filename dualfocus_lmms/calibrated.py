"""Rules with fitted numbers, which `dualfocus calibrate` writes: `select=calibrated:FILE`. No library needed.

They know two things that eq. 8 does not: how much more certain micro must be (`Bias`), or what lengths,
region and agreement add (`Logistic`). A rule is fitted on questions, and is refused where the same questions
are asked again, unless its name says so: `select=calibrated_in_sample:FILE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.json_text import STRICT, Kind
from dualfocus_lmms.types import Answer

PREFIX = "calibrated:"
IN_SAMPLE = "calibrated_in_sample:"
NAMES = (f"{PREFIX}FILE", f"{IN_SAMPLE}FILE")
FORMAT, VERSION = "dualfocus-calibration", 1
ADVICE = "give a file that `dualfocus calibrate RUN --out FILE` wrote."


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule is given of one question. box: the located region; None where micro saw none of its own."""

    macro: Answer
    micro: Answer
    box: Box | None
    count_eos: bool

    @property
    def nlls(self) -> tuple[float, float]:
        """ln PPL of macro and micro, each under its own pathway."""
        return self.macro.nll(self.count_eos), self.micro.nll(self.count_eos)


class Choice(Protocol):
    """How an answer is chosen: `compare` returns a number for macro and one for micro.

    Macro wins where its number is strictly lower, else micro, as in eq. 8.
    """

    def compare(self, case: Case) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class Bias:
    """Macro wins where ln PPL(macro) < ln PPL(micro) + b. b: nats; 0 is eq. 8."""

    b: float

    def compare(self, case: Case) -> tuple[float, float]:
        """ln PPL(macro) and ln PPL(micro) + b."""
        macro, micro = case.nlls
        return self.costs({"nll_macro": macro, "nll_micro": micro})

    def costs(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """`compare` of FEATURES: numbers, or arrays of one shape."""
        return values["nll_macro"], values["nll_micro"] + self.b


def features(case: Case) -> dict[str, float]:
    """What `Logistic` weighs, by name.

    nll_*: ln PPL. tokens_*: of the answer. area: of the box inside the image, as a share of it; 1 without a
    box. agreement: the words of both answers that they share, as a share of all of them.
    """
    macro, micro = case.nlls
    return {
        "nll_macro": macro,
        "nll_micro": micro,
        "tokens_macro": float(len(case.macro.tokens)),
        "tokens_micro": float(len(case.micro.tokens)),
        "area": 1.0 if case.box is None else case.box.clip().area,
        "agreement": agreement(case.macro.text, case.micro.text),
    }


FEATURES = ("nll_macro", "nll_micro", "tokens_macro", "tokens_micro", "area", "agreement")


def agreement(one: str, other: str) -> float:
    """The share of words in either text that are in both, 0 to 1; case does not matter, order neither.

    agreement("a red car", "red car") == 2 / 3
    """
    first, second = set(one.lower().split()), set(other.lower().split())
    return len(first & second) / len(first | second) if first | second else 1.0


@dataclass(frozen=True, slots=True)
class Feature:
    """(value - mean) / scale is multiplied by weight. scale is above 0."""

    mean: float
    scale: float
    weight: float


@dataclass(frozen=True, slots=True)
class Logistic:
    """Micro wins where it is the correct one with a probability of one half or more.

    features: one for each of FEATURES.
    """

    intercept: float
    features: Mapping[str, Feature]

    def compare(self, case: Case) -> tuple[float, float]:
        """-ln P(macro is the correct one) and -ln P(micro is the correct one); the two P add up to 1."""
        macro, micro = self.costs(features(case))
        return float(macro), float(micro)

    def costs(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """`compare` of FEATURES: numbers, or arrays of one shape."""
        import numpy as np  # here, as the package is loaded without it

        odds = self.intercept + sum(
            one.weight * (values[name] - one.mean) / one.scale for name, one in self.features.items()
        )
        return np.logaddexp(0.0, odds), np.logaddexp(0.0, -odds)  # ln(1 + e^odds)


@dataclass(frozen=True, slots=True)
class FittedOn:
    """Questions that a rule was fitted on. questions_fingerprint: see `integrity`, of all of the task's."""

    task: str
    split: str
    questions_fingerprint: str
    samples: int


@dataclass(frozen=True, slots=True)
class CalibratedRule:
    """A selection rule that `dualfocus calibrate` fitted.

    count_eos: whether the end-of-turn token counted in the perplexities. in_sample: whether it may choose
    between answers to the questions that it was fitted on.
    """

    choice: Bias | Logistic
    count_eos: bool
    fitted_on: tuple[FittedOn, ...]
    in_sample: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All that decides a choice, and the questions: what the settings of a run keep."""
        kind = "bias" if isinstance(self.choice, Bias) else "logistic"
        fitted_on = [asdict(one) for one in self.fitted_on]
        return {"rule": kind, "count_eos": self.count_eos, **asdict(self.choice), "fitted_on": fitted_on}

    def check_count_eos(self, name: str, count_eos: bool) -> None:
        """UserError where a run does not count the tokens that this rule was fitted with."""
        if count_eos != self.count_eos:
            raise UserError(
                f"select={name} was fitted with count_eos={self.count_eos}, and this run has "
                f"count_eos={count_eos}: its perplexities are others. Give count_eos={self.count_eos}, or "
                "fit a rule on a run with the same setting."
            )

    def check_unseen(self, name: str, questions: Mapping[tuple[str, str], str]) -> None:
        """UserError where the rule was fitted on questions that are asked now.

        questions: their fingerprints, by task and split.
        """
        if self.in_sample:
            return
        known = {one.questions_fingerprint for one in self.fitted_on}
        seen = sorted(f"{task} ({split})" for (task, split), now in questions.items() if now in known)
        if seen:
            file = name.removeprefix(PREFIX)
            raise UserError(
                f"select={name} was fitted on the questions of {', '.join(seen)}: a score on them would "
                f"flatter it. Fit it on other questions, such as another split, or give "
                f"select={IN_SAMPLE}{file}, which the run and its traces then say."
            )


def is_calibrated(name: str) -> bool:
    """Whether a rule's name has a file in it."""
    return str(name).startswith((PREFIX, IN_SAMPLE))


def load(name: str) -> CalibratedRule:
    """The rule called `calibrated:FILE` or `calibrated_in_sample:FILE`. UserError where FILE holds none."""
    prefix, _, file = name.partition(":")
    path = Path(file).expanduser()
    written = _FILE.read(path, f"For select={name} {ADVICE}")
    if isinstance(written, _LogisticFile):
        if sorted(written.features) != sorted(FEATURES) or any(
            one.scale <= 0 for one in written.features.values()
        ):
            raise UserError(
                f"{path} is damaged: it needs the features {', '.join(FEATURES)}, each with a scale above 0. "
                f"For select={name} {ADVICE}"
            )
        choice: Bias | Logistic = Logistic(
            written.intercept, {feature: written.features[feature] for feature in FEATURES}
        )
    else:
        choice = Bias(written.b)
    return CalibratedRule(choice, written.count_eos, written.fitted_on, f"{prefix}:" == IN_SAMPLE)


@dataclass(frozen=True, kw_only=True)
class _File:
    """What `dualfocus calibrate` writes, whatever the rule; what it was measured to be worth is not read."""

    format: Literal["dualfocus-calibration"]
    version: Literal[1]
    count_eos: bool
    fitted_on: tuple[FittedOn, ...]

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT | {"extra": "ignore"}


@dataclass(frozen=True, kw_only=True)
class _BiasFile(_File):
    rule: Literal["bias"]
    b: float


@dataclass(frozen=True, kw_only=True)
class _LogisticFile(_File):
    rule: Literal["logistic"]
    intercept: float
    features: Mapping[str, Feature]


_FILE: Kind[_BiasFile | _LogisticFile] = Kind(_BiasFile | _LogisticFile)
