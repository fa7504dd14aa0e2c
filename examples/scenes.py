"""Three scenes of coloured shapes, one of which carries a label too small to read from afar, and questions.

    python examples/scenes.py FOLDER

writes scene1.png, ... and questions.jsonl, which the task df_local reads (DUALFOCUS_LOCAL).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = (1600, 1200)
FINE = 2  # drawn so many times larger, for smooth edges
COLORS = {
    "red": "#C8504B",
    "blue": "#4C7FB5",
    "green": "#5E9C6B",
    "yellow": "#E3B94F",
    "purple": "#8667A8",
}


@dataclass(frozen=True)
class Shape:
    """A shape around (x, y), `radius` pixels from its centre to its sides; label: the text on its plate."""

    color: str
    kind: str
    x: int
    y: int
    radius: int
    label: str = ""

    def __str__(self) -> str:
        return f"{self.color} {self.kind}"


SCENES = [
    (
        Shape("blue", "square", 420, 690, 270),
        Shape("yellow", "circle", 900, 260, 130),
        Shape("green", "triangle", 1180, 730, 250, "EXIT 7"),
    ),
    (
        Shape("red", "circle", 480, 480, 300, "No. 42"),
        Shape("purple", "square", 1130, 760, 220),
        Shape("blue", "triangle", 1240, 270, 150),
    ),
    (
        Shape("purple", "triangle", 400, 740, 260),
        Shape("red", "square", 850, 330, 170, "BAKERY"),
        Shape("yellow", "circle", 1230, 700, 280),
    ),
]


def draw(shapes: tuple[Shape, ...]) -> Image.Image:
    """A scene: the shapes in front of a wall, standing or hanging."""
    width, height = SIZE[0] * FINE, SIZE[1] * FINE
    image = Image.new("RGB", (width, height), "#F3EEE4")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, round(height * 0.78), width, height), fill="#D9CDB8")
    for shape in shapes:
        draw_shape(pen, shape)
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def draw_shape(pen: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, r = shape.x * FINE, shape.y * FINE, shape.radius * FINE
    color = COLORS[shape.color]
    if shape.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape.kind == "square":
        pen.rounded_rectangle((x - r, y - r, x + r, y + r), r // 12, fill=color)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=color)
    if shape.label:
        font = ImageFont.load_default(16 * FINE)
        half, plate = font.getlength(shape.label) / 2 + 8 * FINE, (x, y + r // 3)
        top, bottom = plate[1] - 15 * FINE, plate[1] + 15 * FINE
        pen.rounded_rectangle((x - half, top, x + half, bottom), 4 * FINE, fill="white")
        pen.text(plate, shape.label, "#222222", font, "mm")


def questions(shapes: tuple[Shape, ...], others: tuple[Shape, ...]) -> list[dict[str, str]]:
    """Questions about a scene: its label, a shape that is in it, one that is not."""
    labelled = next(shape for shape in shapes if shape.label)
    absent = next(str(shape) for shape in others if str(shape) not in map(str, shapes))
    return [
        {"question": f"What does the label on the {labelled} say?", "answer": labelled.label},
        {"question": f"Is there a {shapes[0]} in the picture?", "answer": "yes"},
        {"question": f"Is there a {absent} in the picture?", "answer": "no"},
    ]


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, shapes in enumerate(SCENES):
        name = f"scene{number + 1}.png"
        draw(shapes).save(folder / name)
        lines += [{"image": name, **question} for question in questions(shapes, SCENES[number - 1])]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
