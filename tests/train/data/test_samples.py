"""Samples on disk: read as written, in complete shards that other libraries read too."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms.boxes import WHOLE, Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.train.data.samples import (
    SampleImage,
    TrainingSample,
    read_samples,
    shard_path,
    write_shard,
)


def noise(seed: int, side: int = 40, form: str = "PNG") -> SampleImage:
    """An image that does not compress."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return SampleImage(file.getvalue(), f"{seed}.{form.lower()}")


def make(number: int, image: SampleImage | None = None) -> TrainingSample:
    """Sample `number`; every third one is plain."""
    plain = number % 3 == 2
    return TrainingSample(
        id=f"s{number}",
        image=image or noise(number),
        question=f"What is {number}?",
        answer=f"Größe {number}",
        box=None if plain else Box(0.1, 0.2, 0.3, number / 100),
        crop=None if plain else noise(1000 + number, 8),
        source=f"vg:{number}",
    )


def fields(sample: TrainingSample) -> tuple[object, ...]:
    return (sample.id, sample.image, sample.question, sample.answer, sample.box, sample.crop, sample.source)


@pytest.fixture
def samples() -> list[TrainingSample]:
    return [make(number) for number in range(20, 97)]


def test_samples_are_read_as_written_in_any_order(tmp_path: Path, samples: list[TrainingSample]) -> None:
    paths = [shard_path(tmp_path, index) for index in range(2)]
    assert [write_shard(samples[:40], paths[0]), write_shard(samples[40:], paths[1])] == [40, 37]
    assert [path.name for path in paths] == ["samples-00000.parquet", "samples-00001.parquet"]
    read = read_samples(tmp_path)
    assert len(read) == 77
    for index in (0, 76, 39, 40, 31, 32, 5):
        assert fields(read[index]) == fields(samples[index])
    assert fields(read[-1]) == fields(samples[-1])
    assert [sample.id for sample in read[38:42]] == ["s58", "s59", "s60", "s61"]
    assert [sample.id for sample in read] == [sample.id for sample in samples]
    with pytest.raises(IndexError):
        read[77]


def test_one_shard_is_read_and_a_copy_in_another_process_works(
    tmp_path: Path, samples: list[TrainingSample]
) -> None:
    path = shard_path(tmp_path, 0)
    write_shard(samples, path)
    read = read_samples(path)
    assert read[3].id == "s23"
    assert pickle.loads(pickle.dumps(read))[4].id == "s24"


def test_an_image_is_decoded_upright_and_a_broken_one_raises(tmp_path: Path) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("L", (4, 2)).save(file, "JPEG", exif=exif)
    image = SampleImage(file.getvalue(), "turned.jpg").decode()
    assert (image.size, image.mode) == ((2, 4), "RGB")
    with pytest.raises(UserError, match=r"half\.png"):
        SampleImage(noise(1).data[:500], "half.png").decode()


def test_a_failure_leaves_no_shard(tmp_path: Path, samples: list[TrainingSample]) -> None:
    def failing() -> Iterator[TrainingSample]:
        yield from samples[:60]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_shard(failing(), shard_path(tmp_path, 0))
    assert [*tmp_path.iterdir()] == []


def test_neighbours_share_one_copy_of_their_image(tmp_path: Path) -> None:
    image = noise(0, 300)
    path = shard_path(tmp_path, 0)
    write_shard([make(number, image) for number in range(20, 40)], path)
    assert len(image.data) < path.stat().st_size < 1.4 * len(image.data)
    assert all(sample.image.data == image.data for sample in read_samples(path))


def test_the_datasets_library_reads_shards(tmp_path: Path, samples: list[TrainingSample]) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    write_shard(samples[:5], shard_path(tmp_path / "set", 0))
    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    plain, row = rows["train"][0], rows["train"][1]
    assert row["image"].size == (40, 40)
    assert row["crop"].size == (8, 8)
    assert row["box"] == [0.1, 0.2, 0.3, 0.21]
    assert (plain["id"], plain["box"], plain["crop"]) == ("s20", None, None)
    assert set(row) == {"id", "image", "crop", "question", "answer", "box", "source"}


def several(number: int) -> TrainingSample:
    """Sample `number` with two regions, or plain."""
    sample = make(number)
    if sample.box is None:
        return sample
    boxes, crops = (Box(0.1, 0.2, 0.15, 0.2), sample.box), (noise(2000 + number, 8), noise(3000 + number, 8))
    return replace(sample, boxes=boxes, crops=crops)


def test_several_regions_are_read_as_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    write_shard([several(number) for number in range(20, 24)], shard_path(tmp_path / "set", 0), separate=True)
    for number, sample in enumerate(read_samples(tmp_path / "set", separate=True), 20):
        expected = several(number)
        assert fields(sample) == fields(expected)
        assert (sample.boxes, sample.crops) == (expected.boxes, expected.crops)
        assert sample.regions(separate=True) == (expected.boxes, expected.crops)
        assert len(sample.regions()[0]) == (0 if sample.box is None else 1)
    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    plain, row = rows["train"][0], rows["train"][1]
    assert [image.size for image in row["crops"]] == [(8, 8), (8, 8)]
    assert row["boxes"] == [[0.1, 0.2, 0.15, 0.2], row["box"]]
    assert (plain["boxes"], plain["crops"]) == ([], [])


def test_samples_of_one_region_have_no_several(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    write_shard([make(21)], path)
    with pytest.raises(UserError, match="--regions separate"):
        read_samples(tmp_path, separate=True)
    (sample,) = read_samples(tmp_path)
    assert (sample.boxes, sample.crops) == ((), ())
    with pytest.raises(UserError, match="--regions separate"):
        sample.regions(separate=True)
    with pytest.raises(ValueError, match="no column"):
        write_shard([several(21)], path)
    for changes in ({"boxes": (WHOLE,)}, {"boxes": (WHOLE,) * 5, "crops": (noise(1),) * 5}):
        with pytest.raises(ValueError, match="4 at most"):
            replace(sample, **changes)


def test_invalid_samples_and_files_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no samples in"):
        read_samples(tmp_path)
    bad = tmp_path / "samples-00000.parquet"
    bad.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="no Parquet file"):
        read_samples(bad)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["1"]}), bad)
    with pytest.raises(UserError, match="lacks answer, box, crop"):
        read_samples(bad)
    with pytest.raises(ValueError, match="both a box and a crop"):
        TrainingSample("x", noise(1), "q", "a", box=Box(0, 0, 1, 1))
