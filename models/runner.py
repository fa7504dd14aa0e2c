"""Many requests through the flow: batches, memory, traces, resuming. Knows no model and no host."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from loguru import logger
from tqdm import tqdm

from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.flow import Settings, answer_batch
from dualfocus_lmms.models import memory
from dualfocus_lmms.models.batches import LARGEST_SIZE, Asked, BatchSize, Reader, in_order
from dualfocus_lmms.models.requests import Request
from dualfocus_lmms.trace import Trace, TraceWriter, read_traces, trace_key
from dualfocus_lmms.types import Backend

_READERS = 4  # threads that open images


class Runner:
    """Answers requests batch by batch and writes each batch's traces before it begins the next.

    batch_size: questions answered together, or "auto" for as many as memory holds, `largest_batch` at most
    (see `BatchSize`). What was found out about the size holds for later runs of the same object.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        batch_size: int | str,
        writer: TraceWriter | None = None,
        finished: Sequence[Trace] = (),
        largest_batch: int = LARGEST_SIZE,
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.batch_size = BatchSize(batch_size, largest_batch)
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
        bar = tqdm(total=len(requests), initial=done, disable=not show_progress, desc="DualFocus")
        with bar as progress, ThreadPoolExecutor(_READERS) as pool:
            reader = Reader(in_order(waiting.values()), pool)
            while batch := reader.take(self.batch_size.now):
                while batch:
                    answered = self._answer(batch)
                    batch = batch[answered:]
                    progress.set_postfix(batch=self.batch_size.now, refresh=False)
                    progress.update(answered)
        return [self._traces[_name(request.key)] for request in requests]

    def _answer(self, batch: Sequence[Asked]) -> int:
        """Answer the beginning of a batch, as much as memory holds, and write the traces; how many."""
        part = batch[: self.batch_size.now]
        traces = self._traces_of(part)
        if traces is None:
            memory.release()
            self.batch_size.halve(len(part))
            logger.warning(
                f"Out of memory with {len(part)} questions at a time: {self.batch_size.now} from now on."
            )
            return 0
        self.batch_size.fitted(len(part))
        if self._writer is not None:
            self._writer.write(traces)
        self._traces.update((_name(trace.key), trace) for trace in traces)
        return len(part)

    def _traces_of(self, batch: Sequence[Asked]) -> list[Trace] | None:
        """One trace for each question; None where they need more memory than there is and can be divided."""
        limits = [request.limits for request, _ in batch]
        try:
            return answer_batch(self.backend, [question for _, question in batch], limits, self.settings)
        except GenerationError:
            raise
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            if len(batch) == 1:
                raise _too_large(batch[0], error) from error
        return None


def open_traces(folder: str, rank: int, resume: bool) -> tuple[TraceWriter, list[Trace], list[str]]:
    """(writer, finished traces, damaged lines) of a trace folder that was claimed for this run."""
    finished, damaged = read_traces(folder) if resume else ([], [])
    return TraceWriter(folder, rank), finished, damaged


def _name(key: dict[str, object]) -> str:
    return trace_key({name: key[name] for name in ("task", "split", "doc_id")})


def _too_large(asked: Asked, error: BaseException) -> GenerationError:
    request, question = asked
    return GenerationError(
        f"Out of memory with {_name(request.key)} alone, a picture of {question.image.width} x "
        f"{question.image.height} pixels: {error}\nGive dtype=bfloat16, or device_map=auto where there are "
        "several GPUs, or another device; see that no other program uses this one's memory. With trace=... "
        "and resume=True nothing that was answered is answered again."
    )


def _check_same_context(request: Request, trace: Trace) -> None:
    if trace.key.get("context") != request.key.get("context"):
        raise UserError(
            f"The prompt or the generation settings of {_name(request.key)} have changed since it was "
            "answered. To resume a run, give the same tasks and --gen_kwargs, else another trace folder."
        )
