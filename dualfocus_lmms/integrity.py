"""What was asked, as fingerprints: so that changed data cannot pass as a changed model.

A fingerprint has 16 hexadecimal digits. That of the questions is computed from a task's documents, that of
the pictures from traces, which hold a hash of every picture anyhow: no picture is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.trace import Trace, read_traces, write_whole

DATA_FILE = "data.json"
FINGERPRINT = "questions_fingerprint"  # the column, and the entry in the results
# Columns that tell where the data lie or what is known about them; they are no part of a question.
_BESIDE_THE_QUESTION = {"image", "images", "image_id", "hub", "questions_without_image", FINGERPRINT}
_MEDIA = {"Image", "Audio", "Video"}


def questions_fingerprint(docs: Any) -> str:
    """Of what a task asks: ids, texts, options, answers, and their order.

    docs: a data set of the library `datasets`, or mappings. Every column counts except pictures and sound,
    where a picture lies (`image`, a path, differs from place to place), and what our tasks note about them.
    """
    features = getattr(docs, "features", {})
    media = [name for name, kind in features.items() if _MEDIA & {_kind(kind), _kind(_item(kind))}]
    rows = docs.remove_columns(media) if media else docs
    return fingerprint(
        {name: value for name, value in row.items() if name not in _BESIDE_THE_QUESTION} for row in rows
    )


def _kind(value: Any) -> str:
    return type(value).__name__


def _item(feature: Any) -> Any:
    """What a feature is a list of; None when it is no list."""
    return getattr(feature, "feature", None)


def fingerprint(rows: Iterable[Any]) -> str:
    """Of values of JSON, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:  # a value that JSON does not know counts by its type alone
        digest.update(json.dumps(row, sort_keys=True, default=_kind).encode() + b"\n")
    return digest.hexdigest()


def with_fingerprint(docs: Any) -> Any:
    """A data set with its fingerprint in the column FINGERPRINT of every document."""
    return docs.add_column(FINGERPRINT, [questions_fingerprint(docs)] * len(docs))


def _known_fingerprint(docs: Any) -> str:
    """`questions_fingerprint`, out of the column of `with_fingerprint` where there is one."""
    if FINGERPRINT in getattr(docs, "column_names", ()) and len(docs):
        return docs[FINGERPRINT][0]
    return questions_fingerprint(docs)


def describe_data(traces: Iterable[Trace]) -> dict[str, dict[str, Any]]:
    """What the samples of each task were, by "task/split": their number and two fingerprints.

    prompts: of every sample's prompt and generation limits. images: of every sample's picture, as the model
    saw it. Both follow doc_id, so that neither the batches nor the number of processes matters.
    """
    samples: dict[str, list[Trace]] = {}
    for trace in traces:
        samples.setdefault(f"{trace.key['task']}/{trace.key['split']}", []).append(trace)
    described = {}
    for name, some in sorted(samples.items()):
        some.sort(key=lambda trace: trace.key["doc_id"])
        described[name] = {
            "samples": len(some),
            "prompts": fingerprint([trace.key["doc_id"], trace.key.get("context")] for trace in some),
            "images": fingerprint([trace.key["doc_id"], trace.image_hash] for trace in some),
        }
    return described


def write_data(folder: str | Path, documents: Mapping[str, Any]) -> None:
    """Write `data.json` into a trace folder: `describe_data` of its traces and what their tasks ask.

    documents: by "task/split", all documents of a task, the unasked ones of a run with --limit too. What the
    file said before of tasks that are not asked again stays.
    """
    data = read_data(folder)
    for name, described in describe_data(read_traces(folder)[0]).items():
        data.setdefault(name, {}).update(described)
    for name, docs in documents.items():
        about = {"questions": len(docs), FINGERPRINT: _known_fingerprint(docs)}
        data.setdefault(name, {}).update(about)
    path = Path(folder) / DATA_FILE
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error}. All answers are in the folder: make room, then give resume=True."
        ) from error


def read_data(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What `write_data` wrote, by "task/split"; empty where the run has not ended."""
    path = Path(folder) / DATA_FILE
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
