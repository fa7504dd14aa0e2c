"""One question as an image: the original with the region, the zoomed crop, both answers and which was chosen.

Knows Pillow and traces; nothing about models or where an image comes from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.calibrated import is_calibrated
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import replacing
from dualfocus_lmms.fonts import Lettering, undrawable
from dualfocus_lmms.images import rgb
from dualfocus_lmms.prompts import PROMPTS, bare_question
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer, Fallback
from dualfocus_lmms.zoom import Rectangle

# Blue and vermilion of Okabe and Ito's palette, which colour-blind people tell apart.
MACRO_COLOR, MICRO_COLOR = "#0072B2", "#D55E00"
MACRO_TINT, MICRO_TINT = "#E6F1F8", "#FCEFE5"
HEAT = ("#1B1040", "#FCE97A", "#C43C4E")  # the lowest attention, the highest, half of it
PAPER, MATTE, LINE, INK, MUTED = "#FAFAF8", "#EFEFEC", "#DADAD6", "#1B1B1B", "#62625E"

MARGIN, GAP, PADDING = 36, 28, 20
PHOTO, CROP = (760, 520), (600, 520)  # the largest size of each on the page
NARROWEST, LOWEST = 340, 220  # of a column and of the row of images
BETWEEN = 8  # two crops
FRAME = 4  # of the crop, and the line of the box on the image
LARGEST_EXPONENT = 700  # of e, in a float
MOST_LINES = 16  # of an answer or a question

LEGEND = "On the image: the model's box, with a thick line, and what was cropped, with a thin one"

WHY: dict[str, str] = {
    Fallback.NO_BOX: "the reply to the locate question holds no box",
    Fallback.EMPTY_REGION: "the box covers no pixel of the image",
    Fallback.SKIPPED: "the first answer was confident enough",
    Fallback.MACRO_ONLY: "only the macro pathway was requested",
}


def draw(image: Image.Image, trace: Trace) -> Image.Image:
    """The drawing of one trace; `image` is the one of its question, upright (`api.load_image`).

    Blue is the macro pathway, vermilion the micro one. On the image: the attention where the trace keeps it,
    the box that the model returned, and a thinner rectangle where the crop differs from it. ValueError when
    `image` is not of the trace's size.
    """
    if image.size != trace.image_size:
        raise ValueError(f"The trace is of an image of {trace.image_size} pixels, this one has {image.size}.")
    image = rgb(image)
    photo = _fit(image, PHOTO)
    heat = heat_of(trace, photo.size)
    if heat is not None:
        photo = Image.blend(photo, heat, 0.5)
    height = max(photo.height, LOWEST)
    crop = _crops(image, trace, (CROP[0], height)) if trace.micro else None
    left, right = max(photo.width, NARROWEST), max(crop.width if crop else 0, NARROWEST)
    width, x = left + GAP + right, MARGIN + left + GAP
    title = _TextBlock(question_of(trace), 28, INK, width)
    note = _TextBlock(verdict(trace), 16, MUTED, width)
    marks = _regions(trace)
    legend = _TextBlock(LEGEND, 16, MUTED, width) if len({line for _, line in marks}) > 1 else None
    macro, micro = _card(trace, "macro", trace.macro, left), _card(trace, "micro", trace.micro, right)
    card_height = max(macro.height, micro.height)
    below = [note.height, legend.height if legend else 0]
    tops = _stack(MARGIN, [title.height + 20, height + 14, card_height + 18, *below])

    page = Image.new("RGB", (width + 2 * MARGIN, tops[-1] + MARGIN - 6), PAPER)
    title.put(page, MARGIN, tops[0])
    place = (MARGIN, tops[1], MARGIN + left, tops[1] + height)
    hung = _hang(page, photo, place)
    for rectangle, line in marks:
        _outline(page, _within(rectangle, image.size, hung), place, line)
    place = (x, tops[1], x + right, tops[1] + height)
    if crop is None:
        _explain(page, trace, place)
    else:
        _hang(page, crop, place)
    macro.put(page, MARGIN, tops[2], card_height)
    micro.put(page, x, tops[2], card_height)
    note.put(page, MARGIN, tops[3])
    if legend is not None:
        legend.put(page, MARGIN, tops[4])
    return page


def heat_of(trace: Trace, size: tuple[int, int]) -> Image.Image | None:
    """The attention to the whole image in the colours HEAT, of `size`; None where the trace keeps none."""
    kept = trace.attention
    return None if kept is None else ImageOps.colorize(kept.image(size), *HEAT)


def missing_characters(trace: Trace) -> str:
    """The characters of question and answers that no font here has: `draw` puts a mark in their place."""
    return undrawable("".join([question_of(trace), *(answer.text for answer in trace.answers)]))


def crops_of(image: Image.Image, trace: Trace) -> Image.Image:
    """What the second look saw of `image`: its crop; several one below the other, of one width."""
    crops = [image.crop(crop) for crop in trace.shown]
    if len(crops) == 1:
        return crops[0]
    widest = max(crop.width for crop in crops)
    return _stacked([_fit(crop, (widest, 4 * widest)) for crop in crops])


def save(image: Image.Image, path: str | Path) -> None:
    """Write an image; UserError when the folder or the file's ending is not usable (`check_path`)."""
    check_path(path)
    try:
        with replacing(path) as temporary:
            image.save(temporary, Image.registered_extensions()[Path(path).suffix.lower()])
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write the image {str(path)!r}: {error}.") from error


