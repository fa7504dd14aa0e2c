"""GroundingDINO instead of the model's own region, with its true classes and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SwinConfig,
)

from dualfocus_lmms import Box, DualFocusModel, Question, Trace, UserError
from dualfocus_lmms.boxes import distinct, in_reading_order
from dualfocus_lmms.models.grounding.dino import Detector, caption, enclosing
from dualfocus_lmms.models.host.options import ModelOptions
from dualfocus_lmms.testing import FakeBackend

SCRIPT = {"macro": "cat", "micro": "dog"}  # has no reply to Q1
WORDS = ["what", "is", "on", "the", "red", "circle", "table"]


def tokenizer() -> BertTokenizer:
    """Whole words and letters, with [CLS], [SEP], "." and "?" at the ids that GroundingDINO expects."""
    tokens = ["[PAD]", "[UNK]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    special = {101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
    tokens += [f"[unused{number}]" for number in range(len(tokens), 1030)]
    return BertTokenizer(vocab={special.get(number, token): number for number, token in enumerate(tokens)})


def save_detector(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=1030, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12, max_text_len=32,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192})
    GroundingDinoProcessor(images, tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def blind(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that finds nothing: what it sees and what it reads point in opposite directions."""
    folder = tmp_path_factory.mktemp("blind")
    for file in detector.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    for name, sign in (("decoder.layer_norm", 1.0), ("text_enhancer_layer.layer_norm_after", -1.0)):
        (norm,) = {key.rpartition(".")[0] for key in weights if f"{name}." in key}
        weights[f"{norm}.weight"] = torch.zeros_like(weights[f"{norm}.weight"])
        weights[f"{norm}.bias"] = torch.full_like(weights[f"{norm}.bias"], sign)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(text: str, image: Image.Image) -> Question:
    return Question("0", image, text, f"{text}\nOne word.")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is on the Table?", "what is on the table."),
        ("  Where\nis   it ? ", "where is it."),
        ("Name the dog.", "name the dog."),
        ("Is the cat left of the dog. Or not?!", "is the cat left of the dog. or not."),
        ("?", "."),
    ],
)
def test_a_question_is_one_phrase_in_lower_case(question: str, expected: str) -> None:
    assert caption(question) == expected


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], None),
        ([[0.25, 0.5, 0.75, 1.0]], (0.25, 0.5, 0.75, 1.0)),
        ([[0.25, 0.5, 0.5, 0.75], [0.125, 0.625, 0.25, 0.875]], (0.125, 0.5, 0.5, 0.875)),
        ([[-0.5, 0.5, 0.5, 1.5]], (0.0, 0.5, 0.5, 1.0)),
    ],
)
def test_one_box_encloses_all_detections(boxes: list[Any], expected: Any) -> None:
    box = enclosing(torch.tensor(boxes).reshape(-1, 4))
    assert (None if box is None else box.xyxy) == expected


