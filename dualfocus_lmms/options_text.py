"""Options as text: the tables of the docs, the help of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from textwrap import wrap

from pydantic.fields import FieldInfo

from dualfocus_lmms.options import Options, unset


def table(options: type[Options], without: Iterable[str] = ()) -> str:
    """One row for each option, those that are required first, in Markdown."""
    shown = [(name, field) for name, field in options.model_fields.items() if name not in without]
    rows = [
        f"| `{name}` | {_default(field)} | {field.description} |"
        for name, field in sorted(shown, key=lambda item: not item[1].is_required())
    ]
    return "\n".join(["| argument | default | meaning |", "| --- | --- | --- |", *rows])


def short_list(options: type[Options]) -> str:
    """One line or two for each option, for a terminal of 80 columns: its name, and the first sentence of what
    it means."""
    lines = []
    for name, field in sorted(options.model_fields.items(), key=lambda item: not item[1].is_required()):
        text = f"{plain(field.description or '')} [{_default(field).replace('`', '')}]"
        lines += wrap(text, 78, initial_indent=f"  {name:<20} ", subsequent_indent=" " * 23)
    return "\n".join(lines)


def plain(description: str) -> str:
    """The first sentence of a description, without the marks of code and links, for the command line."""
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", description).split(". ")[0]
    sentence = words.replace("`", "")
    end = "" if words.endswith(".") else "."
    return f"{sentence if words.startswith('`') else sentence[:1].upper() + sentence[1:]}{end}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return unset(field) if field.default is None else f"`{field.default}`"
