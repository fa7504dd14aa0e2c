"""Many requests through the flow: batches, reading ahead, traces, resuming. Knows no model and no host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tqdm import tqdm

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.flow import Settings, answer_batch
from dualfocus_lmms.models.requests import Request
from dualfocus_lmms.trace import Trace, TraceWriter, read_traces, trace_key
from dualfocus_lmms.types import Backend, Question

_READERS = 4  # threads that open images


class Runner:
    """Answers requests batch by batch and writes each batch's traces before it begins the next."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        batch_size: int,
        writer: TraceWriter | None = None,
        finished: Sequence[Trace] = (),
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.batch_size = batch_size
        self._writer = writer
        self._traces = {_name(trace.key): trace for trace in finished}

    def run(self, requests: Sequence[Request], show_progress: bool = False) -> list[Trace]:
        """One trace for each request, in order. A sample that is finished, or asked for twice, runs once."""
        waiting: dict[str, Request] = {}
        for request in requests:
            name = _name(request.key)
            if name in self._traces:
                _check_same_context(request, self._traces[name])
            else:
                waiting.setdefault(name, request)
        done = len(requests) - len(waiting)
        with tqdm(total=len(requests), initial=done, disable=not show_progress, desc="DualFocus") as progress:
            for batch, questions in self._read(list(waiting.values())):
                limits = [request.limits for request in batch]
                traces = answer_batch(self.backend, questions, limits, self.settings)
                if self._writer is not None:
                    self._writer.write(traces)
                self._traces.update((_name(trace.key), trace) for trace in traces)
                progress.update(len(batch))
                del questions, traces  # their pictures need not outlive the batch
        return [self._traces[_name(request.key)] for request in requests]

    def _read(self, requests: Sequence[Request]) -> Iterator[tuple[list[Request], list[Question]]]:
        """Batches of requests with their questions, read on threads one batch ahead of the model."""
        batches = [
            list(requests[start : start + self.batch_size])
            for start in range(0, len(requests), self.batch_size)
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            ahead: deque[list[Future[Question]]] = deque()
            submitted = 0
            for batch in batches:
                while submitted < len(batches) and len(ahead) < 2:
                    ahead.append([pool.submit(request.question) for request in batches[submitted]])
                    submitted += 1
                yield batch, [future.result() for future in ahead.popleft()]


def open_traces(folder: str, rank: int, resume: bool) -> tuple[TraceWriter, list[Trace], list[str]]:
    """(writer, finished traces, damaged lines) of a trace folder that was claimed for this run."""
    finished, damaged = read_traces(folder) if resume else ([], [])
    return TraceWriter(folder, rank), finished, damaged


def _name(key: dict[str, object]) -> str:
    return trace_key({name: key[name] for name in ("task", "split", "doc_id")})


def _check_same_context(request: Request, trace: Trace) -> None:
    if trace.key.get("context") != request.key.get("context"):
        raise UserError(
            f"The prompt or the generation settings of {_name(request.key)} have changed since it was "
            "answered. To resume a run, give the same tasks and --gen_kwargs, else another trace folder."
        )
