"""Fonts for drawn text: Pillow's own for ASCII, then matplotlib's, then those of the system.

A text is drawn in runs, each in the first font that has its characters.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

_IN_PILLOWS = "·…"  # besides ASCII
MISSING = "\N{REPLACEMENT CHARACTER}"


class Lettering:
    """Text of one size. size: in pixels."""

    def __init__(self, size: int, text: str) -> None:
        plain = all(character.isascii() or character in _IN_PILLOWS for character in text)
        self._size = size if plain else size - 2  # matplotlib's letters are larger
        self._plain = plain

    def length(self, text: str) -> float:
        """The width of a line, in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def draw(self, pen: ImageDraw.ImageDraw, x: float, base: float, text: str, color: str) -> None:
        """Draw a line: its left end and its base line are given."""
        for font, run in self._runs(text):
            pen.text((x, base), run, color, font, "ls")
            x += font.getlength(run)

    def _runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        if self._plain:
            return [(_pillows(self._size), text)]
        text = "".join(MISSING if _file_for(character) is None else character for character in text)
        parts = groupby(text, key=_file_for)
        return [(_truetype(file or _matplotlibs(), self._size), "".join(run)) for file, run in parts]


def undrawable(text: str) -> str:
    """The characters of a text that no font here has, each once."""
    return "".join(
        dict.fromkeys(
            character
            for character in text
            if not character.isascii() and character.isprintable() and _file_for(character) is None
        )
    )


@lru_cache(maxsize=32)
def _pillows(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


@lru_cache(maxsize=64)
def _truetype(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def _matplotlibs() -> str:
    """The file of DejaVu Sans, which has the letters of many scripts."""
    from matplotlib import get_data_path

    return str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@lru_cache(maxsize=4096)
def _file_for(character: str) -> str | None:
    """The first font file that has a character, None where none has it."""
    if ord(character) in _characters(_matplotlibs()) or character.isspace():
        return _matplotlibs()
    return next((file for file in _of_the_system() if ord(character) in _characters(file)), None)


@lru_cache(maxsize=1)
def _of_the_system() -> tuple[str, ...]:
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts()))


@cache
def _characters(file: str) -> frozenset[int]:
    """The characters that a font file draws; none where it cannot be used, such as one of bitmaps alone."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(file, 20)
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
