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
from typing import Any, get_args, overload

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.files import replacing
from dualfocus_lmms.images import UNREADABLE, open_image, opened, unreadable
from dualfocus_lmms.prompts import MOST_REGIONS
from dualfocus_lmms.protocol import Protocol
from dualfocus_lmms.settings import Regions

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
# Only in the files of a build with regions=separate.
_SEPARATE = (
    pa.field("boxes", pa.list_(pa.list_(pa.float64()))),
    pa.field("crops", pa.list_(_IMAGE_STRUCT)),
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
    boxes, crops: for regions=separate, each region by itself in reading order, cut out with its padding;
    empty in samples that were made without.
    """

    id: str
    image: SampleImage
    question: str
    answer: str
    box: Box | None = None
    crop: SampleImage | None = None
    source: str = ""
    boxes: tuple[Box, ...] = ()
    crops: tuple[SampleImage, ...] = ()

    def __post_init__(self) -> None:
        if (self.box is None) != (self.crop is None):
            raise ValueError(f"Sample {self.id!r} needs both a box and a crop, or neither.")
        if (
            len(self.boxes) != len(self.crops)
            or len(self.boxes) > MOST_REGIONS
            or (self.boxes and not self.box)
        ):
            raise ValueError(
                f"Sample {self.id!r} needs a crop for each of its boxes, {MOST_REGIONS} at most, and a box "
                "around them."
            )

    def regions(self, separate: bool = False) -> tuple[tuple[Box, ...], tuple[SampleImage, ...]]:
        """The boxes and crops that are learned: its one region, or with `separate` each by itself; none where
        the sample has none. UserError where they were not cut out by themselves."""
        if self.box is None or self.crop is None:
            return (), ()
        if not separate:
            return (self.box,), (self.crop,)
        if not self.boxes:
            raise UserError(f"Sample {self.id!r} has one region only. {_SEPARATE_AGAIN}")
        return self.boxes, self.crops


def cut_out(box: Box, image: Image.Image, protocol: Protocol, name: str = "", **save: Any) -> SampleImage:
    """The file of a region, cut out as the protocol does (PROTOCOLS); of the whole image where nothing is
    left of the box. save: of Pillow's `save`, PNG unless it has a format."""
    rectangle = protocol.geometry(box, image.size, protocol.margin) or (0, 0, *image.size)
    file = io.BytesIO()
    image.crop(rectangle).save(file, **({"format": "PNG"} | save))
    return SampleImage(file.getvalue(), name)


def are_separate(regions: str, protocol: str) -> bool:
    """Whether regions are "separate". UserError for another word, and for a protocol of one region."""
    if regions not in get_args(Regions):
        raise choose("regions", regions, get_args(Regions))
    if regions == "separate" and protocol == "release":
        raise UserError(
            "regions=separate needs protocol=paper: protocol=release follows the authors' code, which crops "
            "one region."
        )
    return regions == "separate"


def shard_path(folder: Path, index: int) -> Path:
    """The name of shard `index` (from 0) in `folder`."""
    return folder / f"samples-{index:05d}.parquet"


def write_shard(samples: Iterable[TrainingSample], path: Path, separate: bool = False) -> int:
    """Write one shard under a temporary name, then rename it; returns its number of rows.

    Memory stays at a few rows: neighbours with the same image share one copy of it, in the file too.
    separate: with the columns `boxes` and `crops`.
    """
    rows, schema = 0, _schema(separate)
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression=_compression(separate),
            use_dictionary=["image.bytes", "image.path"],
            dictionary_pagesize_limit=1 << 28,
        ) as writer,
    ):
        iterator = iter(samples)
        while group := list(islice(iterator, _GROUP)):
            rows_of_group = [_row(sample, separate) for sample in group]
            writer.write_table(pa.Table.from_pylist(rows_of_group, schema=schema))
            rows += len(group)
    return rows


def read_samples(path: str | Path, separate: bool = False) -> SampleFiles:
    """The samples of a shard or of a folder of shards, in the order they were written.

    Random access that reads a few rows at a time; safe to copy to other processes. separate: UserError where
    their regions were not cut out one by one.
    """
    path = Path(path)
    shards = [path] if path.is_file() else sorted(path.glob(SHARDS))
    if not shards:
        raise UserError(f"There are no samples in {str(path)!r}: expected a folder with {SHARDS}.")
    files = SampleFiles(shards)
    if separate and not all("boxes" in pq.read_schema(shard).names for shard in shards):
        raise UserError(f"The samples in {str(path)!r} have one region each. {_SEPARATE_AGAIN}")
    return files


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
_SEPARATE_AGAIN = (
    "Make them with `dualfocus data vg --protocol paper --regions separate`, or leave out regions=separate."
)
_TEXT = ("id", "image.path", "crop.path", "question", "answer", "box.list.element", "source")
_SEPARATE_TEXT = ("boxes.list.element.list.element", "crops.list.element.path")


def _compression(separate: bool) -> dict[str, str]:
    """How each column is compressed: images are already."""
    images = ("image.bytes", "crop.bytes", *(("crops.list.element.bytes",) if separate else ()))
    text = (*_TEXT, *(_SEPARATE_TEXT if separate else ()))
    return dict.fromkeys(images, "NONE") | dict.fromkeys(text, "ZSTD")


def _schema(separate: bool) -> pa.Schema:
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
    columns = _COLUMNS
    if separate:
        features |= {"boxes": List(List(Value("float64"))), "crops": List(image_feature)}
        columns = pa.schema([*_COLUMNS, *_SEPARATE])
    return columns.with_metadata(Features(features).arrow_schema.metadata)


def _row(sample: TrainingSample, separate: bool) -> dict[str, Any]:
    """A sample as the columns of its row."""
    images = {
        key: image and _image_cell(image) for key, image in (("image", sample.image), ("crop", sample.crop))
    }
    box = None if sample.box is None else list(sample.box.xyxy)
    text = {key: getattr(sample, key) for key in ("id", "question", "answer", "source")}
    row: dict[str, Any] = text | images | {"box": box}
    if separate:
        row["boxes"] = [list(one.xyxy) for one in sample.boxes]
        row["crops"] = [_image_cell(one) for one in sample.crops]
    elif sample.boxes:
        raise ValueError(f"Sample {sample.id!r} has several regions, and the file no column for them.")
    return row


def _image_cell(image: SampleImage) -> dict[str, Any]:
    return {"bytes": image.data, "path": image.name}


def _image_of(cell: dict[str, Any]) -> SampleImage:
    return SampleImage(cell["bytes"], cell["path"] or "")


def _sample(row: dict[str, Any]) -> TrainingSample:
    """The sample of a row."""
    image, crop, box = row["image"], row["crop"], row["box"]
    return TrainingSample(
        id=row["id"],
        image=_image_of(image),
        question=row["question"],
        answer=row["answer"],
        box=None if box is None else Box(*box),
        crop=None if crop is None else _image_of(crop),
        source=row["source"] or "",
        boxes=tuple(Box(*corners) for corners in row.get("boxes") or ()),
        crops=tuple(_image_of(cell) for cell in row.get("crops") or ()),
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
