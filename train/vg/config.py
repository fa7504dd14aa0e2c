"""The settings of the Visual Genome build: configs/vg.yaml, and a user's file over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.options import Bool, Options, must_be
from dualfocus_lmms.train.data.yaml_file import read_yaml
from dualfocus_lmms.train.vg.words import Words, split

DEFAULTS = Path(__file__).parents[1] / "configs" / "vg.yaml"

_Share = Annotated[float, Field(strict=True, ge=0, le=1), must_be("a number from 0 to 1")]
_Patterns = tuple[re.Pattern[str], ...]


class VGConfig(Options):
    """Every setting of configs/vg.yaml, which describes them. values: the settings as they were read."""

    same_object_iou: _Share
    same_stuff_inside: _Share
    part_inside: _Share
    plural_evidence: Bool
    check_colors: Bool
    drop_repeats: Bool
    min_side: _Share
    min_object_pixels: Annotated[float, Field(strict=True, ge=0), must_be("a number of at least 0")]
    use_given: Bool
    use_regions: Bool
    whole_image: Bool
    min_per_image: Annotated[int, Field(strict=True, ge=0), must_be("a whole number of at least 0")]
    max_per_image: Annotated[int, Field(strict=True, ge=1), must_be("a whole number of at least 1")] | None
    crop_format: Annotated[Literal["jpeg", "png"], must_be("jpeg or png")]
    crop_quality: Annotated[int, Field(strict=True, ge=1, le=95), must_be("a whole number from 1 to 95")]
    global_questions: _Patterns
    not_visual: _Patterns
    no_answers: _Patterns
    words: Words
    values: Mapping[str, Any]

    count_ends: ClassVar[frozenset[str]] = frozenset(
        ("there", "pictured", "shown", "visible", "present", "seen", "see", "total", "here")
    )

    @classmethod
    def load(cls, path: str | Path | None = None, **changes: Any) -> VGConfig:
        """The defaults, with the settings of the file `path` and of `changes` over them."""
        defaults = _read(DEFAULTS)
        given = (_read(Path(path)) if path is not None else {}) | changes
        for name in given:
            if name not in defaults:
                error = choose("setting", name, defaults)
                raise error if path is None else UserError(f"The settings in {str(path)!r}: {error}")
        values = defaults | given
        words = {field.name: values[field.name] for field in fields(Words)}
        read = {name: value for name, value in values.items() if name not in words}
        photo = _photo(split(words["photo_words"]))
        for name in ("global_questions", "not_visual", "no_answers"):
            if isinstance(read[name], list):
                read[name] = [str(text).replace("{photo}", photo) for text in read[name]]
        try:
            return cls.of({**read, "words": words, "values": values})
        except UserError as error:
            raise UserError(f"The settings in {str(path or DEFAULTS)!r} cannot be used: {error}") from error

    @cached_property
    def in_photo(self) -> re.Pattern[str]:
        """What says no more than that something is in the image: "in this picture"."""
        return re.compile(rf"\b(?:in|of|from|within) (?:the |this )?{_photo(self.words.photo_words)}\b")


def _photo(words: Any) -> str:
    return "(?:" + "|".join(map(str, words)) + ")" if isinstance(words, (list, tuple)) else ""


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "The file of settings") or {}
    if not isinstance(values, dict):
        raise UserError(f"The settings in {str(path)!r} are no mapping of names to values.")
    return values
