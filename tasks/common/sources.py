"""Where documents come from: files named in the environment, their images, the host's data set around them.

Knows no benchmark. The host must load some data set before it calls a task's `process_docs`; tasks that read
their files themselves give it a placeholder, so that no image and no question is copied into a cache.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, open_image, unreadable
from dualfocus_lmms.json_text import load_json

if TYPE_CHECKING:
    from datasets import Dataset

Doc = dict[str, Any]
Row = TypeVar("Row")

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
FAULTS_SHOWN = 20  # of a file, each by its line
_AT_ONCE = 10_000  # documents of an iterator

DATA = "DUALFOCUS_DATA"
LOCAL = "DUALFOCUS_LOCAL"

PLACEHOLDER_PATH = "text"
_PROBLEM = "problem"
_images_needed = ContextVar("images_needed", default=True)
_given: ContextVar[GivenFile | None] = ContextVar("given", default=None)


@dataclass
class GivenFile:
    """A file that holds questions with their correct answers. used: whether a task has read it."""

    path: Path
    used: bool = False


def named_path(variable: str) -> Path | None:
    """The absolute path an environment variable names ("~" allowed); None when it is unset or empty."""
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser().absolute() if value else None


def images_needed() -> bool:
    """Whether a question without its image is left out; if not, images are not checked."""
    return _images_needed.get()


@contextmanager
def without_images() -> Iterator[None]:
    """Tasks loaded inside have all of their questions: answers are scored, and no model runs."""
    token = _images_needed.set(False)
    try:
        yield
    finally:
        _images_needed.reset(token)


@contextmanager
def given_file(path: Path | None) -> Iterator[GivenFile | None]:
    """Tasks loaded inside that can read their questions from `path` do so (see `official.by_environment`);
    None changes nothing."""
    given = None if path is None else GivenFile(path)
    token = _given.set(given)
    try:
        yield given
    finally:
        _given.reset(token)


def the_given_file() -> GivenFile | None:
    """What `given_file` gives, None outside of it."""
    return _given.get()


def placeholder(*splits: str) -> dict[str, Any]:
    """`dataset_kwargs` (with `dataset_path: text`) of a small data set that `process_docs` replaces whole."""
    return {"data_files": dict.fromkeys(splits, str(Path(__file__)))}


def build_dataset(read: Callable[[], Iterable[Doc] | Dataset]) -> Dataset:
    """The documents of `read`, a list, an iterator or a data set, as the host's data set.

    Those of an iterator, texts, numbers and lists of them, are never all in memory as Python's objects.

    The host calls `process_docs` five times when it raises, two seconds apart, and then shows a RetryError
    instead of the message. So a UserError is kept as the only document, and `usable` raises it: the host
    builds the first document's prompt as soon as the task is loaded.
    """
    from datasets import Dataset

    try:
        docs = read()
        if isinstance(docs, Iterator):
            return _joined(
                [Dataset.from_list(some) for some in iter(lambda: list(islice(docs, _AT_ONCE)), [])]
            )
    except UserError as error:
        docs = [{_PROBLEM: str(error)}]
    return Dataset.from_list(docs) if isinstance(docs, list) else docs


def _joined(parts: Sequence[Dataset]) -> Dataset:
    """One after another; a column of empty lists in one part may have texts in another."""
    import pyarrow
    from datasets import Dataset

    if len(parts) == 1:
        return parts[0]
    tables = [part.data.table.replace_schema_metadata(None) for part in parts]
    return Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))


def usable(doc: Doc) -> Doc:
    """The document itself; UserError when it only carries an error (see `build_dataset`)."""
    if _PROBLEM in doc:
        raise UserError(doc[_PROBLEM])
    return doc


def read_rows(path: Path, make: Callable[[Doc, str], Row]) -> list[Row]:
    """`each_row` as a list."""
    return list(each_row(path, make))


def each_row(path: Path, make: Callable[[Doc, str], Row]) -> Iterator[Row]:
    """What `make` returns of each object of a file and its position, "file:line".

    The file holds JSON lines, or one JSON array of objects, or is a .csv or .tsv with the names in its first
    line; a cell that begins with [ is a JSON list, and an empty one is left out.
    At the end a UserError that names every line that is damaged, or that `make` refuses, up to FAULTS_SHOWN.
    """
    faults = []
    for where, read in _objects(path):
        try:
            row = make(read(), where)
        except UserError as error:
            faults.append(str(error))
        else:
            yield row
    refuse(path, faults)


def refuse(path: Path, faults: Sequence[str]) -> None:
    """UserError for all faults of a file, if there are any: the first FAULTS_SHOWN, and how many more."""
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        more = len(faults) - FAULTS_SHOWN
        listed = "\n".join(f"  {fault}" for fault in faults[:FAULTS_SHOWN])
        raise UserError(
            f"{path} cannot be used, it has {len(faults)} faults:\n{listed}"
            + (f"\n  and {more} more like these" if more > 0 else "")
        )


def _objects(path: Path) -> Iterator[tuple[str, Callable[[], Doc]]]:
    """The position of every object of a file, and what reads it or raises a UserError."""
    if path.suffix.lower() in _SEPARATORS:
        yield from _csv_rows(path)
        return
    _, first = next(_lines(path), ("", ""))
    items = _array("\n".join(line for _, line in _lines(path))) if first.lstrip().startswith("[") else None
    if items is not None:
        for number, item in enumerate(items, start=1):
            where = f"{path}, object {number}"
            yield where, partial(_object, item, where)
        return
    for where, line in _lines(path):
        yield where, partial(_parse, line, where)


def _array(text: str) -> list[Any] | None:
    """The JSON array that is the whole of a text, None for anything else."""
    try:
        value = load_json(text)
    except ValueError:
        return None
    return value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else None


def _csv_rows(path: Path) -> Iterator[tuple[str, Callable[[], Doc]]]:
    """The rows of a CSV file by the names in its first line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=_SEPARATORS[path.suffix.lower()])
        for row in table:
            where = f"{path}:{table.line_num}"
            yield where, partial(_of_cells, row, where)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}): give a UTF-8 file of comma-separated values."
        ) from error


