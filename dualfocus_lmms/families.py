"""The properties of every installed model family, as a table."""

from __future__ import annotations

from tabulate import tabulate

from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.plugins import FAMILIES, load_family, names

_COLUMNS = ("family", "model types", "a box is", "in", "images", "asked for a box", "engine")


def table(form: str = "github") -> str:
    """One row for each family, in a form of tabulate. The box is that of the image's right half."""
    rows = [[cell.replace("|", r"\|") for cell in _row(name)] for name in names(FAMILIES)]
    return tabulate(rows, headers=_COLUMNS, tablefmt=form)


def _row(name: str) -> list[str]:
    family = load_family(name)
    images = "padded to a square" if family.image == "square" else "the checkpoint's processor"
    if family.local_patches:
        images += ", tiles"
    return [
        f"`{name}`",
        ", ".join(f"`{kind}`" for kind in family.model_types) or "any, with `family=generic`",
        f"`{family.box_format.write(Box(0.5, 0, 1, 1), (800, 600), (784, 588))}`",
        _unit(family.box_format),
        images,
        "yes, `prompts=native`" if family.native_locate else "as Q1 does",
        f"`{family.engine}`",
    ]


def _unit(form: BoxFormat) -> str:
    if form.frame == "resized":
        return "pixels of the resized image"
    unit = {1.0: "fractions", 1000.0: "thousandths"}.get(float(form.scale), f"parts of {form.scale:g}")
    first = ", y first" if form.order == "yxyx" else ""
    return f"{unit} of the {'image' if form.frame == 'original' else 'padded square'}{first}"
