"""Whatever way an image stores its numbers, a model sees what people see."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, UnidentifiedImageError

from dualfocus_lmms import UserError
from dualfocus_lmms.images import (
    FORMATS,
    MAX_PIXELS,
    UNREADABLE,
    image_hash,
    max_pixels,
    open_image,
    opened,
    rgb,
    unreadable,
    upright,
)

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


def test_an_image_of_eight_bits_keeps_its_colours() -> None:
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


def writing() -> Image.Image:
    """Black writing, half of it faint, on a ground that is transparent and black underneath: RGBA."""
    alpha = Image.frombytes("L", (4, 1), bytes([0, 255, 128, 0]))
    return Image.merge("RGBA", [*Image.new("RGB", (4, 1)).split(), alpha])


def palette() -> Image.Image:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 9])
    return image


def saved(image: Image.Image, file_format: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file


SEEN = [(255, 255, 255), (0, 0, 0), (127, 127, 127), (255, 255, 255)]


@pytest.mark.parametrize(
    ("file", "seen"),
    [
        (saved(writing()), SEEN),
        (saved(writing(), "WEBP", lossless=True, exact=True), SEEN),
        (saved(writing().convert("LA")), SEEN),
        (saved(palette(), transparency=0), [(255, 255, 255), (200, 0, 0), (0, 0, 9)]),
        (saved(palette(), "GIF", transparency=0), [(255, 255, 255), (200, 0, 0), (0, 0, 9)]),
        (saved(palette(), transparency=b"\0\xff\x80"), [(255, 255, 255), (200, 0, 0), (127, 127, 132)]),
        (saved(Image.frombytes("L", (2, 1), b"\0\7"), transparency=0), [(255, 255, 255), (7, 7, 7)]),
        (saved(Image.new("1", (1, 1)), transparency=0), [(255, 255, 255)]),
        (saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), [(255, 255, 255)]),
        (saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(3, 2, 1)), [(1, 2, 3)]),
    ],
)
def test_what_is_transparent_is_white(file: io.BytesIO, seen: list[tuple[int, int, int]]) -> None:
    for source in (io.BytesIO(file.getvalue()), Image.open(io.BytesIO(file.getvalue()))):
        image = open_image(source)
        assert image.mode == "RGB"
        assert [image.getpixel((x, 0)) for x in range(image.width)] == seen


def test_opaque_pixels_keep_their_exact_colours() -> None:
    colours = Image.fromarray(np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    assert rgb(colours.convert("RGBA")).tobytes() == colours.tobytes()
    assert rgb(colours) is colours


def test_sixteen_bit_grey_may_have_a_transparent_value() -> None:
    image = Image.fromarray(np.array([[0, 257 * 9]], np.uint16))
    image.info["transparency"] = 0  # as Pillow reads it from a PNG
    assert np.asarray(rgb(image))[0].tolist() == [[255] * 3, [9] * 3]


def test_the_fingerprint_is_of_what_the_model_sees() -> None:
    assert image_hash(writing()) == image_hash(rgb(writing())) != image_hash(writing().convert("RGB"))


def test_images_above_the_limit_of_pillow_are_read_and_cropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow refuses more than twice as many
    image = open_image(saved(Image.new("RGB", (20, 10))))
    assert image.crop((0, 0, 20, 9)).size == (20, 9)
    assert max_pixels() == 2**30


@pytest.mark.parametrize(("width", "fits"), [(19, True), (20, True), (21, False), (41, False)])
def test_the_limit_can_be_chosen(width: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # restored afterwards
    monkeypatch.setenv(MAX_PIXELS, "200")
    for source in (saved(Image.new("L", (width, 10))), Image.new("L", (width, 10))):
        if fits:
            assert open_image(source).width == width
            continue
        with pytest.raises(Image.DecompressionBombError) as caught:
            open_image(source)
        told = str(unreadable("The image 'a.png'", caught.value, "give an image file such as PNG."))
        assert told.startswith("The image 'a.png' is too large")
        assert MAX_PIXELS in told
        assert "PNG." not in told


def test_a_size_is_known_before_the_image_is_decoded() -> None:
    content = saved(Image.linear_gradient("L")).getvalue()
    with opened(io.BytesIO(content[:100])) as image:
        assert image.size == (256, 256)
    with pytest.raises(UNREADABLE):
        open_image(io.BytesIO(content[:100]))


@pytest.mark.parametrize("given", ["0", "-1", "1e9", "many", "1.5"])
def test_a_limit_that_is_no_number_of_pixels_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_PIXELS, given)
    with pytest.raises(UserError, match=rf"{MAX_PIXELS}.* got '{given}'"):
        max_pixels()


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file closefile\nshowpage\n"
)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (POSTSCRIPT, "EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\n <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b'{"image": 1}', "JSON"),
        (b"\x1f\x8b" + bytes(40), "gzip"),
        (saved(Image.new("RGB", (16, 16)), "ICO").getvalue(), "ICO"),
        (b"", "empty"),
        (bytes(99), "no image"),
    ],
)
def test_other_formats_are_named_whatever_a_file_is_called(
    content: bytes, found: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), io.BytesIO(content)):
        with pytest.raises(UnidentifiedImageError) as caught:
            open_image(source)
        assert found in str(caught.value)
        assert "WEBP" in str(caught.value)
        assert isinstance(caught.value, UNREADABLE)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_the_formats_of_photos_and_drawings_are_read(name: str) -> None:
    assert name in FORMATS
    assert open_image(saved(Image.new("RGB", (9, 9), "red"), name)).size == (9, 9)


def test_no_postscript_runs_in_an_image_that_others_have_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of data sets opens images with all of Pillow's formats and decodes them later."""
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "/bin/false")
    image = Image.open(io.BytesIO(POSTSCRIPT))
    with pytest.raises(UnidentifiedImageError, match="EPS"):
        open_image(image)
    assert EpsImagePlugin.gs_binary is False
    with pytest.raises(OSError, match="Ghostscript"):
        image.load()
