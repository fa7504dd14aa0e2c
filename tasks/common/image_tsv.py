"""TSV files that hold their images as base64 text, as evaluation kits exchange benchmarks.

Images stay in the file: a document's image is the file's path, "#" and the bytes where its text begins and
ends.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, open_image, opened, unreadable
from dualfocus_lmms.tasks.common.options import hub_image
from dualfocus_lmms.tasks.common.sources import Doc, images_needed, text_field

LONG = 10_000  # characters: an image has more, the text of a question has fewer


def read_questions(file: Path, hub: str) -> Iterator[tuple[Doc, str, str]]:
    """Every row of a file with a column image, its position, and its image as a document has it.

    UserError where the file is no such one, or a row has no image: the file is incomplete.
    """
    empty = True
    for row, begin, end in _rows(file, hub):
        where, empty = f"{file}: index {row.get('index')}", False
        if images_needed():
            text_field(row, "image", where)
        yield row, where, f"{file}#{begin}-{end}"
    if empty:
        raise UserError(f"{file} holds no question: get it again from the hub's {hub}.")


def _rows(file: Path, hub: str) -> Iterator[tuple[Doc, int, int]]:
    """Every row, and where in the file its image begins and ends.

    The image is the longest cell of its row, in whatever column. The reader of csv, slow with megabytes, gets
    a short text in the place of a long one.
    """
    begin = end = 0

    def short_lines() -> Iterator[str]:
        nonlocal begin, end
        while line := binary.readline():
            start, content = binary.tell() - len(line), line.rstrip(b"\r\n")
            cell = max(content.split(b"\t"), key=len)
            if len(cell) > end - begin:
                begin = start + content.find(cell)
                end = begin + len(cell)
            yield (line if len(cell) < LONG else line.replace(cell, b"image", 1)).decode()

    try:
        with file.open("rb") as binary:
            reader = csv.DictReader(short_lines(), delimiter="\t")
            if "image" not in (reader.fieldnames or ()):
                raise UserError(f"{file}: a column 'image' is expected, as in the official file.")
            begin = end = 0
            for row in reader:
                yield row, begin, end
                begin = end = 0
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}): get it again from the hub's {hub}.") from error


def images(doc: Doc) -> list[Image.Image]:
    """`doc_to_visual`: the document's one image, decoded from the base64 text of its file or of the hub."""
    with _readable(doc):
        return [open_image(io.BytesIO(_bytes(doc)))]


def image_size(doc: Doc) -> tuple[int, int]:
    """(width, height) of the document's image in pixels; it is not decoded for that."""
    with _readable(doc), opened(io.BytesIO(_bytes(doc))) as image:
        return image.size


def _bytes(doc: Doc) -> bytes:
    return base64.b64decode(_base64(doc["image"]) if isinstance(doc["image"], str) else hub_image(doc))


def _base64(reference: str) -> bytes:
    """The text of an image, found by a document's image."""
    file, _, span = reference.rpartition("#")
    begin, end = map(int, span.split("-"))
    with open(file, "rb") as binary:
        binary.seek(begin)
        return binary.read(end - begin)


@contextmanager
def _readable(doc: Doc) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:  # text that is no base64 is a ValueError
        source = (
            doc["image"].rpartition("#")[0] if isinstance(doc["image"], str) else f"the hub's {doc['hub']}"
        )
        what = f"The image of question {doc['index']} of {source}"
        raise unreadable(what, error, "get the file again.") from error
