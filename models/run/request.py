"""One question of a run, before it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dualfocus_lmms.trace import trace_key
from dualfocus_lmms.types import Question, StopCriteria


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One request of the host. Reading the question opens the image, so that is put off until needed.

    key: task, split, doc_id, and the fingerprint of prompt and limits, by which a resumed run notices that a
    task has changed. question: opens the image and builds the question. length: characters of the prompt.
    image_name: a name or path that requests about one image share, None where the documents have none.
    """

    key: dict[str, Any]
    limits: StopCriteria
    question: Callable[[], Question]
    length: int = 0
    image_name: str | None = None

    @property
    def name(self) -> str:
        """The key of its trace, see `name_of`."""
        return name_of(self.key)


def name_of(key: dict[str, Any]) -> str:
    """By what a request and its trace are the same question: task, split and doc_id, as one text."""
    return trace_key({name: key[name] for name in ("task", "split", "doc_id")})