def _of_cells(row: dict[Any, Any], where: str) -> Doc:
    if None in row or None in row.values():
        raise UserError(f"{where}: it has not as many cells as the first line. Quote cells with separators.")
    filled = {name: cell.strip() for name, cell in row.items() if cell.strip()}
    try:
        return {name: load_json(cell) if cell.startswith("[") else cell for name, cell in filled.items()}
    except ValueError as error:
        raise UserError(
            f'{where}: a cell begins with [ and is no JSON list ({error}): ["a cat", "a dog"]'
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not blank, with its position. Bytes that are not UTF-8 are that line's fault."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield f"{path}:{number}", text.removesuffix(b"\n").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give a UTF-8 file of JSON lines.") from error


def _parse(line: str, where: str) -> Doc:
    try:
        value = load_json(line)
    except ValueError as error:
        raise UserError(
            f"{where}: not JSON ({error}). Each line must hold one JSON object in UTF-8."
        ) from error
    return _object(value, where)


def _object(value: Any, where: str) -> Doc:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object is expected, got {type(value).__name__}.")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        # Half of a surrogate pair, as from an emoji that was cut in two, or bytes that are not UTF-8.
        raise UserError(
            f"{where}: half of a surrogate pair, or bytes that are not UTF-8 ({error}). Write the whole "
            "character, or none."
        ) from error
    return value


def text_field(row: Doc, name: str, where: str) -> str:
    """The text in a field, without surrounding white space; UserError when it is absent, empty or no text."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {name!r} must be a text that is not empty, got {value!r}.")
    return value.strip()


def texts_field(row: Doc, name: str, where: str) -> list[str]:
    """The texts in a field, which holds one or a list of them; UserError when there is none."""
    value = row.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {name!r} must be a text or a list of texts, got {value!r}.")
    return texts


def images(doc: Doc) -> list[Image.Image]:
    """The document's one image, upright and RGB. doc["image"]: an image (from the hub) or a path."""
    image = doc["image"]
    try:
        return [open_image(image)]
    except UNREADABLE as error:
        raise unreadable(f"The image {image}", error, "replace it or remove its question.") from error
