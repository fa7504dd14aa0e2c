"""Many requests through the flow: batches, memory, traces, resuming. Knows no model and no host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from loguru import logger
from tqdm import tqdm

from dualfocus_lmms.errors import GenerationError, Interrupted, UserError
from dualfocus_lmms.flow import answer_batch, run_macro, run_zoom
from dualfocus_lmms.models.run import memory
from dualfocus_lmms.models.run.answered import Answered
from dualfocus_lmms.models.run.batches import LARGEST_SIZE, BatchItem, BatchSize, Reader, in_order
from dualfocus_lmms.models.run.request import Request, name_of
from dualfocus_lmms.sample import Sample
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace, TraceWriter
from dualfocus_lmms.trace_folder import InOrder, find_traces
from dualfocus_lmms.types import Backend, Question, StopCriteria

_READERS = 4  # threads that open images

# Yields the traces in any order. Before it raises, it may yield those of the questions it has answered.
Answerer = Callable[[Backend, Sequence[Question], Sequence[StopCriteria], Settings], Iterable[Trace]]


class Runner:
    """Answers requests batch by batch and writes each trace as soon as there is one.

    batch_size: questions answered together, or "auto" for as many as memory holds, `largest_batch` at most
    (see `BatchSize`). The size that was found is kept for later runs of the same object.
    answerer: answers a batch. None: `answer_batch`; where a question may skip the zoom stages, macro and zoom
    are run separately, and questions that do not skip wait until they fill a batch.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        batch_size: int | str,
        writer: TraceWriter | None = None,
        finished: Sequence[Trace] = (),
        largest_batch: int = LARGEST_SIZE,
        answerer: Answerer | None = None,
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.batch_size = BatchSize(batch_size, largest_batch)
        self._answerer = answerer or (self._run_macro if settings.may_skip else answer_batch)
        self._waiting: list[Sample] = []
        self._writer = writer
        self._answered = Answered(finished, writer)

    def run(self, requests: Sequence[Request], show_progress: bool = False) -> Sequence[Trace]:
        """One trace for each request, in order. A sample that is finished, or requested twice, runs once."""
        unanswered: dict[str, Request] = {}
        for request in requests:
            if request.key not in self._answered:
                unanswered.setdefault(request.name, request)
            elif not self._answered.is_same(request.key):
                raise _other_context(request)
        done = len(requests) - len(unanswered)
        bar = tqdm(total=len(requests), initial=done, disable=not show_progress, desc="DualFocus")
        with bar as progress, ThreadPoolExecutor(_READERS) as pool:
            reader = Reader(in_order(unanswered.values()), pool)
            try:
                self._run_batches(reader, progress)
                self._run_waiting(1, progress)
            except UserError:  # an image cannot be read, say: the waiting questions are answered first
                self._run_waiting(1, progress)
                raise
            except KeyboardInterrupt as error:
                raise Interrupted(self._interrupted(requests)) from error
        return InOrder(self._answered, [request.key for request in requests])

    def _interrupted(self, requests: Sequence[Request]) -> str:
        """What is finished, and how to resume."""
        finished = sum(request.key in self._answered for request in requests)
        kept = "They are lost: with trace=<folder> they would be kept."
        if self._writer is not None:
            kept = f"They are in {self._writer.folder}: run the same command with resume=True to resume."
        return f"{finished} of {len(requests)} questions are answered. {kept}"

    def _run_batches(self, reader: Reader, progress: tqdm) -> None:
        while batch := self._next(reader, progress):
            while batch:
                batch = self._answer(batch, progress)
                progress.set_postfix(batch=self.batch_size.now, refresh=False)
            self._run_waiting(self.batch_size.now, progress)

    def _next(self, reader: Reader, progress: tqdm) -> Sequence[BatchItem]:
        """The next batch; empty at the end."""
        try:
            return reader.take(self.batch_size.now)
        except GenerationError:  # no memory for one more image
            if not self._waiting:
                raise
        self._run_waiting(1, progress)  # their images are open too
        return reader.take(self.batch_size.now)

    def _answer(self, batch: Sequence[BatchItem], progress: tqdm) -> Sequence[BatchItem]:
        """Answer the beginning of a batch, as much as memory holds, and return the rest."""
        part = batch[: self.batch_size.now]
        questions = [question for _, question in part]
        limits = [request.limits for request, _ in part]
        work = partial(self._answerer, self.backend, questions, limits, self.settings)
        if self._fits(questions, work, progress):
            self.batch_size.fitted(len(part))
            return batch[len(part) :]
        return [item for item in batch if item[0].key not in self._answered]

    def _run_macro(
        self,
        backend: Backend,
        questions: Sequence[Question],
        limits: Sequence[StopCriteria],
        settings: Settings,
    ) -> list[Trace]:
        """The traces of the questions that skip the zoom stages; the others wait for them."""
        samples = run_macro(backend, questions, limits, settings)
        self._waiting += [sample for sample in samples if not sample.done]
        self._forget_others()
        return run_zoom(backend, [sample for sample in samples if sample.done], settings)

    def _run_waiting(self, least: int, progress: tqdm) -> None:
        """The zoom stages of waiting questions, as many at a time as memory holds, while `least` are left."""
        while len(self._waiting) >= least:
            part = self._waiting[: self.batch_size.now]
            if self._fits([sample.question for sample in part], partial(self._run_zoom, part), progress):
                del self._waiting[: len(part)]
                self._forget_others()

    def _run_zoom(self, part: Sequence[Sample]) -> list[Trace]:
        return run_zoom(self.backend, part, self.settings)

    def _forget_others(self) -> None:
        self.backend.forget(but=[sample.question.image for sample in self._waiting])

    def _fits(
        self, questions: Sequence[Question], work: Callable[[], Iterable[Trace]], progress: tqdm
    ) -> bool:
        """Keep each trace as it comes. False where memory runs out with several questions: from then on fewer
        are answered at a time."""
        try:
            for trace in work():
                self._answered.add(trace)
                progress.update()
            return True
        except GenerationError:
            raise
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            if len(questions) == 1:
                raise _too_large(questions[0], error) from error
        self.backend.forget()
        memory.release()
        self.batch_size.halve(len(questions))
        logger.warning(
            f"Out of memory with {len(questions)} questions at a time: {self.batch_size.now} from now on."
        )
        return False


def open_traces(folder: str, rank: int, resume: bool) -> tuple[TraceWriter, Sequence[Trace], list[str]]:
    """(writer, finished traces, damaged lines) of a trace folder that was claimed for this run."""
    finished, damaged = find_traces(folder) if resume else ((), [])
    return TraceWriter(folder, rank), finished, damaged


def _too_large(question: Question, error: BaseException) -> GenerationError:
    return GenerationError(
        f"Out of memory with {name_of(question.key)} alone, an image of {question.image.width} x "
        f"{question.image.height} pixels: {error}\nGive dtype=bfloat16, or device_map=auto where there are "
        "several GPUs, or another device; make sure that no other program uses its memory. With trace=... "
        "and resume=True nothing that was answered is answered again."
    )


def _other_context(request: Request) -> UserError:
    return UserError(
        f"The prompt or the generation settings of {request.name} have changed since it was answered. To "
        "resume a run, give the same tasks and --gen_kwargs, else another trace folder."
    )
