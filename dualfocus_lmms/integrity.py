"""Fingerprints of questions and images, so that changed data cannot pass as a changed model.

A fingerprint has 16 hexadecimal digits. That of the questions is computed from a task's documents, that of
the images from traces, which hold a hash of every image: no image is read again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.json_text import STRICT, Kind
from dualfocus_lmms.trace import Trace, write_json
from dualfocus_lmms.trace_folder import find_traces

DATA_FILE = "data.json"
FINGERPRINT = "questions_fingerprint"  # the column, and the entry in the results
# Columns with the location of the data or notes about them; they are not part of a question.
_BESIDE_THE_QUESTION = {
    *("image", "images", "image_id", "hub", "questions_without_image"),
    *("annotated_box", "annotated_boxes"),  # which only one of a benchmark's sources has
    FINGERPRINT,
}
_DOCS_AT_ONCE = 1000
_MEDIA = {"Image", "Audio", "Video"}

_About = tuple[str, int, Any, str]  # "task/split", doc_id, context, hash of the image

log = logging.getLogger(__name__)


def questions_fingerprint(docs: Any) -> str:
    """The fingerprint of a task's questions: ids, texts, options, answers, and their order.

    docs: a data set of the library `datasets`, or mappings. Every column counts except images and audio,
    the path of an image (`image`, which differs between machines), and what our tasks note about them.
    """
    features = getattr(docs, "features", {})
    media = [name for name, kind in features.items() if _MEDIA & {_kind(kind), _kind(_item(kind))}]
    rows = docs.remove_columns(media) if media else docs
    return fingerprint(
        {name: value for name, value in row.items() if name not in _BESIDE_THE_QUESTION}
        for row in each_doc(rows)
    )


def each_doc(docs: Any) -> Iterator[dict[str, Any]]:
    """The documents as `docs` itself gives them; those of a data set in a fifth of the time."""
    if not getattr(docs, "column_names", None):
        yield from docs
        return
    for some in docs.iter(_DOCS_AT_ONCE):
        yield from (dict(zip(some, values, strict=True)) for values in zip(*some.values(), strict=True))


def _kind(value: Any) -> str:
    return type(value).__name__


def _item(feature: Any) -> Any:
    """The type of a list feature's items; None when it is not a list."""
    return getattr(feature, "feature", None)


def fingerprint(rows: Iterable[Any]) -> str:
    """The fingerprint of JSON values, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:  # a value that JSON cannot hold counts by its type alone
        digest.update(json.dumps(row, sort_keys=True, default=_kind).encode() + b"\n")
    return digest.hexdigest()


def with_fingerprint(docs: Any) -> Any:
    """A data set with its fingerprint in the column FINGERPRINT of every document."""
    return docs.add_column(FINGERPRINT, [questions_fingerprint(docs)] * len(docs))


def known_fingerprint(docs: Any) -> str:
    """`questions_fingerprint`, read from the column of `with_fingerprint` where it exists."""
    if FINGERPRINT in getattr(docs, "column_names", ()) and len(docs):
        return docs[FINGERPRINT][0]
    return questions_fingerprint(docs)


def describe_data(traces: Iterable[Trace]) -> dict[str, dict[str, Any]]:
    """The number of samples of each task and two fingerprints, by "task/split".

    prompts: of every sample's prompt and generation limits. images: of every sample's image, as the model
    received it. Both follow doc_id, so that neither the batches nor the number of processes matters.
    """
    return _described(map(_about, traces))


def _about(trace: Trace) -> _About:
    name = sys.intern(f"{trace.key['task']}/{trace.key['split']}")
    return name, trace.key["doc_id"], trace.key.get("context"), sys.intern(trace.image_hash)


def _described(every: Iterable[_About]) -> dict[str, dict[str, Any]]:
    samples: dict[str, list[_About]] = {}
    for about in every:
        samples.setdefault(about[0], []).append(about)
    described = {}
    for name, some in sorted(samples.items()):
        some.sort(key=itemgetter(1))
        described[name] = {
            "samples": len(some),
            "prompts": fingerprint([doc_id, context] for _, doc_id, context, _ in some),
            "images": fingerprint([doc_id, image] for _, doc_id, _, image in some),
        }
    return described


def write_data(folder: str | Path, documents: Mapping[str, Any]) -> None:
    """Write `data.json` into a trace folder: `describe_data` of its traces and their tasks' fingerprints.

    documents: by "task/split", all documents of a task, including those that --limit left out. Entries
    of tasks that are not run again stay.
    """
    data = _known(Path(folder))
    every: list[_About] = []
    traces, _ = find_traces(folder, lambda trace: every.append(_about(trace)))
    for name, described in _described(every[row] for row in traces.rows).items():
        data.setdefault(name, {}).update(described)
    for name, docs in documents.items():
        about = {"questions": len(docs), FINGERPRINT: known_fingerprint(docs)}
        data.setdefault(name, {}).update(about)
    path = Path(folder) / DATA_FILE
    try:
        write_json(path, data)
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error}. All answers are in the folder: make room, then give resume=True."
        ) from error


def read_data(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What `write_data` wrote, by "task/split"; empty where the run has not ended. UserError for a damaged
    one."""
    path = Path(folder) / DATA_FILE
    if not path.is_file():
        return {}
    advice = "Continue the run with resume=True, or delete it."
    entries = _DATA.read(path, advice)
    for name, entry in entries.items():
        if (entry.questions or 0) < 0 or (entry.samples or 0) < 0:
            raise UserError(f"{path} cannot be read ({name}: a number below 0). {advice}")
    return {
        name: {key: value for key, value in asdict(entry).items() if value is not None}
        for name, entry in entries.items()
    }


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """`read_data`. A damaged file is put aside with a warning: a run that ends must not fail for it."""
    try:
        return read_data(folder)
    except UserError as error:
        aside = folder / f"{DATA_FILE}.damaged"
        with suppress(OSError):
            os.replace(folder / DATA_FILE, aside)
        log.warning(
            "%s It is written again, but for questions of tasks that are not in this run; the old one is %s.",
            *(error, aside.name),
        )
        return {}


@dataclass(frozen=True)
class _Described:
    """The entry of a task and its split."""

    samples: int | None = None
    prompts: str | None = None
    images: str | None = None
    questions: int | None = None
    questions_fingerprint: str | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


_DATA: Kind[dict[str, _Described]] = Kind(dict[str, _Described])
