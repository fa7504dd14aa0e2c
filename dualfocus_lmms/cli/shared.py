"""Flags that are options of the model: their help comes from `options.Keywords`."""

from __future__ import annotations

from typing import Any

import typer

from dualfocus_lmms.options import Keywords, unset
from dualfocus_lmms.options_text import plain


def pixels(text: str | None) -> str | int | None:
    """`crop_pixels` as it is typed: a number where it is one. None where nothing is."""
    given = (text or "").strip()
    return int(given) if given.isdecimal() else given or None


def flag(name: str) -> Any:
    """The flag of an option of the model. Its default stands in the signature of the command."""
    field = Keywords.model_fields[name]
    shown = unset(field) if field.default is None else True
    return typer.Option(help=plain(field.description or ""), show_default=shown)
