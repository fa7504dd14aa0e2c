"""The traces of a run by sample: on the disk as far as they are written there, else in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualfocus_lmms.models.run.request import name_of
from dualfocus_lmms.trace import Trace, TraceWriter
from dualfocus_lmms.trace_folder import Traces, TracesBySample, no_traces

Key = Mapping[str, Any]


class Answered:
    """Traces of samples that are finished; with a writer, each is written when it comes.

    finished: those that were there before.
    """

    def __init__(self, finished: Sequence[Trace] = (), writer: TraceWriter | None = None) -> None:
        on_disk = isinstance(finished, Traces)
        self._before = TracesBySample(finished if isinstance(finished, Traces) else no_traces())
        self._held = {} if on_disk else {name_of(trace.key): trace for trace in finished}
        self._written: dict[str, int] = {}
        self._writer = writer

    def __contains__(self, key: Key) -> bool:
        name = name_of(key)
        return name in self._written or name in self._held or key in self._before

    def __getitem__(self, key: Key) -> Trace:
        name = name_of(key)
        if self._writer is not None and name in self._written:
            return self._writer.read(self._written[name])
        return self._held[name] if name in self._held else self._before[key]

    def add(self, trace: Trace) -> None:
        name = name_of(trace.key)
        if self._writer is None:
            self._held[name] = trace
        else:
            (self._written[name],) = self._writer.write([trace])

    def is_same(self, key: Key) -> bool:
        """Whether a finished sample was asked in the same context: prompt and generation settings."""
        return self._before.is_same(key) or self[key].key.get("context") == key.get("context")
