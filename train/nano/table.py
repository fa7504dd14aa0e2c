"""Every question about many images as token ids, drawn by worker processes, so that a GPU can pick from them.

The questions and their shares are those of `questions`, the tokens those of `base.Branches`. Knows nothing of
the GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN
from dualfocus_lmms.models.tiny.nano import GRID, SIDE, nano_tokenizer
from dualfocus_lmms.scenes import make_scene
from dualfocus_lmms.train.nano.base import Branches, patches_of
from dualfocus_lmms.train.nano.images import MOST, draw_labelled, flip
from dualfocus_lmms.train.nano.questions import KINDS

VIEWS = 3  # of a scene: whole, in the mirror, a crop
QUESTIONS = 72  # at most about one image
LONGEST = 36  # tokens of a question with its reply
CHUNK = 32  # scenes a worker draws at once
KIND_NAMES = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class Table:
    """Images, VIEWS of each scene one after the other, and their questions; Q is QUESTIONS, T is LONGEST.

    pixels: (N, SIDE, SIDE, 3) uint8. things: (N, MOST, 8), as in `images.Labelled`. patches: (N, MOST, P)
    bool, those of each thing. ids: (N, Q, T) int16, question and reply. length, reply: (N, Q) uint8, tokens
    in all and of the reply. kind: (N, Q) uint8, an index into KIND_NAMES. share: (N, Q) float32, of its
    kind's questions; 0 where there is no question. about: (N, Q) int8, the thing, -1 without one.
    """

    pixels: np.ndarray
    things: np.ndarray
    patches: np.ndarray
    ids: np.ndarray
    length: np.ndarray
    reply: np.ndarray
    kind: np.ndarray
    share: np.ndarray
    about: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


def draw_table(split: str, numbers: Sequence[int]) -> Table:
    """The table of some scenes of a split."""
    drawn = draw_labelled([make_scene(split, 0, number) for number in numbers])
    views = []
    for index in range(0, 2 * len(numbers), 2):  # scenes and crops alternate
        whole, crop = ((drawn["pixels"][index + n], drawn["things"][index + n]) for n in range(2))
        views += [whole, flip(*whole), crop]
    table = _empty(len(views))
    for index, (pixels, rows) in enumerate(views):
        table.pixels[index], table.things[index] = pixels, rows
        _fill(table, index, [list(map(float, row)) for row in rows if row[0] >= 0])
    return table


def _empty(count: int) -> Table:
    shape = (count, QUESTIONS)
    return Table(
        pixels=np.zeros((count, SIDE, SIDE, 3), np.uint8),
        things=np.zeros((count, MOST, 8), np.float32),
        patches=np.zeros((count, MOST, GRID**2), bool),
        ids=np.zeros((*shape, LONGEST), np.int16),
        length=np.zeros(shape, np.uint8),
        reply=np.zeros(shape, np.uint8),
        kind=np.zeros(shape, np.uint8),
        share=np.zeros(shape, np.float32),
        about=np.full(shape, -1, np.int8),
    )


def _fill(table: Table, row: int, things: list[list[float]]) -> None:
    """Write an image's questions into its row of the table."""
    branches = branch_maker()
    for number, thing in enumerate(things):
        table.patches[row, number, patches_of(thing)] = True
    column = 0
    for kind, name in enumerate(KIND_NAMES):
        for share, pair in KINDS[name](things):
            branch, where = branches(pair), (row, column)
            table.ids[where][: len(branch.ids)] = branch.ids
            table.length[where], table.reply[where] = len(branch.ids), branch.reply
            table.kind[where], table.share[where] = kind, share
            for number, thing in enumerate(things):
                if thing is pair.about:
                    table.about[where] = number
            column += 1


@lru_cache(1)
def branch_maker() -> Branches:
    """One for each process."""
    tokenizer: Any = nano_tokenizer()
    return Branches(tokenizer, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def joined(tables: Sequence[Table]) -> Table:
    """One table of several."""
    return Table(
        *(np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(Table))
    )


@dataclass(frozen=True, slots=True)
class Task:
    """Scenes of a split, to draw at once."""

    split: str
    numbers: range


def tasks(split: str, scenes: int) -> list[Task]:
    """All scenes up to a number, CHUNK by CHUNK."""
    return [Task(split, range(start, min(start + CHUNK, scenes))) for start in range(0, scenes, CHUNK)]


class Drawing:
    """The tables of tasks, in order, drawn by worker processes; an iterator.

    Start it before anything runs on the GPU: the workers are copies of this process where that is possible.
    Each has its own pipe and waits until its table is read: no worker can block another from ending.
    """

    def __init__(self, todo: Sequence[Task], workers: int) -> None:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if "fork" in methods else None)
        self._left, self._next = len(todo), 0
        self._pipes, self._workers = [], []
        for worker in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, todo[worker::workers]), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._workers.append(process)

    def __enter__(self) -> Drawing:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._workers:
            process.kill()

    def __iter__(self) -> Iterator[Table]:
        return self

    def __next__(self) -> Table:
        if not self._left:
            raise StopIteration
        table: Table = self._pipes[self._next].recv()
        self._next = (self._next + 1) % len(self._pipes)
        self._left -= 1
        return table

    @property
    def ready(self) -> bool:
        """Whether `next` returns a table without waiting."""
        return self._left > 0 and self._pipes[self._next].poll()


def _work(pipe: Any, todo: Sequence[Task]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.nice(5)  # the process that feeds the GPU comes first
    try:
        for task in todo:
            pipe.send(draw_table(task.split, task.numbers))
    except (BrokenPipeError, KeyboardInterrupt):  # the other process has ended
        pass
