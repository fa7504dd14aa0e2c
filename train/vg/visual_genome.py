"""Build DualFocus samples from Visual Genome (section 3.2, appendix D): `build`, run by `dualfocus data vg`.

Images are processed in lots. A lot is done when its part of the report exists, which is written after its
samples; an interrupted build resumes with the lots that are not done, and ends with the same files.
"""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualfocus_lmms.errors import Interrupted, UserError
from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.json_text import Kind
from dualfocus_lmms.protocol import load_protocol
from dualfocus_lmms.train.data.samples import SHARDS, TrainingSample, are_separate, shard_path, write_shard
from dualfocus_lmms.train.vg.config import VGConfig
from dualfocus_lmms.train.vg.question_grounding import Dropped, Grounded, Reason
from dualfocus_lmms.train.vg.records import (
    Annotations,
    Outcome,
    image_path,
    make_samples,
    outcomes,
    separate_regions,
)
from dualfocus_lmms.train.vg.report import Line, Report

log = logging.getLogger(__name__)

LOT = 100  # images a lot
_PARTS = "parts"
_SETTINGS: Kind[dict[str, Any]] = Kind(dict[str, Any])
_IMAGE_REASONS = (Reason.NO_IMAGE, Reason.BAD_IMAGE)  # the user may add the images and run the build again


def build(
    root: str | Path,
    out: str | Path,
    config: VGConfig | str | Path | None = None,
    workers: int = 1,
    limit: int | None = None,
    protocol: str = "release",
    annotations_only: bool = False,
    seed: int = 0,
    progress: bool = True,
    regions: str = "union",
) -> Report:
    """Write samples-*.parquet, report.md, report.json and page.md into `out`.

    root: a folder of Visual Genome's files (see `records`). config: a file of settings over configs/vg.yaml.
    workers: processes. limit: only the first images, by id. protocol: whose geometry cuts the regions out.
    annotations_only: write samples-*.jsonl, without images and without looking for them. seed: chooses
    the examples. regions: "separate" also cuts out each region of a question by itself, for training with
    regions=separate. UserError when `out` holds a build with other settings, or when there are no images.
    """
    root, out = Path(root), Path(out)
    if workers < 1 or (limit is not None and limit < 1):
        raise UserError(f"workers and limit must be at least 1, got {workers} and {limit}.")
    config = config if isinstance(config, VGConfig) else VGConfig.load(config)
    load_protocol(protocol)
    separate = are_separate(regions, protocol)
    with _bytes_bar(root, progress) as advance:
        annotations = Annotations.open(root, config, advance)
    ids = list(annotations.files["question_answers"].ids)[:limit]
    if not annotations_only and ids and not any(image_path(image, annotations) for image in ids[:LOT]):
        raise UserError(
            f"None of the first {min(len(ids), LOT)} images is in {str(root)!r}: put them into VG_100K/ or "
            f"VG_100K_2/ there ({ids[0]}.jpg), or build without images (annotations_only)."
        )
    _begin(out, annotations, config, regions, limit, protocol, annotations_only, seed)
    job = _Job(annotations, config, protocol, out, annotations_only, seed, separate)
    lots = [(index, ids[start : start + LOT]) for index, start in enumerate(range(0, len(ids), LOT))]
    report = Report(seed=seed)
    for name, file in annotations.files.items():
        for row in file.malformed:
            report.problem(f"{name}.json: record {row} has no image id")
    try:
        with tqdm(total=len(ids), unit=" images", desc="images", disable=not progress) as bar:
            for part, (_, images) in zip(_run(job, lots, workers), lots, strict=True):
                report.merge(part)
                bar.update(len(images))
                bar.set_postfix(kept=report.kept.total(), refresh=False)
        report.write(out)
        for leftover in out.glob(f".{SHARDS}.*"):  # of interrupted processes
            leftover.unlink(missing_ok=True)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{report.images:,} of {len(ids):,} images are done. They are kept in {str(out)!r}; run the same "
            "command to resume."
        ) from error
    except OSError as error:  # such as no space left
        raise UserError(
            f"Stopped: {error}. What is done is kept in {str(out)!r}; run the same command to resume."
        ) from error
    return report


