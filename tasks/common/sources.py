"""Where documents come from: files named in the environment, their images, the host's data set around them.

Knows no benchmark. The host must load some data set before it calls a task's `process_docs`; tasks that read
their files themselves give it a placeholder, so that no image and no question is copied into a cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, open_image, unreadable

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

Doc = dict[str, Any]

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


def build_dataset(read: Callable[[], list[Doc] | Dataset]) -> Dataset:
    """The documents of `read`, a list or a data set, as the host's data set.

    The host calls `process_docs` five times when it raises, two seconds apart, and then shows a RetryError
    instead of the message. So a UserError is kept as the only document, and `usable` raises it: the host
    builds the first document's prompt as soon as the task is loaded.
    """
    from datasets import Dataset

    try:
        docs = read()
    except UserError as error:
        docs = [{_PROBLEM: str(error)}]
    return Dataset.from_list(docs) if isinstance(docs, list) else docs


def usable(doc: Doc) -> Doc:
    """The document itself; UserError when it only carries an error (see `build_dataset`)."""
    if _PROBLEM in doc:
        raise UserError(doc[_PROBLEM])
    return doc


def read_json_lines(path: Path) -> Iterator[tuple[str, Doc]]:
    """Every object of a JSON Lines file (UTF-8) with its position, "file:line"; blank lines are skipped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a UTF-8 file of JSON lines.") from error
    # Not splitlines(): a JSON string may hold other line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _parse(line: str, where: str) -> Doc:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error}). Each line must hold one JSON object.") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object is expected, got {type(value).__name__}.")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, as from an emoji that was cut in two
        raise UserError(
            f"{where}: half of a surrogate pair ({error}). Write the whole character, or none."
        ) from error
    return value


def read_sheet(file: Path, rows: int | None = None) -> DataFrame:
    """The first sheet of an Excel file, an empty cell as "". UserError when it cannot be read.

    rows: only so many, 0 for its columns alone.
    """
    from zipfile import BadZipFile

    import pandas

    try:
        return pandas.read_excel(file, dtype=object, keep_default_na=False, nrows=rows)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}): give an Excel file (.xlsx).") from error


def text_field(row: Doc, name: str, where: str) -> str:
    """The text in a field, without surrounding white space; UserError when it is absent, empty or no text."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {name!r} must be a text that is not empty, got {value!r}.")
    return value.strip()


def images(doc: Doc) -> list[Image.Image]:
    """The document's one image, upright and RGB. doc["image"]: an image (from the hub) or a path."""
    image = doc["image"]
    try:
        return [open_image(image)]
    except UNREADABLE as error:
        raise unreadable(f"The image {image}", error, "replace it or remove its question.") from error
