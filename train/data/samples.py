"""Training samples and the Parquet files that hold them. Knows nothing about Visual Genome or models.

A folder of samples is a set of shards, `samples-00000.parquet` and so on, which the Hugging Face `datasets`
library reads as well. Images are the bytes of their files, decoded only when they are needed.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path, PurePath
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import replacing
from dualfocus_lmms.images import UNREADABLE, open_image, opened, unreadable

SHARDS = "samples-*.parquet"
_GROUP = 32  # rows read at a time: large enough to keep an image once, small enough for random access
_IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("image", _IMAGE_STRUCT),
        ("crop", _IMAGE_STRUCT),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("box", pa.list_(pa.float64())),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An encoded image (JPEG, PNG, ...): the bytes of its file and the file's name."""

    data: bytes
    name: str = ""

    def decode(self) -> Image.Image:
        """The pixels, RGB, upright as its EXIF orientation says. UserError when they cannot be read."""
        try:
            return open_image(io.BytesIO(self.data))
        except UNREADABLE as error:
            what = f"The image {self.name or '(unnamed)'!r}"
            raise unreadable(what, error, "make the samples again.") from error

    def plain(self) -> SampleImage:
        """The image as a file that shows the same to programs that neither rotate it upright nor know what is
        transparent: itself where that is so already, else a PNG. UserError when it cannot be read."""
        try:
            with opened(io.BytesIO(self.data)) as image:
                rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
                if not rotated and not image.has_transparency_data:
                    return self
        except UNREADABLE:
            pass  # `decode` raises the error
        file = io.BytesIO()
        self.decode().save(file, "PNG")
        return SampleImage(file.getvalue(), str(PurePath(self.name).with_suffix(".png")) if self.name else "")


@dataclass(frozen=True, eq=False, slots=True)
class TrainingSample:
    """One DualFocus training sample (section 3.2).

    id: unique in its data set. image: the original image. question: the bare question. box: the region with
    every object the question needs, fractions of the upright original image; None for a plain (macro only)
    sample. crop: the region, cut out offline; None exactly where box is None. source: e.g. "vg:12345".
    """

    id: str
    image: SampleImage
    question: str
    answer: str
    box: Box | None = None
    crop: SampleImage | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if (self.box is None) != (self.crop is None):
            raise ValueError(f"Sample {self.id!r} needs both a box and a crop, or neither.")


def shard_path(folder: Path, index: int) -> Path:
    """The name of shard `index` (from 0) in `folder`."""
    return folder / f"samples-{index:05d}.parquet"


def write_shard(samples: Iterable[TrainingSample], path: Path) -> int:
    """Write one shard under a temporary name, then rename it; returns its number of rows.

    Memory stays at a few rows: neighbours with the same image share one copy of it, in the file too.
    """
    rows = 0
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(
            temporary,
            _schema(),
            compression={"image.bytes": "NONE", "crop.bytes": "NONE"} | dict.fromkeys(_TEXT, "ZSTD"),
            use_dictionary=["image.bytes", "image.path"],
            dictionary_pagesize_limit=1 << 28,
        ) as writer,
    ):
        iterator = iter(samples)
        while group := list(islice(iterator, _GROUP)):
            writer.write_table(pa.Table.from_pylist([_row(sample) for sample in group], schema=_schema()))
            rows += len(group)
    return rows


def read_samples(path: str | Path) -> SampleFiles:
    """The samples of a shard or of a folder of shards, in the order they were written.

    Random access that reads a few rows at a time; safe to copy to other processes.
    """
    path = Path(path)
    shards = [path] if path.is_file() else sorted(path.glob(SHARDS))
    if not shards:
        raise UserError(f"There are no samples in {str(path)!r}: expected a folder with {SHARDS}.")
    return SampleFiles(shards)


class SampleFiles(Sequence[TrainingSample]):
    """Samples on disk, as a sequence. Keeps the last few rows it read (32), never a whole shard."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = tuple(shards)
        self._ends = list(accumulate(_rows_of(shard) for shard in shards))
        self._open: tuple[int, int, pq.ParquetFile] | None = None  # process, shard, file
        self._group: tuple[tuple[int, int], pa.Table] | None = None  # (shard, group), its rows

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_group": None}

    @overload
    def __getitem__(self, index: int) -> TrainingSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingSample]: ...
    def __getitem__(self, index: int | slice) -> TrainingSample | list[TrainingSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}.")
        index %= len(self)
        shard = bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        key = (shard, row // _GROUP)
        if self._group is None or self._group[0] != key:
            self._group = (key, self._read(shard, key[1]))
        try:
            return _sample(self._group[1].slice(row % _GROUP, 1).to_pylist()[0])
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(
                f"{str(self.shards[shard])!r}, row {row}: no sample ({error}). {_AGAIN}"
            ) from error

    def _read(self, shard: int, group: int) -> pa.Table:
        try:
            return self._file(shard).read_row_group(group)
        except (pa.ArrowException, OSError) as error:
            rows = f"rows {group * _GROUP} to {(group + 1) * _GROUP - 1}"
            raise UserError(
                f"{str(self.shards[shard])!r}, {rows}, cannot be read: {error}. {_AGAIN}"
            ) from error

    def __iter__(self) -> Iterator[TrainingSample]:
        return (self[index] for index in range(len(self)))

    def _file(self, shard: int) -> pq.ParquetFile:
        """The open file of `shard`; a forked process opens its own."""
        if self._open is None or self._open[:2] != (os.getpid(), shard):
            self._open = (os.getpid(), shard, pq.ParquetFile(self.shards[shard]))
        return self._open[2]


_AGAIN = "Copy the file again, or delete it and make the samples again."
_TEXT = ("id", "image.path", "crop.path", "question", "answer", "box.list.element", "source")


def _schema() -> pa.Schema:
    """The columns, with the note by which Hugging Face's `datasets` knows which of them are images."""
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    text, image_feature = Value("string"), ImageFeature()
    features = Features(
        id=text,
        image=image_feature,
        crop=image_feature,
        question=text,
        answer=text,
        box=List(Value("float64")),
        source=text,
    )
    return _COLUMNS.with_metadata(features.arrow_schema.metadata)


def _row(sample: TrainingSample) -> dict[str, Any]:
    """A sample as the columns of its row."""
    images = {
        key: image and {"bytes": image.data, "path": image.name}
        for key, image in (("image", sample.image), ("crop", sample.crop))
    }
    box = None if sample.box is None else list(sample.box.xyxy)
    text = {key: getattr(sample, key) for key in ("id", "question", "answer", "source")}
    return text | images | {"box": box}


def _sample(row: dict[str, Any]) -> TrainingSample:
    """The sample of a row."""
    image, crop, box = row["image"], row["crop"], row["box"]
    return TrainingSample(
        id=row["id"],
        image=SampleImage(image["bytes"], image["path"] or ""),
        question=row["question"],
        answer=row["answer"],
        box=None if box is None else Box(*box),
        crop=None if crop is None else SampleImage(crop["bytes"], crop["path"] or ""),
        source=row["source"] or "",
    )


def _rows_of(shard: Path) -> int:
    """How many samples a shard holds; UserError when it is no shard of samples."""
    try:
        file = pq.ParquetFile(shard)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{str(shard)!r} is no Parquet file that can be read: {error}. {_AGAIN}") from error
    with file:
        missing = sorted(set(_COLUMNS.names) - set(file.schema_arrow.names))
        if missing:
            raise UserError(f"{str(shard)!r} holds no DualFocus samples: it lacks {', '.join(missing)}.")
        return file.metadata.num_rows
