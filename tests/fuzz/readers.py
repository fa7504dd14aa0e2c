"""Every reader of the package on damaged files: what is read, what is refused, and what ends in a traceback.

    python tests/fuzz/readers.py --count 20000 --seed 0
    python tests/fuzz/readers.py --reader traces --count 500 --show

A refusal is a UserError that names the file. The table goes into docs/robustness.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from dualfocus_lmms import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.mutations import Mutation, spoil

SLOW = 60.0  # seconds: a reader that takes longer has hung
PACKAGES = ("dualfocus_lmms", "lmms_eval")
BAR_OFF = {"TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Reader:
    """One reader.

    file: the one that is damaged, below a folder. make: writes a folder that reads well. read: reads it;
    AssertionError where something is lost that was whole. bend: the mutation of its structure. weight: its
    part of the mutations. unnamed: whether the message names an argument instead of a file.
    """

    name: str
    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    bend: Mutation | None
    weight: float = 1.0
    unnamed: bool = False


@dataclass
class Result:
    """How often a reader read on, refused, raised; seconds in all. faults: the first of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def fuzz(reader: Reader, count: int, seed: int) -> Result:
    """`count` mutations of a reader's file, half of them of bytes, half of the structure."""
    result, random = Result(), Random(f"{seed}:{reader.name}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader.make(folder)
        path = folder / reader.file
        whole = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        reader.read(folder)  # it reads what is whole
        for number in range(count):
            _restore(folder, whole)
            mutate = reader.bend if reader.bend is not None and number % 2 else spoil
            damaged = mutate(whole[path], random)
            path.write_bytes(damaged)
            begin = time.monotonic()
            outcome, fault = _outcome(reader, folder, path)
            took = time.monotonic() - begin
            result.seconds += took
            if took > SLOW:
                outcome, fault = "hangs", f"{took:.0f} s"
            result.counts[outcome] += 1
            if fault is not None:
                result.faults.setdefault(fault, repr(damaged[:2000]))
    return result


def _outcome(reader: Reader, folder: Path, path: Path) -> tuple[str, str | None]:
    """(what happened, the fault if it is one)."""
    try:
        reader.read(folder)
    except UserError as error:
        place = (path.name, path.stem, f"{path.parent}", "The results of ")
        named = reader.unnamed or any(name in str(error) for name in place)
        return ("refused", None) if named else ("unnamed", f"unnamed: {str(error)[:300]}")
    except AssertionError as error:
        return "lost", f"lost: {error}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = [
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "fuzz" not in frame.filename
        ]
        return "traceback", f"{type(error).__name__}: {str(error)[:150]} at {' > '.join(where[-6:])}"
    return "read", None


def _restore(folder: Path, whole: Mapping[Path, bytes]) -> None:
    for file in [*folder.rglob("*")]:
        if file.is_file() and file not in whole:
            file.unlink()
    for file, content in whole.items():
        if not file.is_file() or file.read_bytes() != content:
            file.write_bytes(content)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bar, no warning: they are what a damaged file is meant to give."""
    from loguru import logger

    for package in PACKAGES:
        logger.disable(package)
    logging.disable(logging.CRITICAL)
    before = {name: os.environ.get(name) for name in BAR_OFF}
    os.environ.update(BAR_OFF)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        for package in PACKAGES:
            logger.enable(package)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def shares(readers: list[Reader], count: int) -> dict[str, int]:
    """How many of `count` mutations each reader gets."""
    total = sum(reader.weight for reader in readers)
    return {reader.name: max(2, round(count * reader.weight / total)) for reader in readers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="mutations in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", help="this one only")
    parser.add_argument("--show", action="store_true", help="the damaged files of faults")
    given = parser.parse_args()
    from fuzz.whole_files import readers as all_readers

    readers = [reader for reader in all_readers(Reader) if given.reader in (None, reader.name)]
    total: Counter[str] = Counter()
    columns = ("read", "refused", "unnamed", "lost", "hangs", "traceback")
    print(
        "| reader | " + " | ".join(columns) + " | seconds |\n| --- |" + " --: |" * (len(columns) + 1),
        flush=True,
    )
    for name, count in shares(readers, given.count).items():
        with quiet():
            result = fuzz(next(one for one in readers if one.name == name), count, given.seed)
        total += result.counts
        cells = " | ".join(str(result.counts[column]) for column in columns)
        print(f"| {name} | {cells} | {result.seconds:.0f} |", flush=True)
        for fault, damaged in result.faults.items():
            print(f"  {fault}", file=sys.stderr)
            if given.show:
                print(f"    {damaged}", file=sys.stderr)
    print(f"| all | {' | '.join(str(total[column]) for column in columns)} | |")
    sys.exit(1 if total.total() > total["read"] + total["refused"] else 0)


if __name__ == "__main__":
    main()
