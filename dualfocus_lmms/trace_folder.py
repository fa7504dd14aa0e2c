"""The traces of a folder, however many: found once, and read from its files whenever they are asked for."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.json_text import LONGEST_LINE, placed_lines
from dualfocus_lmms.trace import Trace, sample_of, trace_key

_FIELDS = {"file": np.int32, "start": np.int64, "group": np.int32, "doc_id": np.int64, "row": np.int64}
_PLACE = np.dtype([("key", "V16"), *_FIELDS.items()])


@dataclass(frozen=True, eq=False)
class Traces(Sequence[Trace]):
    """Traces on the disk: 48 bytes of memory each. A trace is read, and checked, each time it is taken.

    files: those of the folder. groups: the tasks and splits that there are. places: (n,) where each trace is,
    which group it belongs to, its doc_id, a hash of its key, and its row among all that were read.
    change: what is made of each trace when it is taken; None leaves it as it is.
    """

    files: tuple[Path, ...]
    groups: tuple[tuple[str, str], ...]
    places: NDArray[np.void]
    change: Callable[[Trace], Trace] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> Traces: ...
    def __getitem__(self, index: int | slice) -> Trace | Traces:
        if isinstance(index, slice):
            return self.at(index)
        return next(iter(self.at([index])))

    def __iter__(self) -> Iterator[Trace]:
        with _Files(self.files, self.change) as files:
            for file, start in zip(self.places["file"].tolist(), self.places["start"].tolist(), strict=True):
                yield files.read(file, start)

    def at(self, which: Any) -> Traces:
        """Those at some places, in a slice, or where a mask is true."""
        return replace(self, places=self.places[which])

    @property
    def doc_ids(self) -> NDArray[np.int64]:
        """(n,)."""
        return self.places["doc_id"]

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,): how many traces `find_traces` had read, and given to `each`, before this one."""
        return self.places["row"]


class TracesBySample:
    """Traces by task, split and doc_id; of several of a sample the last. The files stay open."""

    def __init__(self, traces: Traces) -> None:
        self._files = _Files(traces.files, traces.change)
        self._sorted: dict[tuple[str, str], NDArray[np.void]] = {}
        for number, group in enumerate(traces.groups):
            some = traces.places[traces.places["group"] == number]
            some = some[np.argsort(some["doc_id"], kind="stable")]
            is_last = np.append(some["doc_id"][1:] != some["doc_id"][:-1], [True] * bool(len(some)))
            self._sorted[group] = some[is_last.astype(bool)]

    @property
    def groups(self) -> set[tuple[str, str]]:
        """Tasks and their splits, those that have a trace."""
        return {group for group, some in self._sorted.items() if len(some)}

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return self._place(key) is not None

    def __getitem__(self, key: Mapping[str, Any]) -> Trace:
        place = self._place(key)
        if place is None:
            raise KeyError(key)
        return self._files.read(int(place["file"]), int(place["start"]))

    def is_same(self, key: Mapping[str, Any]) -> bool:
        """Whether the trace of this sample has the very same key, without a look into its file."""
        place = self._place(key)
        return place is not None and place["key"].tobytes() == hashed(key)

    def _place(self, key: Mapping[str, Any]) -> np.void | None:
        some = self._sorted.get((key["task"], key["split"]))
        if some is None:
            return None
        at = int(np.searchsorted(some["doc_id"], key["doc_id"]))
        return some[at] if at < len(some) and some["doc_id"][at] == key["doc_id"] else None


class ByKey(Protocol):
    """Traces by their keys: `TracesBySample`, or those of a run that is at work."""

    def __getitem__(self, key: Mapping[str, Any]) -> Trace: ...


class InOrder(Sequence[Trace]):
    """The traces of some keys, in their order, each read when it is taken."""

    def __init__(self, by_key: ByKey, keys: Sequence[Mapping[str, Any]]) -> None:
        self._by_key, self._keys = by_key, keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> InOrder: ...
    def __getitem__(self, index: int | slice) -> Trace | InOrder:
        if isinstance(index, slice):
            return InOrder(self._by_key, self._keys[index])
        return self._by_key[self._keys[index]]

    def __iter__(self) -> Iterator[Trace]:
        return (self._by_key[key] for key in self._keys)


