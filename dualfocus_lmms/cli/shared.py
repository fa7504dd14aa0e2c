"""Flags that are options of the model: their help comes from `options.Keywords`."""

from __future__ import annotations

from typing import Any

import typer

from dualfocus_lmms.options import Keywords, plain, unset


def flag(name: str) -> Any:
    """The flag of an option of the model. Its default stands in the signature of the command."""
    field = Keywords.model_fields[name]
    shown = unset(field) if field.default is None else True
    return typer.Option(help=plain(field.description or ""), show_default=shown)
