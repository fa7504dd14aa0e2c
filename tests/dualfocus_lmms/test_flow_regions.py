"""From the reply to the locate question to the crop of the second pass, on a scripted model."""

from __future__ import annotations

import pytest
from PIL import Image
from scripted_flow import SCRIPT, photo, question, run

from dualfocus_lmms import BoxFormat, Trace, UserError
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.zoom import DynamicResolution


def test_the_box_is_repeated_to_the_letter() -> None:
    odd = "The region: [.5,0.25 , 1, 0.75]!"
    backend = FakeBackend(SCRIPT | {"locate": odd})
    (trace,) = run(backend, question())
    assert backend.calls[2].conversations[0].turns[1].text == odd
    assert trace.crop == (20, 5, 40, 15)


@pytest.mark.parametrize("reply", ["", "The whole image.", "[0.1, 0.2, 0.3]", "nan, nan, nan, nan"])
@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_no_box_in_the_reply(reply: str, protocol: str) -> None:
    backend = FakeBackend(SCRIPT | {"locate": reply})
    (trace,) = run(backend, question(), protocol=protocol)
    assert [call.stage for call in backend.calls] == ["macro", "locate"]
    assert (trace.selection.text, trace.selection.margin) == ("cat", None)
    assert (trace.fallback, trace.box, trace.crop, trace.micro) == ("no_box", None, None, None)
    assert trace.locate is not None
    assert trace.locate.text == reply
    assert list(trace.prompts) == ["macro", "locate"]
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(
    ("protocol", "reply", "size", "crop"),
    [
        # a point or a line
        ("paper", "[0.50, 0.50, 0.50, 0.50]", (40, 20), None),
        ("paper", "[0.50, 0.00, 0.50, 1.00]", (40, 20), None),
        ("release", "[0.50, 0.50, 0.50, 0.50]", (400, 200), (175, 75, 225, 125)),
        ("release", "[0.00, 0.00, 0.00, 0.00]", (400, 200), None),
        # outside the image, wholly or in part
        ("paper", "[1.20, 0.20, 1.40, 0.40]", (40, 20), None),
        ("release", "[1.20, 0.20, 1.40, 0.40]", (400, 200), (374, 0, 399, 125)),
        ("paper", "[0.50, -0.50, 1.50, 0.50]", (40, 20), (20, 0, 40, 10)),
        ("release", "[0.50, -0.50, 1.50, 0.50]", (400, 200), (175, 0, 399, 199)),
        # one pixel wide or high
        ("paper", "[0.00, 0.50, 1.00, 0.75]", (1, 8), (0, 4, 1, 6)),
        ("paper", "[0.50, 0.00, 0.75, 1.00]", (8, 1), (4, 0, 6, 1)),
        ("paper", "[0.10, 0.10, 0.90, 0.90]", (1, 1), (0, 0, 1, 1)),
        ("release", "[0.00, 0.50, 1.00, 0.75]", (1, 8), None),
        ("release", "[0.10, 0.10, 0.90, 0.90]", (1, 1), None),
    ],
)
def test_odd_boxes_and_photos(protocol, reply, size, crop) -> None:
    backend = FakeBackend(SCRIPT | {"locate": reply})
    (trace,) = run(backend, question(image=photo(*size)), protocol=protocol)
    assert trace.crop == crop
    assert trace.box is not None
    if crop is None:
        assert trace.fallback == "empty_region"
        assert trace.selection.text == "cat"
        assert len(backend.calls) == 2
    else:
        part = backend.calls[2].conversations[0].images[1]
        assert part.size == (crop[2] - crop[0], crop[3] - crop[1])
        assert trace.fallback is None
        assert trace.selection.text == ("dog" if protocol == "paper" else "cat")  # a tie, in the release
    assert Trace.from_json(trace.to_json()) == trace


def test_margin_in_pixels() -> None:
    backend = FakeBackend(SCRIPT)
    (trace,) = run(backend, question(), box_margin=3)
    assert trace.crop == (17, 2, 40, 18)
    (trace,) = run(backend, question(image=photo(400, 200)), protocol="release", box_margin=0)
    assert trace.crop == (200, 0, 399, 199)


def test_the_backend_s_own_box_format() -> None:
    thousandths = BoxFormat("<box>({:d},{:d}),({:d},{:d})</box>", scale=1000)
    backend = FakeBackend(SCRIPT | {"locate": "<box>(500,250),(1000,750)</box>"}, thousandths)
    (trace,) = run(backend, question())
    assert trace.box == (0.5, 0.25, 1, 0.75)
    assert trace.crop == (20, 5, 40, 15)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_images_of_any_mode(mode: str) -> None:
    backend = FakeBackend(SCRIPT)
    (trace,) = run(backend, question(image=photo().convert(mode)))
    assert trace.crop == (20, 5, 40, 15)
    assert backend.calls[2].conversations[0].images[1].size == (20, 10)


@pytest.mark.parametrize(
    ("settings", "shown", "received"),
    [
        ({}, (588, 308), (588, 308)),  # as many pixels as the image has in the model
        ({"crop_pixels": 70_000}, (364, 196), (364, 196)),
        ({"crop_pixels": "original"}, (300, 150), (308, 140)),
        ({"protocol": "release", "select": "ppl"}, (324, 299), (336, 308)),
        ({"protocol": "release", "select": "ppl", "crop_pixels": "auto"}, (448, 420), (448, 420)),
    ],
)
def test_a_crop_is_enlarged_where_tokens_follow_an_images_size(settings, shown, received):
    image = photo(600, 300)
    backend = FakeBackend(SCRIPT, resolution=DynamicResolution(28, 56 * 56, 3584 * 3584))
    (trace,) = run(backend, question(image=image), **settings)
    crop = backend.calls[-1].conversations[0].images[-1]
    original = image.crop(trace.crop)
    assert (trace.input_size, trace.crop_size, crop.size) == ((588, 308), received, shown)
    expected = original if shown == original.size else original.resize(shown, Image.Resampling.BICUBIC)
    assert crop.tobytes() == expected.tobytes()


def test_a_model_of_one_resolution_gets_the_crop_as_it_is_and_refuses_a_number_of_pixels():
    backend = FakeBackend(SCRIPT)
    (trace,) = run(backend, question())
    assert backend.calls[-1].conversations[0].images[-1].tobytes() == photo().crop(trace.crop).tobytes()
    assert (trace.input_size, trace.crop_size) == (None, None)
    with pytest.raises(UserError, match="crop_pixels=50000"):
        run(backend, question(), crop_pixels=50_000)