class _Files:
    """Trace files, each opened when it is first read. change: see `Traces`."""

    def __init__(self, paths: Sequence[Path], change: Callable[[Trace], Trace] | None) -> None:
        self._paths, self._change = paths, change
        self._opened: dict[int, BinaryIO] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *failure: object) -> None:
        for file in self._opened.values():
            file.close()

    def read(self, file: int, start: int) -> Trace:
        path = self._paths[file]
        try:
            if file not in self._opened:
                self._opened[file] = path.open("rb")
            self._opened[file].seek(start)
            trace = Trace.from_json(self._opened[file].readline(LONGEST_LINE))
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValueError as error:
            raise UserError(f"{path} was changed while it was read: give the folder again.") from error
        return trace if self._change is None else self._change(trace)


def no_traces() -> Traces:
    """None at all."""
    return Traces((), (), np.empty(0, _PLACE))


def find_traces(
    folder: str | Path, each: Callable[[Trace], object] | None = None
) -> tuple[Traces, list[str]]:
    """(traces, damaged) of a folder, in file order, the last of equal keys kept.

    each: is given every trace that is read, those with equal keys too, so that what a command counts need not
    be read again; see `Traces.rows`.

    damaged names every line that could not be read ("rank0.jsonl:17: ..."), as a kill leaves one behind; the
    samples they belonged to are missing. UserError when the folder does not exist, or no run wrote it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"No trace folder at {folder}: give the folder that a run wrote with trace=<folder>.")
    files = tuple(sorted(folder.glob("rank*.jsonl")))
    if not files and not (folder / "run.json").is_file():
        raise UserError(
            f"{folder} holds no traces (rank0.jsonl): give the folder that a run wrote with trace=<folder>."
        )
    groups: dict[tuple[str, str], int] = {}
    keys, columns = bytearray(), [array(np.dtype(kind).char) for kind in _FIELDS.values()]
    damaged: list[str] = []
    for file, path in enumerate(files):
        try:
            for number, start, line in placed_lines(path):
                try:
                    trace = _read(line)
                    task, split, doc_id = sample_of(trace)
                    if each is not None:
                        each(trace)
                except (ValueError, OverflowError) as error:
                    damaged.append(f"{path.name}:{number}: {error}")
                    continue
                group = groups.setdefault((task, split), len(groups))
                row = len(columns[0])
                keys += hashed(trace.key)
                for column, value in zip(columns, (file, start, group, doc_id, row), strict=True):
                    column.append(value)
        except OSError as error:
            raise _unreadable(path, error) from error
    places = np.empty(len(columns[0]), _PLACE)
    if len(places):
        places["key"] = np.frombuffer(keys, places.dtype["key"])
        for (name, kind), column in zip(_FIELDS.items(), columns, strict=True):
            places[name] = np.frombuffer(memoryview(column), kind)
    return Traces(files, tuple(groups), _last_of_equal(places)), damaged


def read_traces(folder: str | Path) -> tuple[list[Trace], list[str]]:
    """(traces, damaged), see `find_traces`, with all traces in memory: some kilobytes each."""
    found, damaged = find_traces(folder)
    return list(found), damaged


def hashed(key: Mapping[str, Any]) -> bytes:
    """16 bytes, the same for equal keys alone."""
    return hashlib.blake2b(trace_key(key).encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _last_of_equal(places: NDArray[np.void]) -> NDArray[np.void]:
    """Each key once, in the order in which keys first come, at the place where it comes last."""
    halves = np.ascontiguousarray(places["key"]).view(np.uint64).reshape(-1, 2)
    order = np.lexsort(halves.T)  # stable
    is_first = np.ones(len(places), dtype=bool)
    is_first[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    if is_first.all():
        return places
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(places)) - 1
    turn = np.argsort(order[starts], kind="stable")
    return places[order[ends][turn]]


def _read(line: bytes | None) -> Trace:
    if line is None:
        raise ValueError(f"it is longer than {LONGEST_LINE:,} bytes")
    return Trace.from_json(line)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot read the traces in {path}: {error}. Give a readable folder.")
