"""A benchmark's official files in the folder that DUALFOCUS_DATA names: which exist, and which are missing.

When the variable is unset, a task reads the hub: see `by_environment` and `from_either`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import with_fingerprint
from dualfocus_lmms.json_text import load_json
from dualfocus_lmms.tasks.common.sources import (
    DATA,
    PLACEHOLDER_PATH,
    Doc,
    build_dataset,
    images_needed,
    named_path,
    placeholder,
    the_given_file,
)

if TYPE_CHECKING:
    from datasets import Dataset

NAMES_SHOWN = 5

log = logging.getLogger(__name__)


def by_environment(
    hub: str,
    *splits: str,
    name: str | None = None,
    reads_given: bool = False,
    hub_kwargs: dict[str, Any] | None = None,
) -> Callable[[str], Any]:
    """A task module's `__getattr__`: DATASET_PATH, DATASET_NAME and DATASET_KWARGS of its YAML.

    They are those of the hub's data set, or of the placeholder when files are read instead, by the
    environment at the moment a task is loaded. AttributeError for any other attribute. reads_given: whether
    the task can read `sources.given_file`. hub_kwargs: how the hub's files are read, where that is not plain.
    """

    def value(attribute: str) -> Any:
        offline = named_path(DATA) is not None or (reads_given and the_given_file() is not None)
        values = {
            "DATASET_PATH": PLACEHOLDER_PATH if offline else hub,
            "DATASET_NAME": None if offline else name,
            "DATASET_KWARGS": placeholder(*splits) if offline else hub_kwargs,
        }
        if attribute not in values:
            raise AttributeError(f"no attribute {attribute!r}")
        return values[attribute]

    return value


def from_either(
    hub: Callable[[], list[Doc] | Dataset],
    files: Callable[[Path], list[Doc] | Dataset],
    given: Callable[[Path], list[Doc] | Dataset] | None = None,
) -> Dataset:
    """A task's documents, with their fingerprint: `files` of the folder in DUALFOCUS_DATA, else `hub`; before
    both `given` of the file in `sources.given_file`, where there is one."""
    folder, file = named_path(DATA), the_given_file()
    if given is not None and file is not None:
        file.used, path = True, file.path
        return with_fingerprint(build_dataset(lambda: given(path)))
    return with_fingerprint(build_dataset(hub if folder is None else lambda: files(folder)))


def required(folder: Path, path: str, hub: str) -> Path:
    """`folder/path`, a file or a folder. UserError when it does not exist."""
    if not (folder / path).exists():
        raise UserError(
            f"{folder / path} is missing. {DATA} is {str(folder)!r}: it must hold the official {path}. "
            f"Put it there, or unset {DATA} to use the hub's {hub}."
        )
    return folder / path


def image_folder(folder: Path, path: str, hub: str) -> Path:
    """`folder/path`, a folder of images. UserError when it does not exist and `images_needed`."""
    return required(folder, path, hub) if images_needed() else folder / path


def read_json(file: Path) -> Any:
    """The content of a JSON file (UTF-8). UserError when it cannot be read."""
    try:
        content = file.read_bytes()
        value = load_json(content)
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode()  # half a character is a ValueError
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): give the official JSON file.") from error


def json_rows(file: Path, key: str | None = None) -> list[Any]:
    """The questions of a JSON file: a list of objects, or the list under `key`. UserError otherwise."""
    rows = read_json(file)
    if key is not None:
        rows = rows.get(key) if isinstance(rows, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        shape = "[questions]" if key is None else f'{{"{key}": [questions]}}'
        raise UserError(f"{file}: {shape} is expected: give the official file.")
    return rows


def with_images(task: str, docs: list[Doc], folder: Path) -> list[Doc]:
    """The documents whose image exists (doc["image"] is its path), each with questions_without_image.

    That is how many documents were left out; a warning names some of their images. UserError when none
    has its image, or there is none. All are kept where `images_needed` returns False.
    """
    if not docs:
        raise UserError(f"{task}: its file in {folder} holds no question. Give the official one.")
    if not images_needed():
        return [{**doc, "questions_without_image": 0} for doc in docs]
    found = {path: os.path.isfile(path) for path in {doc["image"] for doc in docs}}
    kept = [doc for doc in docs if found[doc["image"]]]
    if not kept:
        raise UserError(f"{task}: none of {len(docs)} questions has its image in {folder}: put them there.")
    left_out = len(docs) - len(kept)
    if left_out:
        names = sorted(Path(path).name for path, exists in found.items() if not exists)
        listed = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        log.warning(
            "%s: %d of %d questions are left out, because %d images are missing in %s: %s",
            *(task, left_out, len(docs), len(names), folder, listed),
        )
    return [{**doc, "questions_without_image": left_out} for doc in kept]
