"""Which font draws what: Pillow's, matplotlib's, one of the system, none."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageDraw

from dualfocus_lmms import fonts
from dualfocus_lmms.fonts import Lettering, undrawable

OTHER = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))  # as if of the system


@pytest.fixture
def of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts._file_for.cache_clear()
    monkeypatch.setattr(fonts, "_of_the_system", lambda: (__file__, OTHER))  # the first of them is no font
    yield
    fonts._file_for.cache_clear()


def names(text: str) -> list[tuple[str, str]]:
    return [(font.getname()[0], run) for font, run in Lettering(24, text)._runs(text)]


def test_each_run_has_the_first_font_that_knows_its_characters(of_the_system: None):
    (rare,) = list(fonts._characters(OTHER) - fonts._characters(fonts._matplotlibs()))[:1]
    assert names("red") == [("Aileron", "red")]
    assert names("\u00e9 \U0001f600") == [("DejaVu Sans", "\u00e9 \U0001f600")]
    assert names(f"a {chr(rare)}!") == [
        ("DejaVu Sans", "a "),
        ("STIXGeneral", chr(rare)),
        ("DejaVu Sans", "!"),
    ]
    assert undrawable(f"a {chr(rare)}!") == ""


def test_what_no_font_has_is_marked_and_named(of_the_system: None):
    assert undrawable("a\u00e9 \u4e2d\u6587\u4e2d") == "\u4e2d\u6587"
    assert names("\u4e2d!") == [("DejaVu Sans", f"{fonts.MISSING}!")]
    page = Image.new("L", (60, 30))
    Lettering(20, "\u4e2d").draw(ImageDraw.Draw(page), 2, 24, "\u4e2d", "white")
    assert page.getbbox() is not None
