"""The settings of the Visual Genome build: configs/vg.yaml, and a user's file over it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.train.data.yaml_file import read_yaml
from dualfocus_lmms.train.vg.phrases import Words

DEFAULTS = Path(__file__).parents[1] / "configs" / "vg.yaml"
_COUNT_ENDS = frozenset(("there", "pictured", "shown", "visible", "present", "seen", "see", "total", "here"))
_SWITCHES = ("plural_evidence", "check_colors", "drop_repeats", "use_given", "use_regions", "whole_image")
# The least and the most of each number; whole numbers where the least is one.
_NUMBERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("same_object_iou", "same_stuff_inside", "part_inside", "min_side"), (0.0, 1.0)),
    "min_object_pixels": (0.0, math.inf),
    "min_per_image": (0, math.inf),
    "max_per_image": (1, math.inf),
    "crop_quality": (1, 95),
}


@dataclass(frozen=True, eq=False)
class VGConfig:
    """Every setting of configs/vg.yaml, which describes them. values: the settings as they were read."""

    same_object_iou: float
    same_stuff_inside: float
    part_inside: float
    plural_evidence: bool
    check_colors: bool
    drop_repeats: bool
    min_side: float
    min_object_pixels: float
    use_given: bool
    use_regions: bool
    whole_image: bool
    min_per_image: int
    max_per_image: int | None
    crop_format: str
    crop_quality: int
    global_questions: tuple[re.Pattern[str], ...]
    not_visual: tuple[re.Pattern[str], ...]
    no_answers: tuple[re.Pattern[str], ...]
    words: Words
    in_photo: re.Pattern[str]
    count_ends: frozenset[str]
    values: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path | None = None, **changes: Any) -> VGConfig:
        """The defaults, with the settings of the file `path` and of `changes` over them."""
        values = _read(DEFAULTS)
        given = (_read(Path(path)) if path is not None else {}) | changes
        unknown = sorted(set(given) - set(values))
        if unknown:
            raise UserError(f"Unknown settings {', '.join(unknown)}: {DEFAULTS.name} has all there are.")
        values |= given
        try:
            return cls._from(values)
        except (AttributeError, TypeError, ValueError, re.error) as error:
            raise UserError(f"The settings in {str(path or DEFAULTS)!r} cannot be used: {error}.") from error

    @classmethod
    def _from(cls, values: Mapping[str, Any]) -> VGConfig:
        _check(values)
        photo = "(?:" + "|".join(_words(values["photo_words"])) + ")"
        patterns = {
            name: tuple(re.compile(text.replace("{photo}", photo)) for text in values[name])
            for name in ("global_questions", "not_visual", "no_answers")
        }
        plain = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(
            **(plain | patterns),
            words=_word_lists(values),
            in_photo=re.compile(rf"\b(?:in|of|from|within) (?:the |this )?{photo}\b"),
            count_ends=_COUNT_ENDS,
            values=dict(values),
        )


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "The file of settings") or {}
    if not isinstance(values, dict):
        raise UserError(f"The settings in {str(path)!r} are no mapping of names to values.")
    return values


def _check(values: Mapping[str, Any]) -> None:
    """ValueError for a number, a switch or a choice outside of what configs/vg.yaml allows."""
    for name in _SWITCHES:
        if not isinstance(values[name], bool):
            raise ValueError(f"{name} must be true or false, got {values[name]!r}")
    for name, (least, most) in _NUMBERS.items():
        given = values[name]
        kinds = (int,) if isinstance(least, int) else (int, float)
        if name == "max_per_image" and given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, kinds) or not least <= given <= most:
            kind = "a whole number" if kinds == (int,) else "a number"
            limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ValueError(f"{name} must be {kind} {limits}, got {given!r}")
    if values["crop_format"] not in ("jpeg", "png"):
        raise ValueError(f"crop_format must be jpeg or png, got {values['crop_format']!r}")


def _words(text: str | Iterable[str]) -> list[str]:
    """A list of words, which may be written as one string."""
    return [str(word) for word in (text.split() if isinstance(text, str) else text)]


def _word_lists(values: Mapping[str, Any]) -> Words:
    """The lists of words, by name."""
    sets = [field.name for field in fields(Words) if field.type == "frozenset[str]"]
    return Words(
        irregular_plurals=values["irregular_plurals"],
        synonyms={other: first for first, *others in values["synonyms"] for other in others},
        kinds=_lists(values["kinds"]),
        related=_lists(values["related"]),
        compounds=dict(values["compounds"]),
        color_aliases=values["color_aliases"],
        numbers={str(word): int(number) for word, number in values["numbers"].items()},
        photo_words=tuple(_words(values["photo_words"])),
        **{name: frozenset(_words(values[name])) for name in sets},
    )


def _lists(values: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    return {name: frozenset(_words(words)) for name, words in values.items()}
