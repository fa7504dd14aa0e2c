"""Samples as conversation files for other training code."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.train.data.export import export
from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample
from dualfocus_lmms.zoom import DynamicResolution

LOCATE = "Please provide the bounding box coordinate of the region this question asks: What is it?"
MICRO = "Please combine the information from these two images and answer this question: What is it?"


def image(color: str, name: str, size: tuple[int, int] = (40, 20)) -> SampleImage:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return SampleImage(file.getvalue(), name)


IMAGE = image("red", "1.png")
SAMPLES = [
    TrainingSample(
        "a", IMAGE, "What is it?", "A cat.", Box(0.1, 0.25, 0.5, 1.0), image("blue", "a.png"), "vg:1"
    ),
    TrainingSample("b", IMAGE, "Is it red?", "Yes.", source="vg:1"),
    TrainingSample(
        "c", image("green", "1.png"), "What is it?", "é", Box(0, 0, 1, 1), image("blue", ""), "vg:2"
    ),
]


def test_llava(tmp_path: Path) -> None:
    path = export(SAMPLES, tmp_path)
    assert path.name == "dualfocus_llava.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows[0] == {
        "id": "a",
        "image": ["images/1.png", "crops/a.png"],
        "conversations": [
            {"from": "human", "value": f"<image>\n{LOCATE}"},
            {"from": "gpt", "value": "[0.10, 0.25, 0.50, 1.00]"},
            {"from": "human", "value": f"<image>\n{MICRO}"},
            {"from": "gpt", "value": "A cat."},
        ],
    }
    assert rows[1] == {
        "id": "b",
        "image": "images/1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nIs it red?"},
            {"from": "gpt", "value": "Yes."},
        ],
    }
    assert rows[2]["image"] == ["images/1-2.png", "crops/c.jpg"]  # another image of the same name
    assert (tmp_path / "images" / "1.png").read_bytes() == IMAGE.data
    assert (tmp_path / "images" / "1-2.png").read_bytes() == SAMPLES[2].image.data
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_messages_with_the_papers_prompts_and_boxes_in_thousandths_of_a_square(tmp_path: Path) -> None:
    thousandths = BoxFormat("({:d},{:d}),({:d},{:d})", 1000, "square")
    path = export(SAMPLES[:1], tmp_path, "messages", "paper", thousandths, "Answer briefly.")
    row = json.loads(path.read_text())
    assert row["images"] == ["images/1.png", "crops/a.png"]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user", "assistant"]
    assert [message["content"] for message in row["messages"]] == [
        "<image>\nProvide the coordinates of the region this question is asking about: What is it?",
        "(100,375),(500,750)",  # 40 x 20 in a square of 40
        "<image>\nCombine these two images and answer the question: What is it?\nAnswer briefly.",
        "A cat.",
    ]


@pytest.mark.parametrize(
    ("protocol", "resolution", "file", "size"),
    [
        ("paper", DynamicResolution(28, 56 * 56, 3584 * 3584), "b.png", (140, 140)),
        ("release", DynamicResolution(28, 56 * 56, 3584 * 3584), "b.jpg", (30, 30)),
        ("paper", None, "b.jpg", (30, 30)),
    ],
)
def test_crops_are_exported_as_inference_shows_them(
    tmp_path: Path, protocol: str, resolution: DynamicResolution | None, file: str, size: tuple[int, int]
) -> None:
    crop = SampleImage(image("blue", "", (30, 30)).data, "b.jpg")
    whole = image("red", "1.png", (200, 100))  # 196 x 112 in the model
    sample = TrainingSample("b", whole, "What is it?", "A cat.", Box(0.1, 0.25, 0.25, 0.55), crop, "vg:1")
    path = export([sample], tmp_path, "messages", protocol, resolution=resolution)
    assert json.loads(path.read_text())["images"] == ["images/1.png", f"crops/{file}"]
    with Image.open(tmp_path / "crops" / file) as written:
        assert written.size == size


def test_each_region_is_exported_with_its_box_and_crop(tmp_path: Path) -> None:
    boxes = (Box(0.1, 0.1, 0.2, 0.2), Box(0.5, 0.5, 0.9, 0.9))
    crops = (image("blue", "a-1.png", (4, 2)), image("black", "a-2.png", (16, 8)))
    sample = replace(SAMPLES[0], boxes=boxes, crops=crops)
    path = export([sample, SAMPLES[1]], tmp_path, "messages", "paper", regions="separate")
    first, plain = (json.loads(line) for line in path.read_text().splitlines())
    assert first["images"] == ["images/1.png", "crops/a-1.png", "crops/a-2.png"]
    assert [message["content"] for message in first["messages"][1:3]] == [
        "[0.10, 0.10, 0.20, 0.20], [0.50, 0.50, 0.90, 0.90]",
        "<image>\n<image>\nCombine these three images and answer the question: What is it?",
    ]
    assert plain["images"] == ["images/1.png"]
    (row,) = json.loads(
        export([sample], tmp_path / "llava", protocol="paper", regions="separate").read_text()
    )
    assert row["image"] == first["images"]
    for other, protocol in ((sample, "release"), (SAMPLES[0], "paper")):
        with pytest.raises(UserError, match="regions=separate"):
            export([other], tmp_path / "none", protocol=protocol, regions="separate")


def test_no_file_is_written_when_a_sample_fails(tmp_path: Path) -> None:
    def failing() -> object:
        yield SAMPLES[0]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        export(failing(), tmp_path)  # type: ignore[arg-type]
    assert not (tmp_path / "dualfocus_llava.json").exists()


def test_an_unknown_form_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown form 'coco': choose one of llava, messages"):
        export([], tmp_path, "coco")
    assert json.loads(export([], tmp_path).read_text()) == []


def test_images_of_another_export_are_not_overwritten(tmp_path: Path) -> None:
    first = export(SAMPLES[:1], tmp_path).read_bytes()
    other = TrainingSample("d", image("black", "1.png"), "Is it red?", "No.")
    with pytest.raises(UserError, match="another export"):
        export([other], tmp_path, "messages")
    assert (tmp_path / "images" / "1.png").read_bytes() == IMAGE.data
    assert export(SAMPLES[:1], tmp_path).read_bytes() == first
    assert export(SAMPLES[:1], tmp_path, "messages").exists()


def test_boxes_in_pixels_of_a_resized_image_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resizes"):
        export(SAMPLES, tmp_path, box_format=BoxFormat("{:d} {:d} {:d} {:d}", frame="resized"))


@pytest.mark.parametrize("form", ["llava", "messages"])
def test_exported_images_are_upright_and_on_white(tmp_path: Path, form: str) -> None:
    """Boxes refer to the upright image, and LLaVA's training opens files as they are."""
    scene = Image.linear_gradient("L").resize((8, 6)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    file, clear, plain = io.BytesIO(), io.BytesIO(), io.BytesIO()
    scene.save(file, "PNG", exif=exif)
    Image.new("RGBA", (3, 2)).save(clear, "PNG")
    scene.save(plain, "PNG")
    images = [
        SampleImage(file.getvalue(), "rotated.jpg"),
        SampleImage(clear.getvalue(), "clear.png"),
        SampleImage(plain.getvalue(), "plain.jpg"),
    ]
    samples = [TrainingSample(str(n), image, "What?", "A.") for n, image in enumerate(images)]
    export(samples, tmp_path, form)
    with Image.open(tmp_path / "images" / "rotated.png") as image:
        assert image.tobytes() == scene.transpose(Image.Transpose.ROTATE_270).tobytes()
    with Image.open(tmp_path / "images" / "clear.png") as image:
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    assert (tmp_path / "images" / "plain.jpg").read_bytes() == plain.getvalue()  # as it was