def check_path(path: str | Path) -> None:
    """UserError unless an image can be written to `path`: to be called before the work."""
    path = Path(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise UserError(f"{path.name!r} is not the name of an image file: end it with .png or .jpg.")
    if not path.parent.is_dir():
        raise UserError(f"The folder {str(path.parent)!r} of the image does not exist: make it first.")


def question_of(trace: Trace) -> str:
    """The bare question of a trace, out of its prompts."""
    for wording in PROMPTS.values():
        before, _, after = wording.locate.partition("{question}")
        located = trace.prompts.get("locate", "")
        if located.startswith(before) and located.endswith(after):
            return located[len(before) : len(located) - len(after)]
    return bare_question(trace.prompts["macro"])


def reason(trace: Trace) -> str:
    """Why the trace has no micro answer."""
    return WHY.get(trace.fallback or "", trace.fallback or "no reason was given")


def verdict(trace: Trace) -> str:
    """Which answer was chosen, and why, in one line."""
    chosen = trace.selection
    answer = f"{_sentence(chosen.pathway)} answer"
    if trace.micro is None:
        return f"{answer}: {reason(trace)}"
    if chosen.margin is None:
        return f"{answer}, chosen by the rule {chosen.rule}"
    if is_calibrated(chosen.rule) and chosen.compared is not None:
        macro, micro = chosen.compared
        return (
            f"{answer}, chosen by the rule {chosen.rule}; it compares {macro:.3f} (macro) with {micro:.3f} "
            "(micro): the lower wins"
        )
    certain = "micro" if chosen.margin < 0 else "macro"
    comparison = f"{certain} is more certain" if chosen.margin else "a tie"
    return (
        f"{answer}, chosen by the rule {chosen.rule}; "
        f"ln PPL(micro) - ln PPL(macro) = {chosen.margin:+.3f}: {comparison}"
    )


def perplexity(trace: Trace, pathway: str) -> str:
    """The perplexity by which an answer was compared, as text; "-" where a joint rule compared none."""
    if trace.micro is None or trace.judged is None:
        return number(trace.ppl[pathway])
    compared = trace.selection.compared
    if compared is None:
        return "-"
    value = compared[0 if pathway == "macro" else 1]
    return number(exp(value) if value < LARGEST_EXPONENT else inf)


def perplexity_name(trace: Trace) -> str:
    """What `perplexity` is called: with the rule, where that scored both answers anew."""
    joint = trace.micro is not None and trace.judged is not None
    return f"perplexity by {trace.selection.rule}" if joint else "perplexity"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _regions(trace: Trace) -> list[tuple[tuple[float, ...], int]]:
    """What to mark, in the image's pixels, and how thick: crops that differ from their box, and boxes."""
    boxes = trace.boxes or (() if trace.box is None else (trace.box,))
    edges = [
        tuple(value * side for value, side in zip(Box(*box).clip().xyxy, trace.image_size * 2, strict=True))
        for box in boxes
    ]
    thin: list[tuple[tuple[float, ...], int]] = [
        (crop, 2)
        for crop, box in zip(trace.shown, edges, strict=False)
        if max(abs(a - b) for a, b in zip(crop, box, strict=True)) > 1
    ]
    return thin + [(box, FRAME) for box in edges]


def _within(rectangle: Sequence[float], image_size: tuple[int, int], hung: Rectangle) -> Rectangle:
    """Where a rectangle of an image is on the page, when the whole image is at `hung`."""
    left, top, right, bottom = hung
    factors = ((right - left) / image_size[0], (bottom - top) / image_size[1]) * 2
    x0, y0, x1, y1 = (round(value * factor) for value, factor in zip(rectangle, factors, strict=True))
    return (left + x0, top + y0, left + x1, top + y1)


def _outline(page: Image.Image, xyxy: Rectangle, place: Rectangle, line: int) -> None:
    """A rectangle in the micro colour between two white lines, visible on any background, inside `place`.

    It never gets so small that it hides what it marks.
    """
    x0, y0, x1, y1 = xyxy
    smallest = 4 * line
    wider, higher = max(smallest - (x1 - x0), 0) // 2, max(smallest - (y1 - y0), 0) // 2
    x0, y0 = max(x0 - wider, place[0]), max(y0 - higher, place[1])
    x1, y1 = min(x1 + wider, place[2]) - 1, min(y1 + higher, place[3]) - 1
    pen = ImageDraw.Draw(page)
    pen.rectangle((x0, y0, x1, y1), outline="white", width=line + 2)
    pen.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=MICRO_COLOR, width=line)


