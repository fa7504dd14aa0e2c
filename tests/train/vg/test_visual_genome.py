"""The build from Visual Genome's own files, drawn small: complete, interrupted and resumed, damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dualfocus_lmms.boxes import WHOLE, Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.train.data.samples import TrainingSample, read_samples
from dualfocus_lmms.train.vg import visual_genome
from dualfocus_lmms.train.vg.config import VGConfig
from dualfocus_lmms.train.vg.records import read_mapping, round_box
from dualfocus_lmms.train.vg.report import Report
from dualfocus_lmms.train.vg.visual_genome import build
from dualfocus_lmms.zoom import release_rectangle

SIZE = (320, 240)
Records = dict[str, list[dict[str, Any]]]


def image_records(number: int) -> dict[str, dict[str, Any]]:
    """The records of an image with a ball, a kite and two cups, in the form of version 1.4."""
    boxes = {"ball": (40, 60, 50, 50), "kite": (200, 30, 80, 40), "cup": (20, 200, 20, 20)}
    objects = [
        {
            "object_id": number * 10 + i,
            "names": [name],
            "synsets": [f"{name}.n.01"],
            "x": x,
            "y": y,
            "w": w,
            "h": h,
        }
        for i, (name, (x, y, w, h)) in enumerate([*boxes.items(), ("cup", (100, 200, 20, 20))])
    ]
    pairs = [
        ("What color is the ball?", "Red."),
        ("What is above the ball?", "The kite."),
        ("What color is the cup?", "Green."),
        ("Where was this photo taken?", "In a park."),
        ("What color is the ball?", "Red."),
        ("What color is the horse?", "Brown."),
    ]
    qas = [
        {
            "qa_id": number * 100 + i,
            "image_id": number,
            "question": q,
            "answer": a,
            "q_objects": [],
            "a_objects": [],
        }
        for i, (q, a) in enumerate(pairs)
    ]
    colors = [{"object_id": number * 10, "names": ["ball"], "attributes": ["red"], "x": 40, "y": 60}]
    phrases = [
        {"region_id": number * 10, "x": 0, "y": 0, "width": 90, "height": 80, "phrase": "a bird in the sky"}
    ]
    folder = "VG_100K" if number % 2 else "VG_100K_2"
    return {
        "image_data": {
            "image_id": number,
            "width": 320,
            "height": 240,
            "url": f"https://x/{folder}/{number}.jpg",
        },
        "objects": {"image_id": number, "objects": objects},
        "attributes": {"image_id": number, "attributes": colors},
        "region_descriptions": {"id": number, "regions": phrases},
        "question_answers": {"id": number, "qas": qas},
    }


def write(root: Path, files: Records) -> None:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / f"{name}.json").write_text(json.dumps(content))


def records_of(numbers: range) -> Records:
    images = [image_records(number) for number in numbers]
    return {name: [image[name] for image in images] for name in images[0]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images, 1 to 7, in both folders."""
    root = tmp_path / "vg"
    write(root, records_of(range(1, 8)))
    for number in range(1, 8):
        image = Image.new("RGB", SIZE, (number * 30, 120, 90))
        draw = ImageDraw.Draw(image)
        draw.ellipse((40, 60, 89, 109), fill="red")
        draw.polygon([(200, 30), (279, 30), (240, 69)], fill="blue")
        folder = root / ("VG_100K" if number % 2 else "VG_100K_2")
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{number}.jpg", quality=90)
    return root


@pytest.fixture
def lots_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visual_genome, "LOT", 2)


