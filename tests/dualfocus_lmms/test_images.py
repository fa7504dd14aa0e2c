"""Whatever way a picture stores its numbers, a model sees what people see."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from dualfocus_lmms.images import UNREADABLE, image_hash, open_image, upright

GREY = np.arange(0, 255, 15, dtype=np.uint16).reshape(1, -1)  # as 8 bits


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_and_not_cut_off(file_format: str, dtype: type) -> None:
    if (file_format, dtype) == ("PNG", np.int32):
        pytest.skip("PNG has no 32-bit pixels")
    file = io.BytesIO()
    Image.fromarray((GREY * 257).astype(dtype)).save(file, file_format)
    with Image.open(file) as opened:
        seen = np.asarray(upright(opened))
    assert (seen == GREY[..., None]).all()
    assert seen.shape == (*GREY.shape, 3)


@pytest.mark.parametrize(
    "values",
    [np.array([[0.0, 1.0]], np.float32), np.array([[0, 2**16]], np.int32), np.array([[-1, 9]], np.int32)],
)
def test_numbers_without_a_known_white_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="8 or 16 bits"):
        upright(Image.fromarray(values))


def test_a_picture_of_eight_bits_keeps_its_colours() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    assert upright(image).tobytes() == image.tobytes()
    assert upright(image.convert("CMYK")).tobytes() == image.tobytes()


def test_image_hash_is_of_the_pixels(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((8, 6)).convert("RGB")
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.bmp")
    hashes = {image_hash(Image.open(tmp_path / name)) for name in ("a.png", "a.bmp")} | {image_hash(image)}
    assert len(hashes) == 1
    assert image_hash(image.transpose(Image.Transpose.ROTATE_180)) not in hashes
    assert image_hash(Image.new("RGB", (2, 3))) != image_hash(Image.new("RGB", (3, 2)))


def test_every_source_gives_the_same_upright_image(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((8, 6)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    path = tmp_path / "rotated.png"
    image.save(path, exif=exif)
    with Image.open(path) as opened:
        found = [open_image(source) for source in (path, str(path), io.BytesIO(path.read_bytes()), opened)]
    expected = image.transpose(Image.Transpose.ROTATE_270)
    assert {(one.size, one.mode, one.tobytes()) for one in found} == {((6, 8), "RGB", expected.tobytes())}


@pytest.mark.parametrize("keep", [0, 20, 100])
def test_a_file_that_ends_too_early_is_refused(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval sets it
    path = tmp_path / "broken.png"
    Image.linear_gradient("L").save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UNREADABLE):
        open_image(path)
