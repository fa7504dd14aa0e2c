"""The report as one HTML page that needs no network. Knows nothing about runs and tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from dualfocus_lmms.results.report.gallery import PageImages
from dualfocus_lmms.results.report.tables import Table
from dualfocus_lmms.text_output import script_json

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("elements.js", "tables.js", "export.js", "sample.js", "report.js")  # each uses those before it


@dataclass(frozen=True)
class Tile:
    """One figure that is seen first. kind: the pathway whose colour it has, or nothing."""

    label: str
    value: str
    note: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a run's report. plot: an `<svg>` element or None."""

    name: str
    title: str
    tables: Sequence[Table] = ()
    plot: str | None = None
    caption: str = ""


@dataclass(frozen=True)
class RunPage:
    """The contents of one run's report.

    notices: what a reader must know first, such as missing samples. date: when the run ended, with its time
    zone, where that is known.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    notices: Sequence[str] = field(default=())
    date: datetime | None = None


def render(
    title: str,
    runs: Sequence[RunPage],
    comparison: Sequence[Table],
    rows: dict[str, Any],
    images: PageImages,
    notices: Sequence[str],
    plot: str | None = None,
) -> str:
    """The page. rows: of `gallery.collect`. notices: about the samples and their images. plot: an `<svg>`
    element of the comparison, or None."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html").render(
        title=title,
        runs=runs,
        comparison=comparison,
        plot=plot,
        notices=notices,
        samples=len(rows["id"]),
        style=_part("report.css"),
        script=Markup('"use strict"; {{\n{}\n}}').format(_part(*SCRIPTS)),
        rows=Markup(script_json(rows)),
        images=Markup(script_json({"photos": images.photos, "crops": images.crops})),
        svg=Markup,
        code=code,
        when=when,
    )


def when(date: datetime) -> str:
    """A date as "27 November 2026, 15:28 UTC", in this computer's time zone; the page writes it anew in the
    reader's."""
    here = date.astimezone()
    return f"{here.day} {here:%B %Y, %H:%M %Z}"


def code(text: str) -> Markup:
    """A text whose parts between backticks are code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _part(*names: str) -> Markup:
    return Markup("\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names))