def _crops(image: Image.Image, trace: Trace, largest: tuple[int, int]) -> Image.Image:
    """The crops in frames, one below the other, together as large as `largest` allows."""
    width, height = largest
    each = (height - BETWEEN * (len(trace.shown) - 1)) // len(trace.shown)
    return _stacked([_framed(_fit(image.crop(crop), (width, each - 2 * FRAME))) for crop in trace.shown])


def _stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Images one below the other, in the middle; one is returned as it is."""
    if len(images) == 1:
        return images[0]
    tops = _stack(0, [image.height + BETWEEN for image in images])
    page = Image.new("RGB", (max(image.width for image in images), tops[-1] - BETWEEN), MATTE)
    for image, top in zip(images, tops, strict=False):
        page.paste(image, ((page.width - image.width) // 2, top))
    return page


def _framed(crop: Image.Image) -> Image.Image:
    """The crop in a frame of the colour of its box on the image."""
    return ImageOps.expand(crop, FRAME, MICRO_COLOR)


def _fit(image: Image.Image, largest: tuple[int, int]) -> Image.Image:
    """`image` as large as `largest` allows, at least one pixel each way. Single pixels stay sharp."""
    scale = min(largest[0] / image.width, largest[1] / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 12 else Image.Resampling.LANCZOS)


def _hang(page: Image.Image, image: Image.Image, place: Rectangle) -> Rectangle:
    """The rectangle of `image` after it is pasted into the middle of `place`, on a matte."""
    x0, y0, x1, y1 = place
    page.paste(MATTE, place)
    left, top = x0 + (x1 - x0 - image.width) // 2, y0 + (y1 - y0 - image.height) // 2
    page.paste(image, (left, top))
    return (left, top, left + image.width, top + image.height)


def _explain(page: Image.Image, trace: Trace, place: Rectangle) -> None:
    """Write into the place of the crop why none exists."""
    x0, y0, x1, y1 = place
    page.paste(MATTE, place)
    width = x1 - x0 - 2 * PADDING
    blocks = [
        _TextBlock("No second look", 22, INK, width),
        _TextBlock(f"{_sentence(reason(trace))}.", 17, MUTED, width),
    ]
    if trace.fallback == Fallback.NO_BOX and trace.locate is not None:
        blocks.append(_TextBlock(f"It was: {trace.locate.text or '(empty)'}", 17, MUTED, width, 3))
    y = y0 + (y1 - y0 - sum(block.height for block in blocks) - 6 * len(blocks)) // 2
    for block in blocks:
        block.put(page, x0 + PADDING, y)
        y += block.height + 6


@dataclass(frozen=True, eq=False)
class _Card:
    """One pathway's answer, as high as it needs to be; `put` draws it at a given height."""

    height: int
    put: Callable[[Image.Image, int, int, int], None]