def run(root: Path, out: Path, **settings: Any) -> Report:
    return build(root, out, progress=False, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a build, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_build_keeps_and_drops_with_boxes_crops_and_counts(root: Path, tmp_path: Path) -> None:
    report = run(root, tmp_path / "out")
    assert dict(report.kept) == {"matched": 14, "whole": 7}
    assert dict(report.dropped) == {
        "the question could mean several things": 7,
        "it was asked before about the same image": 7,
        "something in the question is not annotated": 7,
    }
    assert (report.images, report.images_kept, report.questions, report.problem_count) == (7, 7, 42, 0)
    assert report.areas == [7, 0, 7, 0, 0, 0, 0, 0, 0, 7]

    samples = read_samples(tmp_path / "out")
    assert len(samples) == 21
    ball, above, whole = samples[:3]
    assert (ball.id, ball.question, ball.answer) == ("vg-100", "What color is the ball?", "Red.")
    assert ball.source == "vg:1"
    assert ball.box == Box(0.12, 0.25, 0.29, 0.46)  # 40..90 of 320 and 60..110 of 240, rounded outwards
    assert above.box == Box(0.12, 0.12, 0.88, 0.46)  # with the kite that the answer names
    assert whole.box == WHOLE
    assert ball.image.data == (root / "VG_100K" / "1.jpg").read_bytes()
    for sample in samples[:3]:
        check_crop(sample)


def check_crop(sample: TrainingSample) -> None:
    """The crop holds the pixels that the release cuts out of the image, with a margin of 25."""
    assert sample.box is not None
    assert sample.crop is not None
    rectangle = release_rectangle(sample.box, SIZE, 25)
    assert rectangle is not None
    expected = np.asarray(sample.image.decode().crop(rectangle), dtype=float)
    crop = np.asarray(sample.crop.decode(), dtype=float)
    assert crop.shape == expected.shape
    assert np.abs(crop - expected).mean() < 3


def test_the_paper_protocol_crops_without_margin_and_png_is_lossless(root: Path, tmp_path: Path) -> None:
    config = VGConfig.load(crop_format="png")
    run(root, tmp_path / "out", protocol="paper", config=config, limit=1)
    ball = read_samples(tmp_path / "out")[0]
    assert ball.crop is not None
    assert ball.crop.decode().size == (55, 51)  # 38.4..92.8 and 60..110.4, each pixel that is touched
    assert ball.crop.decode().tobytes() == ball.image.decode().crop((38, 60, 93, 111)).tobytes()


@pytest.mark.usefixtures("lots_of_two")
def test_an_interrupted_build_resumes_to_the_same_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(root, tmp_path / "whole")
    make, made = visual_genome.make_samples, []

    def failing(kept: Any, *rest: Any) -> Any:
        made.append(kept[0].image_id)
        if len(made) == 4:
            raise KeyboardInterrupt
        return make(kept, *rest)

    out = tmp_path / "out"
    monkeypatch.setattr(visual_genome, "make_samples", failing)
    with pytest.raises(KeyboardInterrupt):
        run(root, out)
    assert sorted(path.name for path in out.glob("samples-*")) == ["samples-00000.parquet"]
    report = run(root, out)
    assert made == [1, 2, 3, 4, 3, 4, 5, 6, 7]  # the first lot was done
    assert contents(out) == contents(tmp_path / "whole")
    assert report.questions == 42
    run(root, out)
    assert len(made) == 9


@pytest.mark.usefixtures("lots_of_two")
def test_several_processes_write_the_same_files_as_one(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "one")
    run(root, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_damaged_records_and_images_are_counted_and_named(root: Path, tmp_path: Path) -> None:
    files = records_of(range(1, 8))
    files["question_answers"][0]["qas"][1] = {"qa_id": 7, "question": None, "answer": "Red."}
    files["question_answers"][1]["qas"] = "none"
    files["question_answers"].append({"qas": []})
    del files["image_data"][2]
    files["objects"][3]["objects"][0] = {
        "names": ["ball"],
        "x": 1,
        "y": 1,
        "w": "wide",
        "h": 3,
        "object_id": 40,
    }
    write(root, files)
    (root / "VG_100K" / "5.jpg").write_bytes(b"\xff\xd8 half a photo")
    (root / "VG_100K_2" / "6.jpg").unlink()
    Image.new("RGB", (240, 320)).save(root / "VG_100K" / "7.jpg")
    report = run(root, tmp_path / "out")
    assert report.dropped["the record is malformed"] == 3
    assert report.dropped["the photo cannot be used"] == 6
    assert report.dropped["the photo is missing"] == 3
    assert report.problem_count == 7
    text = "\n".join(report.problems)
    for part in (
        "question_answers.json: record 7 has no image id",
        "vg-7: AttributeError",
        "image-2: ValueError: no size, or no list of questions",
        "image-3: KeyError: 'width'",
        "image 5: the photo cannot be used: The image '5.jpg' cannot be read",
        "image 6: the photo is missing: 6.jpg",
        "image 7: the photo cannot be used: 7.jpg is 240 x 320, annotated as 320 x 240",
    ):
        assert part in text
    assert [sample.source for sample in read_samples(tmp_path / "out")] == ["vg:1", "vg:1", "vg:4"]
    assert "7 problems" in (tmp_path / "out" / "report.md").read_text()


def test_annotations_only_writes_samples_without_images(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(root, out, annotations_only=True, limit=2)
    rows = [json.loads(line) for line in (out / "samples-00000.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "id": "vg-101",
        "image_id": 1,
        "question": "What is above the ball?",
        "answer": "The kite.",
        "box": [0.12, 0.12, 0.88, 0.46],
        "how": "matched",
        "names": ["ball", "kite"],
        "objects": [10, 11],
        "source": "vg:1",
    }
    assert len(rows) == 6
    assert not list(out.glob("*.parquet"))


def test_version_1_0_and_the_mapping_to_regions_are_read(root: Path, tmp_path: Path) -> None:
    image = image_records(1)
    image["question_answers"]["qas"] = [
        {"qa_id": 5, "question": "What color is the bird?", "answer": "Blue."},
        {
            "qa_id": 6,
            "question": "What color is the flag?",
            "answer": "Blue.",
            "q_objects": [{"object_id": 900, "name": "flag", "x": 160, "y": 120, "w": 80, "h": 60}],
        },
        {"qa_id": 8, "question": "What color is the bird?", "answer": "Blue."},
    ]
    for key, number in [("objects", "object_id"), ("regions", "region_id"), ("attributes", "object_id")]:
        for name in ("objects", "region_descriptions", "attributes"):
            for entry in image[name].get(key, ()):
                entry["id"] = entry.pop(number)
    image["objects"]["id"] = image["objects"].pop("image_id")
    write(root, {name: [record] for name, record in image.items()})
    (root / "qa_to_region_mapping.json").write_text(json.dumps({"5": 10, "8": 77}))
    report = run(root, tmp_path / "out")
    assert dict(report.kept) == {"region": 1, "given": 1}
    bird, flag = read_samples(tmp_path / "out")
    assert bird.box == Box(0.0, 0.0, 0.29, 0.34)  # the region 90 x 80
    assert flag.box == Box(0.5, 0.5, 0.75, 0.75)
    config = VGConfig.load(use_regions=False, use_given=False)
    assert run(root, tmp_path / "without", config=config).kept.total() == 0


def test_settings_choose_images_and_questions(root: Path, tmp_path: Path) -> None:
    most = run(root, tmp_path / "most", config=VGConfig.load(max_per_image=2))
    assert (most.kept.total(), most.dropped["enough questions of the image were kept"]) == (14, 7)
    few = run(root, tmp_path / "few", config=VGConfig.load(min_per_image=4))
    assert (few.kept.total(), few.images_kept) == (0, 0)
    assert few.dropped["too few questions of the image were kept"] == 21
    assert not list((tmp_path / "few").glob("samples-*"))


def test_a_folder_with_another_build_raises(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out", limit=1)
    with pytest.raises(UserError, match="another limit"):
        run(root, tmp_path / "out", limit=2)
    with pytest.raises(UserError, match="another config, protocol"):
        run(root, tmp_path / "out", limit=1, protocol="paper", config=VGConfig.load(min_per_image=2))
    (tmp_path / "out" / "build.json").unlink()
    with pytest.raises(UserError, match="samples of another build"):
        run(root, tmp_path / "out", limit=1)


@pytest.mark.usefixtures("lots_of_two")
def test_images_added_later_are_used(root: Path, tmp_path: Path) -> None:
    whole = contents_of(root, tmp_path / "whole")
    path = root / "VG_100K_2" / "6.jpg"
    moved = path.rename(tmp_path / "6.jpg")
    assert run(root, tmp_path / "out").dropped["the photo is missing"] == 3
    moved.rename(path)
    assert contents_of(root, tmp_path / "out") == whole


def contents_of(root: Path, out: Path) -> Any:
    run(root, out)
    return contents(out)


def test_a_folder_without_images_raises_and_nothing_is_written(root: Path, tmp_path: Path) -> None:
    for path in root.glob("*/*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match="None of the first"):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(root, tmp_path / "out", annotations_only=True).kept.total() == 21


def test_an_object_with_nan_coordinates_is_left_out(root: Path, tmp_path: Path) -> None:
    files = records_of(range(1, 8))
    files["objects"][0]["objects"][1]["x"] = float("nan")  # the kite
    write(root, files)
    report = run(root, tmp_path / "out", limit=1)
    assert [line.question for line in report.page["kept"]].count("What color is the ball?") == 1
    assert report.dropped["the record is malformed"] == 0


def test_invalid_arguments_raise(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers and limit"):
        run(root, tmp_path / "out", workers=0)
    with pytest.raises(UserError, match="protocol 'old'"):
        run(root, tmp_path / "out", protocol="old")
    (root / "objects.json").rename(root / "objects.json.zip")
    with pytest.raises(UserError, match=r"no objects\.json in .* unzip"):
        run(root, tmp_path / "out")


def test_a_mapping_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({str(1000 - number): number for number in range(500)}))
    for piece in (3, 50, 1 << 20):
        ids, regions = read_mapping(path, piece)
        assert (ids[0], regions[0], ids[-1], regions[-1], len(ids)) == (501, 499, 1000, 0, 500)


def test_boxes_are_rounded_outwards() -> None:
    assert round_box(Box(0.29, 0.294, 0.57, 0.571)) == Box(0.29, 0.29, 0.57, 0.58)
    assert round_box(Box(0.001, 0.0, 0.999, 1.0)) == WHOLE
    assert round_box(Box(0.5012, 0.1, 0.5015, 0.2)) == Box(0.5, 0.1, 0.51, 0.2)
