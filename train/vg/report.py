"""What a data build kept and dropped: counts that add up over processes, and pages to read by eye."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.json_text import STRICT, Kind

EXAMPLES = 3  # of each reason
PAGE = 20  # kept and dropped questions on the page to read by eye
MOST_PROBLEMS = 100  # named; all are counted
_BINS = 10


@dataclass(frozen=True, slots=True)
class Line:
    """One question in a report. note: the objects of a kept one, the cause of a dropped one."""

    id: str
    image: int
    question: str
    answer: str
    verdict: str
    note: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass
class Report:
    """Counts of a build, and a seeded choice of its questions that does not depend on how it was divided.

    kept, dropped: number of questions by how they were grounded and by reason. areas: kept questions by the
    share of the image their box covers, in ten equal bins. examples: of each verdict. page: of all kept and
    all dropped. problems: files and records that could not be used, the first ones by name.
    """

    seed: int = 0
    images: int = 0
    images_kept: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    areas: list[int] = field(default_factory=lambda: [0] * _BINS)
    examples: dict[str, list[Line]] = field(default_factory=dict)
    page: dict[str, list[Line]] = field(default_factory=lambda: {"kept": [], "dropped": []})
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    @property
    def questions(self) -> int:
        """All questions, kept or dropped."""
        return self.kept.total() + self.dropped.total()

    def add(self, line: Line) -> None:
        """Count one question."""
        if line.box is None:
            self.dropped[line.verdict] += 1
        else:
            self.kept[line.verdict] += 1
            area = (line.box[2] - line.box[0]) * (line.box[3] - line.box[1])
            self.areas[min(int(area * _BINS), _BINS - 1)] += 1
        self.examples[line.verdict] = self._choose([*self.examples.get(line.verdict, ()), line], EXAMPLES)
        side = "dropped" if line.box is None else "kept"
        self.page[side] = self._choose([*self.page[side], line], PAGE)

    def problem(self, text: str) -> None:
        """Count and list something that could not be used."""
        self.problem_count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(text)

    def merge(self, other: Report) -> None:
        """Add the counts of another part of the same build."""
        self.images += other.images
        self.images_kept += other.images_kept
        self.kept += other.kept
        self.dropped += other.dropped
        self.areas = [own + others for own, others in zip(self.areas, other.areas, strict=True)]
        for verdict, lines in other.examples.items():
            self.examples[verdict] = self._choose([*self.examples.get(verdict, ()), *lines], EXAMPLES)
        for side, lines in other.page.items():
            self.page[side] = self._choose([*self.page[side], *lines], PAGE)
        self.problem_count += other.problem_count
        self.problems = [*self.problems, *other.problems][:MOST_PROBLEMS]

    def _choose(self, lines: Iterable[Line], number: int) -> list[Line]:
        """The `number` lines that come first in an order fixed by the seed and the questions' ids."""

        def rank(line: Line) -> bytes:
            return hashlib.blake2b(f"{self.seed}:{line.id}".encode(), digest_size=8).digest()

        return heapq.nsmallest(number, lines, key=rank)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self) | {"kept": dict(self.kept), "dropped": dict(self.dropped)}

    @classmethod
    def parse(cls, text: bytes) -> Report:
        """The report of the values that `to_dict` returned, from JSON. ValueError where it is damaged."""
        report = _REPORT.parse(text)
        json.dumps(report.to_dict(), ensure_ascii=False).encode()  # half a character is a ValueError
        if len(report.areas) != _BINS or set(report.page) != {"kept", "dropped"}:
            raise ValueError("areas or page: not of this form")
        return report

    def write(self, folder: Path) -> None:
        """report.json, report.md and page.md, each complete or not written."""
        atomic_write(folder / "report.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        atomic_write(folder / "report.md", self.markdown())
        atomic_write(folder / "page.md", self.page_markdown())

    def markdown(self) -> str:
        """The counts, with examples."""
        kept, total = self.kept.total(), self.questions
        lines = [
            "# Data report",
            "",
            f"{kept:,} of {total:,} questions kept ({_percent(kept, total)}), "
            f"on {self.images_kept:,} of {self.images:,} images.",
            "",
            "| kept, grounded by | questions | of all |",
            "| --- | --: | --: |",
            *(f"| {how} | {n:,} | {_percent(n, total)} |" for how, n in self.kept.most_common()),
            "",
            "| dropped, because | questions | of all |",
            "| --- | --: | --: |",
            *(f"| {reason} | {n:,} | {_percent(n, total)} |" for reason, n in self.dropped.most_common()),
            "",
            "| box, share of the image | kept questions |",
            "| --- | --: |",
            *(f"| {i / _BINS:.1f} to {(i + 1) / _BINS:.1f} | {n:,} |" for i, n in enumerate(self.areas)),
            "",
            "## Examples",
            "",
        ]
        for verdict in [*dict(self.kept.most_common()), *dict(self.dropped.most_common())]:
            lines += [f"### {verdict}", "", *map(_bullet, self.examples.get(verdict, ())), ""]
        if self.problem_count:
            lines += [f"## {self.problem_count:,} problems", "", *(f"- {text}" for text in self.problems), ""]
        return "\n".join(lines)

    def page_markdown(self) -> str:
        """Kept and dropped questions to read by eye, chosen by the seed."""
        lines = ["# To read by eye", ""]
        for side, chosen in self.page.items():
            lines += [f"## {len(chosen)} {side}", "", *map(_bullet, chosen), ""]
        return "\n".join(lines)


_REPORT: Kind[Report] = Kind(Report)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _bullet(line: Line) -> str:
    box = "" if line.box is None else " `[" + ", ".join(f"{value:.2f}" for value in line.box) + "]`"
    note = f" ({line.note})" if line.note else ""
    text = f"{line.question or '-'} **{line.answer or '-'}**"
    return f"- image {line.image}, {line.id}: {text} {line.verdict}{note}{box}"
