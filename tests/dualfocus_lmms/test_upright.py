"""Whatever way a picture stores its numbers, a model sees what people see."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms.upright import upright

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