@dataclass(frozen=True)
class _Job:
    """What every process needs."""

    annotations: Annotations
    config: VGConfig
    protocol: str
    out: Path
    annotations_only: bool
    seed: int
    separate: bool

    def lot(self, lot: tuple[int, Sequence[int]]) -> Report:
        """The report of one lot, read if it is done and no image was missing; else the lot is processed."""
        index, images = lot
        part = self.out / _PARTS / f"part-{index:05d}.json"
        done = _read_part(part)
        if done is not None and not any(done.dropped[reason.value] for reason in _IMAGE_REASONS):
            return done
        report = Report(seed=self.seed)
        if self.annotations_only:
            rows = [row for image in images for row in self._rows(image, report)]
            atomic_write(
                self.out / f"samples-{index:05d}.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
            )
        else:
            path = shard_path(self.out, index)
            samples = (sample for image in images for sample in self._samples(image, report))
            if write_shard(samples, path, self.separate) == 0:
                path.unlink()
        atomic_write(part, json.dumps(report.to_dict(), ensure_ascii=False))
        return report

    def _rows(self, image: int, report: Report) -> Iterator[dict[str, Any]]:
        """The samples of an image as plain values, without images."""
        kept = self._kept(image, report)
        _count(kept, report)
        for outcome in kept:
            assert isinstance(outcome.result, Grounded)
            assert outcome.box is not None
            boxes = [box.xyxy for box in separate_regions(outcome)] if self.separate else None
            yield {
                "id": outcome.id,
                "image_id": image,
                "question": outcome.question,
                "answer": outcome.answer,
                "box": outcome.box.xyxy,
                **({} if boxes is None else {"boxes": boxes}),
                "how": outcome.result.how,
                "names": outcome.result.names,
                "objects": outcome.result.ids,
                "source": f"vg:{image}",
            }

    def _samples(self, image: int, report: Report) -> Iterator[TrainingSample]:
        """The samples of an image, with images."""
        kept = self._kept(image, report)
        if not kept:
            return
        samples, problem = make_samples(
            kept, self.annotations, self.config, load_protocol(self.protocol), self.separate
        )
        if problem is not None:
            report.problem(f"image {image}: {problem.reason.value}: {problem.detail}")
            kept = [replace(outcome, result=problem, box=None) for outcome in kept]
        _count(kept, report)
        yield from samples

    def _kept(self, image: int, report: Report) -> list[Outcome]:
        """The questions of an image to keep; those dropped are counted here."""
        report.images += 1
        found = list(outcomes(image, self.annotations, self.config))
        kept = [outcome for outcome in found if outcome.box is not None]
        few, most = len(kept) < self.config.min_per_image, self.config.max_per_image
        chosen = [] if few else kept[:most]
        ids = {outcome.id for outcome in chosen}
        for outcome in found:
            if outcome.id in ids:
                continue
            if outcome.box is not None:
                reason = Reason.FEW_IN_IMAGE if few else Reason.MANY_IN_IMAGE
                outcome = replace(outcome, result=Dropped(reason), box=None)
            elif isinstance(outcome.result, Dropped) and outcome.result.reason is Reason.MALFORMED:
                report.problem(f"{outcome.id}: {outcome.result.detail}")
            _count([outcome], report)
        return chosen


def _count(found: Sequence[Outcome], report: Report) -> None:
    """Add outcomes of one image to a report."""
    report.images_kept += any(outcome.box is not None for outcome in found)
    for outcome in found:
        if isinstance(outcome.result, Grounded):
            verdict, note = outcome.result.how, ", ".join(outcome.result.names)
        else:
            verdict, note = outcome.result.reason.value, outcome.result.detail
        box = outcome.box.xyxy if outcome.box is not None else None
        report.add(Line(outcome.id, outcome.image_id, outcome.question, outcome.answer, verdict, note, box))


def _read_part(path: Path) -> Report | None:
    """The report of a lot that is done; None for one to do, or to do again as its part is damaged."""
    if not path.exists():
        return None
    try:
        return Report.parse(path.read_bytes())
    except ValueError as error:
        log.warning("%s cannot be read (%s): its images are processed again.", path, error)
        return None


_job: _Job | None = None  # of this worker process


def _start(job: _Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    global _job
    _job = job


def _work(lot: tuple[int, Sequence[int]]) -> Report:
    assert _job is not None
    return _job.lot(lot)


def _run(job: _Job, lots: Sequence[tuple[int, Sequence[int]]], workers: int) -> Iterator[Report]:
    """The reports of all lots, in order."""
    if workers == 1 or len(lots) < 2:
        yield from map(job.lot, lots)
        return
    pool = ProcessPoolExecutor(min(workers, len(lots)), get_context("spawn"), _start, (job,))
    try:
        yield from pool.map(_work, lots)
    except BrokenProcessPool as error:  # by the system, when memory runs out
        raise UserError(
            f"One of {workers} processes was killed, as systems do when they run out of memory: run the same "
            "command with fewer workers to resume."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(out: Path, annotations: Annotations, config: VGConfig, regions: str, *settings: Any) -> None:
    """Make `out` and write the settings there; UserError when it has other settings."""
    names = ("limit", "protocol", "annotations_only", "seed")
    sizes = {name: file.path.stat().st_size for name, file in annotations.files.items()}
    record = dict(zip(names, settings, strict=True)) | {"lot": LOT, "files": sizes, "config": config.values}
    if regions != "union":
        record["regions"] = regions
    text = json.dumps(record, indent=1, default=str) + "\n"
    path = out / "build.json"
    try:
        (out / _PARTS).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(out.glob(SHARDS)):
                raise UserError(f"{str(out)!r} holds samples of another build: give an empty folder.")
            atomic_write(path, text)
    except OSError as error:
        raise UserError(f"Cannot write to {str(out)!r}: {error}.") from error
    written, given = _SETTINGS.read(path, "Give an empty folder."), json.loads(text)
    other = sorted(key for key in {*given, *written} if written.get(key) != given.get(key))
    if other:
        raise UserError(
            f"{str(out)!r} holds a build with another {', '.join(other)}: give an empty folder, or the "
            f"settings in its {path.name}."
        )


@contextmanager
def _bytes_bar(root: Path, progress: bool) -> Iterator[Any]:
    """A progress bar over the bytes of the annotation files."""
    total = sum(path.stat().st_size for path in root.glob("*.json")) if root.is_dir() else 0
    with tqdm(total=total, unit="B", unit_scale=True, desc="annotations", disable=not progress) as bar:
        yield bar.update