def test_the_box_equals_that_of_the_own_postprocessing_of_transformers(detector: Path) -> None:
    """In pixels, with the image's size given: an independent way to the same box."""
    processor = GroundingDinoProcessor.from_pretrained(detector)
    model = GroundingDinoForObjectDetection.from_pretrained(detector).eval()
    ours = Detector(str(detector))
    found = set()
    for width, height in ((200, 100), (64, 64), (31, 170)):
        image = noise(width, height)
        inputs = processor(images=image, text="what is on the red circle.", return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (result,) = processor.post_process_grounded_object_detection(
            outputs, inputs.input_ids, threshold=0.25, text_threshold=0.25, target_sizes=[(height, width)]
        )
        kept, every = result["boxes"], outputs.pred_boxes[0]
        found.add(0 < len(kept) < len(every))
        left, top = kept[:, 0].min() / width, kept[:, 1].min() / height
        right, bottom = kept[:, 2].max() / width, kept[:, 3].max() / height
        box = ours(ask("What is on the red circle?", image))
        assert box is not None
        assert box.xyxy == pytest.approx(
            [min(max(float(value), 0), 1) for value in (left, top, right, bottom)], abs=1e-5
        )
    assert True in found  # the threshold decides


def test_a_question_longer_than_the_detectors_limit_is_truncated(detector: Path) -> None:
    ours, image = Detector(str(detector)), noise(80, 60)
    text = "what is on the red circle " * 20
    assert ours(ask(text, image)) == ours(ask(f"{text} and the table", image))


def test_all_that_is_found_can_be_shown_apart(detector: Path) -> None:
    """Around the boxes is the one box; with regions=separate the best ones are cropped."""
    image, several = noise(200, 100), Detector(str(detector), several=True)
    boxes = several(ask("What is red?", image))
    assert len(boxes) > 1
    around, one = Box.around(boxes), Detector(str(detector))(ask("What is red?", image))
    assert around.xyxy == pytest.approx(one.xyxy)
    backend = FakeBackend(SCRIPT)
    model = DualFocusModel.on(
        backend, grounding="dino", grounding_checkpoint=str(detector), regions="separate"
    )
    trace = model.ask(image, "What is red?")
    best = distinct(box for box in boxes if box.area > 0)[:4]
    assert [Box(*box) for box in trace.boxes] == in_reading_order(best)
    assert len(backend.calls[-1].conversations[0].images) == 1 + len(best)


def test_the_box_is_cropped_and_recorded(detector: Path, tiny_checkpoint: Path) -> None:
    model = DualFocusModel(
        tiny_checkpoint, device="cpu", grounding="dino", grounding_checkpoint=str(detector), box_margin=0
    )
    image = noise(200, 100)
    traces = model.ask_many([(image, "What is red?"), (noise(50, 90), "What is on it?")], batch_size=2)
    expected = [Detector(str(detector))(ask("What is red?", image)), traces[1].box and Box(*traces[1].box)]
    for trace, box in zip(traces, expected, strict=True):
        assert box is not None
        assert (trace.grounding, trace.box, trace.locate, trace.fallback) == ("dino", box.xyxy, None, None)
        assert trace.given_reply == model.backend.box_format.write(box, trace.image_size)
        assert trace.crop == model.settings.protocol.geometry(box, trace.image_size, 0)
        assert trace.micro is not None
        assert Trace.from_json(trace.to_json()) == trace
    assert model.settings.to_dict()["grounding_checkpoint"] == str(detector)


def test_without_a_detection_the_answer_is_macro(blind: Path) -> None:
    backend = FakeBackend(SCRIPT)
    model = DualFocusModel.on(backend, grounding="dino", grounding_checkpoint=str(blind), box_shift=5)
    trace = model.ask(noise(80, 60), "What is red?")
    assert [call.stage for call in backend.calls] == ["macro"]
    assert (trace.fallback, trace.box, trace.shifted_box, trace.micro) == ("no_box", None, None, None)
    assert (trace.grounding, trace.selection.text) == ("dino", "cat")


def test_an_unusable_detector_raises(detector: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in detector.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    del weights["model.text_projection.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "empty").mkdir()
    for given in ("no/such/detector", tmp_path / "empty", tiny_checkpoint, broken):
        with pytest.raises(UserError) as caught:
            DualFocusModel.on(FakeBackend(SCRIPT), grounding="dino", grounding_checkpoint=str(given))
        assert str(given) in str(caught.value)


def test_a_detector_for_another_grounding_raises(detector: Path) -> None:
    for grounding in ("model", "center", "attention"):
        with pytest.raises(UserError):
            DualFocusModel.on(FakeBackend(SCRIPT), grounding=grounding, grounding_checkpoint=str(detector))
        with pytest.raises(UserError):
            ModelOptions.of(
                {"pretrained": "x", "grounding": grounding, "grounding_checkpoint": "y"}
            ).settings()


def test_the_detector_is_part_of_a_runs_identity(detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(**given: Any) -> dict[str, Any]:
        return ModelOptions.of({"pretrained": "x", **given}).identity()

    assert identity()["grounding_checkpoint"] is None
    hub = identity(grounding="dino")
    assert hub["grounding_checkpoint"] == "IDEA-Research/grounding-dino-base"
    assert identity(grounding="dino", grounding_checkpoint=12)["grounding_checkpoint"] == "12"
    monkeypatch.chdir(detector.parent)
    ways = [identity(grounding="dino", grounding_checkpoint=way) for way in (str(detector), detector.name)]
    assert ways[0] == ways[1] != hub