def _card(trace: Trace, pathway: str, answer: Answer | None, width: int) -> _Card:
    color, tint = (MACRO_COLOR, MACRO_TINT) if pathway == "macro" else (MICRO_COLOR, MICRO_TINT)
    won = trace.selection.pathway == pathway
    inside = width - 2 * PADDING - 6
    zoomed = "zoomed region" if len(trace.shown) < 2 else f"{len(trace.shown)} zoomed regions"
    if trace.looks:
        number = [look.micro for look in trace.looks].index(trace.micro) + 1
        zoomed += f", look {number} of {len(trace.looks)}"
    input_name = "whole image" if pathway == "macro" else zoomed
    label = _TextBlock(f"{pathway.upper()}  ·  {input_name}", 15, color, inside)
    reply = "no answer" if answer is None else answer.text or "(an empty answer)"
    text = _TextBlock(reply, 24, INK if answer else MUTED, inside)
    blocks = [label, text]
    if answer is not None:
        line = f"{perplexity_name(trace)} {perplexity(trace, pathway)}"
        blocks.append(_TextBlock(line, 16, MUTED, inside))
    tops = _stack(PADDING - 4, [blocks[0].height + 8, *(block.height + 6 for block in blocks[1:])])

    def put(page: Image.Image, x: int, y: int, height: int) -> None:
        _rounded(page, (x, y, x + width, y + height), 8, color if won else LINE)
        edge = 2 if won else 1
        within = (x + edge, y + edge, x + width - edge, y + height - edge)
        _rounded(page, within, 8 - edge, tint if won else "white")
        page.paste(color, (x + 6, y + 12, x + 10, y + height - 12))
        for block, top in zip(blocks, tops, strict=False):
            block.put(page, x + PADDING + 6, y + top)
        if won:
            _badge(page, x + width - 14, y + 12, color)

    return _Card(tops[-1] + PADDING - 10, put)


def _badge(page: Image.Image, right: int, top: int, color: str) -> None:
    """A filled pill with the word "chosen", its upper right corner at (right, top)."""
    label = _TextBlock("chosen", 15, "white", 100)
    left = right - label.width - 38
    _rounded(page, (left, top, right, top + 25), 12, color)
    tick = [(left + 11, top + 13), (left + 15, top + 17), (left + 22, top + 8)]
    ImageDraw.Draw(page).line(tick, fill="white", width=2, joint="curve")
    label.put(page, left + 28, top + 4)


def _rounded(page: Image.Image, xyxy: Rectangle, radius: int, color: str) -> None:
    """A filled rectangle with smooth round corners; Pillow's own are jagged."""
    x0, y0, x1, y1 = xyxy
    size, fine = (x1 - x0, y1 - y0), 4
    mask = Image.new("L", (size[0] * fine, size[1] * fine))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius * fine, fill=255)
    page.paste(color, xyxy, mask.resize(size, Image.Resampling.BOX))


class _TextBlock:
    """Text wrapped to a width, `most` lines at most; the last one ends in "…" where some is left out."""

    def __init__(self, text: str, size: int, color: str, width: int, most: int = MOST_LINES) -> None:
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
        self._lettering, self._color = Lettering(size, text), color
        self._lines = _wrap(text, self._lettering.length, width, most)
        self._step = round(size * 1.3)
        self.height = self._step * len(self._lines)
        self.width = round(max(self._lettering.length(line) for line in self._lines))

    def put(self, page: Image.Image, x: int, y: int) -> None:
        pen = ImageDraw.Draw(page)
        for row, line in enumerate(self._lines):
            base = y + row * self._step + round(self._step * 0.77)
            self._lettering.draw(pen, x, base, line, self._color)


def _wrap(text: str, length: Callable[[str], float], width: int, most: int) -> list[str]:
    """`text` in lines no longer than `width`; a word that alone is longer is broken."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        while length(word) > width and len(word) > 1 and len(lines) <= most:
            room = width if not line else width - length(f"{line} ")
            fitting = bisect_right(range(1, len(word)), room, key=lambda n, word=word: length(word[:n]))
            if not fitting and not line:
                fitting = 1
            lines.append(f"{line} {word[:fitting]}".strip() if fitting else line)
            line, word = "", word[fitting:]
        joined = f"{line} {word}" if line else word
        if length(joined) <= width:
            line = joined
        else:
            lines.append(line)
            line = word
        if len(lines) > most:
            break
    lines.append(line)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and length(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last.rstrip()}…"]


def number(value: float) -> str:
    """A perplexity as text: 1.234, 87.65, 3.2e+08."""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 10_000 else f"{value:.1e}"


def _stack(top: int, heights: list[int]) -> list[int]:
    """The tops of blocks of these heights, one below the other, and the end of the last one."""
    tops = [top]
    for height in heights:
        tops.append(tops[-1] + height)
    return tops
