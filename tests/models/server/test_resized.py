"""Families whose boxes are pixels of the resized image: the checkpoint's image processor tells its size."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms import Box, BoxFormat, Question, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.families.qwen2_5_vl import QWEN2_5_VL
from dualfocus_lmms.models.server.client import ServerBackend, answer_each
from dualfocus_lmms.models.server.host import Server
from dualfocus_lmms.models.server.images import DataUrls, load_input_size, load_resolution
from dualfocus_lmms.models.tiny.families import save_tiny_family
from dualfocus_lmms.trace import read_settings
from dualfocus_lmms.zoom import DynamicResolution

SIZES = [(64, 100), (200, 150), (90, 30), (57, 57), (300, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp("qwen2_5_vl"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def local(folder: Path) -> Any:
    return make_engine("naive", load_checkpoint(str(folder), device="cpu"))


@pytest.fixture
def served_engine(local: Any) -> Any:
    return local


@pytest.fixture
def backend(client: Callable[..., Any], folder: Path) -> ServerBackend:
    return ServerBackend(
        client(),
        "tiny",
        QWEN2_5_VL,
        input_size=load_input_size(str(folder)),
        resolution=load_resolution(str(folder), QWEN2_5_VL),
    )


@dataclass(frozen=True)
class Told:
    """The family's notation, which reads any reply as one box, in whole pixels of the resized image."""

    form: BoxFormat
    frame: str = "resized"

    def read(self, text: str, image_size: Any, input_size: Any = None) -> Box:
        written = self.form.write(Box(0.21, 0.27, 0.73, 0.91), image_size, input_size)
        return self.form.read(written, image_size, input_size)


def asked() -> list[Question]:
    pixels = np.random.default_rng(0)
    return [
        Question(
            str(number),
            Image.fromarray(pixels.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)),
            "Where is it?",
            f"What is it? {number}",
            box=Box(0.1, 0.2, 0.87, 0.95),
        )
        for number, size in enumerate(SIZES)
    ]


@pytest.mark.parametrize("grounding", ["model", "annotated"])
def test_boxes_crops_and_answers_are_the_local_ones(stub, backend, local, monkeypatch, grounding):
    """What random weights say is read as a box. It is no text that its tokens can be told from, so that the
    second looks are compared where the box is given."""
    if grounding == "model":
        for one in (backend, local):
            monkeypatch.setattr(one, "box_format", Told(one.box_format))
    questions, settings = asked(), Settings.of(grounding=grounding)
    limits = [StopCriteria(6)] * len(questions)
    expected = answer_batch(local, questions, limits, settings)
    traces = {trace.question_id: trace for trace in answer_each(backend, questions, limits, settings)}
    for other in expected:
        trace = traces[other.question_id]
        assert other.crop is not None
        assert (trace.box, trace.crop, trace.given_reply) == (other.box, other.crop, other.given_reply)
        assert (trace.input_size, trace.crop_size) == (other.input_size, other.crop_size)
        for answer, same in zip(trace.answers[:2], other.answers[:2], strict=True):
            assert (answer.text, answer.tokens) == (same.text, same.tokens)
            assert answer.logprobs == pytest.approx(same.logprobs, abs=1e-4)


def test_the_size_is_that_of_the_local_engine_and_not_the_images_own(folder, local):
    input_size = load_input_size(str(folder))
    for size in SIZES:
        image = Image.new("RGB", size)
        assert input_size(image) == local.input_size(image) != size


def test_an_image_that_the_processor_refuses_is_refused(folder):
    with pytest.raises(UserError):
        load_input_size(str(folder))(Image.new("RGB", (2000, 2)))


def test_such_a_family_needs_the_processor(client):
    with pytest.raises(UserError, match="processor="):
        ServerBackend(client(), "tiny", QWEN2_5_VL)


def test_a_processor_that_tells_no_size_is_refused(tmp_path, tiny_checkpoint):
    for nothing in (tmp_path, tmp_path / "gone", tiny_checkpoint):
        with pytest.raises(UserError):
            load_input_size(str(nothing))


def test_the_processor_is_a_model_argument_and_part_of_a_runs_identity(stub, folder, tmp_path):
    given = {"base_url": stub.url, "model": "tiny", "family": "qwen2_5_vl", "trace": str(tmp_path / "run")}
    Server(**given, processor=str(folder))
    settings = read_settings(tmp_path / "run")
    assert settings["processor"] == str(folder.resolve())
    assert settings["image_processor"] is not None
    Server(**given, processor=str(folder), resume=True)
    other = save_tiny_family(tmp_path / "other", "qwen2_5_vl")
    (tmp_path / "run" / "rank0.jsonl").write_text("an answer\n")  # else the next run takes the folder
    with pytest.raises(UserError):
        Server(**given, processor=str(other), resume=True)
    with pytest.raises(UserError, match="processor="):
        Server(**given | {"trace": str(tmp_path / "none")})
    with pytest.raises(UserError, match="leave it out"):
        Server(**given | {"family": "llava"}, processor=str(folder))


def test_crops_are_enlarged_by_the_processor_or_by_what_the_family_documents(stub, folder, tmp_path):
    given = {"base_url": stub.url, "model": "tiny", "family": "qwen2_vl"}
    assert Server(**given)._runner.backend.resolution == QWEN2_5_VL.resolution
    own = DynamicResolution(28, 56 * 56, 112 * 112)
    assert Server(**given, processor=str(folder))._runner.backend.resolution == own
    backend = Server(**given, processor=str(folder), max_pixels=8000, trace=str(tmp_path))._runner.backend
    assert backend.resolution == DynamicResolution(28, 56 * 56, 8000)
    settings = read_settings(tmp_path)
    assert {name: settings[name] for name in ("crop_pixels", "min_pixels", "max_pixels")} == {
        "crop_pixels": "auto",
        "min_pixels": None,
        "max_pixels": 8000,
    }
    with pytest.raises(UserError, match="max_pixels=8000"):
        Server(**given | {"family": "llava"}, max_pixels=8000)


def test_bounds_resize_images_before_they_are_sent():
    image = asked()[1].image  # 200 x 150
    resolution = DynamicResolution(28, 56 * 56, 8000)
    url = DataUrls(False, resolution)(image)
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as sent:
        assert sent.size == resolution.fit(image.size) == (84, 56)
        assert sent.tobytes() == image.resize((84, 56), Image.Resampling.BICUBIC).tobytes()
