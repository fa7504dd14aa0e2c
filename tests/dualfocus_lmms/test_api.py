"""Questions from Python: what reaches the model, in which order, and what comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import dualfocus_lmms
from dualfocus_lmms import DualFocusModel, GenerationError, UserError
from dualfocus_lmms.api import load_image
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.testing import FakeBackend, Reply

SCRIPT = {"macro": Reply("red", (-0.7,)), "locate": "[0.25, 0.25, 0.50, 0.75]", "micro": "blue"}
IMAGE = Image.new("RGB", (40, 20), "red")


def test_ask_returns_a_trace():
    backend = FakeBackend(SCRIPT)
    trace = DualFocusModel.on(backend).ask(IMAGE, "What colour is it?")
    assert trace.selection.text == "blue"
    assert trace.ppl == pytest.approx({"macro": 2.01375, "micro": 1.10517}, abs=1e-5)
    assert (trace.box, trace.crop) == ((0.25, 0.25, 0.5, 0.75), (10, 5, 20, 15))
    assert [call.stage for call in backend.calls] == ["macro", "locate", "micro"]
    assert [call.limits[0].max_new_tokens for call in backend.calls] == [128, 64, 128]


@pytest.mark.parametrize(
    ("instruction", "added"),
    [(None, f"\n{SHORT_ANSWER}"), ("", ""), ("Answer in French.", "\nAnswer in French.")],
)
def test_the_instruction_follows_the_question_in_both_pathways_and_not_in_locate(
    instruction: str | None, added: str
):
    prompts = DualFocusModel.on(FakeBackend(SCRIPT)).ask(IMAGE, "What?", instruction, 5).prompts
    assert prompts["macro"] == f"What?{added}"
    assert prompts["locate"].endswith(": What?")
    assert prompts["micro"].endswith(f": What?{added}")


def test_the_settings_are_those_of_settings_of():
    model = DualFocusModel.on(FakeBackend(SCRIPT), protocol="release", select="macro", box_margin=3)
    assert (model.settings.protocol.name, model.settings.rule_name, model.settings.box_margin) == (
        "release",
        "macro",
        3,
    )
    assert model.ask(IMAGE, "What?").selection.text == "red"


def test_ask_many_asks_in_batches_and_answers_in_order(tmp_path: Path):
    def echo(stage: str, conversation: Conversation) -> str:
        return conversation.turns[0].text if stage == "macro" else "no box"

    IMAGE.save(tmp_path / "a.png")
    backend = FakeBackend(echo)
    pairs = [(IMAGE, "one"), (tmp_path / "a.png", "two"), (str(tmp_path / "a.png"), "three")]
    traces = DualFocusModel.on(backend).ask_many(iter(pairs), batch_size=2, instruction="")
    assert [trace.selection.text for trace in traces] == ["one", "two", "three"]
    assert [trace.key for trace in traces] == [{"id": "0"}, {"id": "1"}, {"id": "2"}]
    assert len({trace.image_hash for trace in traces}) == 1
    assert [len(call.conversations) for call in backend.calls if call.stage == "macro"] == [2, 1]


def test_ask_many_of_nothing():
    assert DualFocusModel.on(FakeBackend(SCRIPT)).ask_many([], 4) == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.ask("none.png", "What?"), "No image exists at 'none.png': check the path"),
        (lambda model: model.ask("https://host.example/a.png", "What?"), "web address"),
        (lambda model: model.ask(None, "What?"), "NoneType"),
        (lambda model: model.ask(np.zeros((4, 4, 3)), "What?"), "Image.fromarray"),
        (lambda model: model.ask(IMAGE, None), "NoneType"),
        (lambda model: model.ask_many([IMAGE]), "pair of image and question"),
        (lambda model: DualFocusModel("none", protocl="paper"), "Did you mean protocol"),
        (lambda model: DualFocusModel(None), "pretrained"),
        (lambda model: model.ask(IMAGE, " "), "Question '0' is empty"),
        (lambda model: model.ask(IMAGE, "What?", max_new_tokens=0), "max_new_tokens must be .* got 0"),
        (lambda model: model.ask_many([(IMAGE, "What?")], 0), "batch_size must be .* got 0"),
        (lambda model: model.ask_many([IMAGE], "What?"), "batch_size must be .* got 'What"),
        (lambda model: model.ask_many(None), "Pairs .* got NoneType"),
        (lambda model: model.ask_many({"photo.jpg": "What?"}), "Pairs .* got dict"),
        (lambda model: model.ask(IMAGE, "What?", ["briefly"]), "instruction is a text or None, got list"),
        (lambda model: model.ask(IMAGE, "What?", None, "10"), "max_new_tokens must be .* got '10'"),
        (lambda model: DualFocusModel("none", protocol="papr"), "Unknown protocol 'papr': choose one of pap"),
        (lambda model: DualFocusModel("/none/here"), "Cannot load the checkpoint '/none/here'"),
        (lambda model: DualFocusModel("/none/here", device="abacus"), "Device 'abacus' is not usable here"),
        (lambda model: DualFocusModel("/none/here", device_map="balanced"), "device_map 'balanced'.* auto"),
        (lambda model: DualFocusModel("/none", device="cpu", device_map="auto"), "device=cpu .*device_map"),
    ],
)
def test_mistakes_are_user_errors(ask, message: str):
    with pytest.raises(UserError, match=message):
        ask(DualFocusModel.on(FakeBackend(SCRIPT)))


def test_a_failure_of_the_model_is_passed_on():
    def broken(stage: str, conversation: Conversation) -> str:
        raise GenerationError("no numbers")

    with pytest.raises(GenerationError, match="no numbers"):
        DualFocusModel.on(FakeBackend(broken)).ask(IMAGE, "What?")


def test_an_image_is_turned_upright(tmp_path: Path):
    """A photo taken with the camera held sideways: 40 x 20 stored, 20 x 40 seen."""
    stored = Image.new("RGB", (40, 20), "red")
    stored.paste((0, 0, 255), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise
    stored.save(tmp_path / "turned.png", exif=exif)
    seen = load_image(tmp_path / "turned.png")
    assert seen.size == (20, 40)
    assert (seen.getpixel((10, 2)), seen.getpixel((10, 30))) == ((0, 0, 255), (255, 0, 0))
    with Image.open(tmp_path / "turned.png") as opened:
        assert load_image(opened).tobytes() == seen.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "I;16"])
def test_any_mode_becomes_rgb(mode: str, tmp_path: Path):
    image = Image.new(mode, (3, 2))
    image.save(tmp_path / "a.tiff")
    assert load_image(tmp_path / "a.tiff").mode == load_image(image).mode == "RGB"


def test_16_bits_of_grey_keep_their_shades_and_numbers_without_a_white_are_refused(tmp_path: Path):
    Image.fromarray(np.array([[0, 256, 40_000, 65_535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 156, 255]
    with pytest.raises(UserError):
        load_image(Image.new("F", (3, 2)))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "half", "folder"],
)
def test_an_unreadable_image_is_named(
    content: bytes | str,
    tmp_path: Path,
    noise: Callable[[int, int], Image.Image],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as the host sets it
    path = tmp_path / "a.png"
    if content == "folder":
        path.mkdir()
    elif content == "half":
        noise(50, 50).save(path)
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"The image '.*a\.png' cannot be read \(.*: give an image file"):
        load_image(path)


def test_the_name_is_public_and_loads_no_torch():
    code = "import sys; from dualfocus_lmms import DualFocusModel; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert dir(dualfocus_lmms) == sorted(dualfocus_lmms.__all__)
    assert {"DualFocusModel", "Trace", "read_traces"} <= set(dir(dualfocus_lmms))
    with pytest.raises(AttributeError, match="has no attribute 'DualFocusModels'"):
        _ = dualfocus_lmms.DualFocusModels


def test_on_a_real_checkpoint(tiny_checkpoint: Path):
    """Asked one by one or together, by either engine, the answers and their perplexities are the same."""
    images = [Image.new("RGB", (60, 40), color) for color in ("red", "blue", "white")]
    pairs = [(image, f"Is it {word}?") for image, word in zip(images, "abc", strict=True)]
    model = DualFocusModel(tiny_checkpoint, device="cpu")
    alone = [model.ask(*pair, max_new_tokens=6) for pair in pairs]
    together = model.ask_many(pairs, 3, max_new_tokens=6)
    naive = DualFocusModel(tiny_checkpoint, device="cpu", engine="naive").ask_many(pairs, max_new_tokens=6)
    assert all(trace.selection.text for trace in alone)
    for other in (together, naive):
        assert [trace.selection.text for trace in other] == [trace.selection.text for trace in alone]
        assert [trace.box for trace in other] == [trace.box for trace in alone]
        for one, two in zip(alone, other, strict=True):
            assert two.ppl == pytest.approx(one.ppl, rel=1e-4)


def test_a_model_that_is_spread_answers_as_one_on_a_single_device(tiny_checkpoint: Path):
    image = Image.new("RGB", (60, 40), "red")
    whole, spread = (
        DualFocusModel(tiny_checkpoint, **place).ask(image, "Is it red?", max_new_tokens=6)
        for place in ({"device": "cpu"}, {"device_map": "auto"})
    )
    assert spread.selection.text == whole.selection.text
    assert spread.ppl == pytest.approx(whole.ppl, rel=1e-3)
