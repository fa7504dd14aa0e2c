"""The region that the model itself attends to: the map, the window, the whole path."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageStat
from transformers import AutoModelForImageTextToText

from dualfocus_lmms import (
    Box,
    DualFocusModel,
    Question,
    Settings,
    StopCriteria,
    Trace,
    UserError,
    answer_batch,
)
from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.boxes import WHOLE
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.grounding import GROUNDINGS
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.grounding.attention import (
    GENERIC,
    Grid,
    attention,
    attention_map,
    grid,
    heat_map,
    region,
)
from dualfocus_lmms.models.grounding.bind import bind_grounding
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner, open_traces
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.scenes import make_scene
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.trace import claim_folder

Noise = Callable[[int, int], Image.Image]

SQUARE = Grid(24, 24, "square", 336)
EVEN = Grid(10, 20, "original", 100)


def by_hand(backend: Any, image: Image.Image, text: str) -> torch.Tensor:
    """Attention to every image token, from one eager forward over the prompt: both layers, all heads."""
    model = AutoModelForImageTextToText.from_pretrained(
        backend.model.name_or_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    (image_inputs,) = backend.image_reader([image])
    conversation = Conversation().user(f"{text}\n{SHORT_ANSWER}", image)
    ids = torch.tensor([backend.renderer.render(conversation, lambda _: image_inputs.ids).ids])
    inputs = backend.prompt_input(ids) | backend.encoder_input([image_inputs])
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True, use_cache=False).attentions
    assert len(attentions) == 2
    return torch.stack(
        [layer[0, :, -1, ids[0] == backend.image_token_id].mean(0) for layer in attentions]
    ).mean(0)


@pytest.mark.parametrize("engine_name", ["shared", "naive"])
def test_the_map_equals_the_attention_of_one_whole_forward(
    engine: Callable[[str], Any], engine_name: str, noise: Noise
) -> None:
    backend = engine(engine_name)
    config = backend.model.model.language_model.config
    usual = config._attn_implementation
    image = noise(200, 100)
    (image_inputs,) = backend.image_reader([image])
    assert grid(backend, image_inputs) == Grid(4, 4, "square", 56)
    for text in ("what is it?", GENERIC):
        found = attention(backend, image, image_inputs, text)
        expected = by_hand(backend, image, text).reshape(4, 4)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert config._attn_implementation == usual != "eager"


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llava_next", Grid(4, 4, "original", 56)),
        ("llava_onevision", Grid(4, 4, "original", 56)),
        ("qwen2_vl", Grid(2, 5, "original", 224)),  # 56 x 140 pixels, cells of 28
        ("qwen2_5_vl", Grid(2, 5, "original", 224)),
        ("qwen3_vl", Grid(2, 4, "original", 224)),  # 64 x 128 pixels, cells of 32
    ],
)
def test_families_whose_images_are_stretched_resized_or_tiled(
    family: str, expected: Grid, tmp_path: Path, noise: Noise
) -> None:
    """Tiles, where there are any, come after the whole image and are left out."""
    from dualfocus_lmms.models.tiny.families import save_tiny_family

    backend = make_engine("shared", load_checkpoint(str(save_tiny_family(tmp_path, family)), device="cpu"))
    image = noise(142, 60)
    (image_inputs,) = backend.image_reader([image])
    assert grid(backend, image_inputs) == expected
    found = attention(backend, image, image_inputs, "what is it?")
    whole = by_hand(backend, image, "what is it?")
    cells = expected.rows * expected.columns
    assert (len(whole) > cells) == family.startswith("llava")
    torch.testing.assert_close(found.flatten(), whole[:cells], atol=1e-6, rtol=1e-4)


def test_the_region_is_the_window_of_the_quotient(engine: Callable[[str], Any], noise: Noise) -> None:
    backend = engine("shared")
    image = noise(200, 150)
    question = Question("0", image, "what is it?", "what is it?")
    (image_inputs,) = backend.image_reader([image])
    asked, generic = (attention(backend, image, image_inputs, text) for text in (question.text, GENERIC))
    for name, weights in (("attention", asked / generic), ("attention_plain", asked)):
        grounder = bind_grounding(Settings.of(grounding=name), backend).grounder
        assert grounder is not None
        assert grounder(question) == region(weights, grid(backend, image_inputs), image.size) != WHOLE


@pytest.mark.parametrize("name", ["attention", "attention_plain"])
def test_a_trace_keeps_the_map_that_its_box_is_the_window_of(
    engine: Callable[[str], Any], ragged: Any, name: str
) -> None:
    """The trace is that of a run without the option but for the map, from which the same box is chosen."""
    questions, limits = ragged(6)
    backend = engine("shared")
    kept, plain = (
        answer_batch(
            backend, questions, limits, bind_grounding(Settings.of(grounding=name, keep_maps=keep), backend)
        )
        for keep in (True, False)
    )
    for question, trace, other in zip(questions, kept, plain, strict=True):
        found = trace.attention
        assert found is not None
        assert untimed(replace(trace, attention=None)) == untimed(other)
        (image_inputs,) = backend.image_reader([question.image])
        weights = attention(backend, question.image, image_inputs, question.text)
        if name == "attention":
            weights = weights / attention(backend, question.image, image_inputs, GENERIC)
        cells, size = grid(backend, image_inputs), question.image.size
        assert attention_map(weights, cells, size) == found
        assert region(from_map(found, cells, size), cells, size).xyxy == trace.box
        assert from_map(found, cells, size) == pytest.approx(
            weights.where(from_map(found, cells, size) > 0, 0), abs=(found.highest - found.lowest) / 500
        )
    assert len({trace.box for trace in kept}) > 1


def from_map(found: AttentionMap, cells: Grid, size: tuple[int, int]) -> torch.Tensor:
    """(rows, columns) the attention to all cells of the padded square, 0 where nothing of the image is."""
    weights = torch.zeros(cells.rows, cells.columns)
    left, top = ((1 - max(size) / side) / 2 for side in size)
    column = round((found.area[0] - left) * size[0] / max(size) * cells.columns)
    row = round((found.area[1] - top) * size[1] / max(size) * cells.rows)
    weights[row : row + found.rows, column : column + found.columns] = torch.tensor(found.values)
    return weights


def untimed(trace: Trace) -> str:
    """A trace as its line, without what its answers took."""
    values = json.loads(trace.to_json())
    for stage in ("macro", "micro"):
        if values[stage]:
            del values[stage]["usage"]
    return json.dumps(values)


def test_a_run_that_resumes_keeps_the_maps_of_all(
    engine: Callable[[str], Any], ragged: Any, tmp_path: Path
) -> None:
    """Half of the questions, then all in the same folder: the lines are those of one run."""
    questions, limits = ragged(6)
    requests = [
        Request(question.key, limit, lambda question=question: question)
        for question, limit in zip(questions, limits, strict=True)
    ]
    backend = engine("shared")
    settings = bind_grounding(Settings.of(grounding="attention", keep_maps=True), backend)

    def run(folder: str, part: list[Request]) -> list[str]:
        claim_folder(tmp_path / folder, settings.to_dict(), resume=True)
        writer, finished, damaged = open_traces(str(tmp_path / folder), 0, resume=True)
        assert damaged == []
        try:
            return [untimed(trace) for trace in Runner(backend, settings, 1, writer, finished).run(part)]
        finally:
            writer.close()

    run("resumed", requests[:3])
    assert run("resumed", requests) == run("whole", requests)
    assert all('"attention": {' in line for line in run("resumed", requests))


def test_answers_equal_those_with_the_same_box_given(engine: Callable[[str], Any], ragged: Any) -> None:
    """Reading the attention changes no state: answers are as if the box were annotated."""
    questions, limits = ragged(6)
    backend = engine("shared")
    settings = bind_grounding(Settings.of(grounding="attention"), backend)
    traces = answer_batch(backend, questions, limits, settings)
    boxed = [
        replace(question, box=Box(*trace.box)) for question, trace in zip(questions, traces, strict=True)
    ]
    given = answer_batch(backend, boxed, limits, Settings.of(grounding="annotated"))
    alone = [
        answer_batch(backend, [one], [limit], settings)[0]
        for one, limit in zip(questions, limits, strict=True)
    ]
    for trace, same, single in zip(traces, given, alone, strict=True):
        assert (trace.grounding, trace.locate) == ("attention", None)
        assert (trace.box, trace.crop, trace.given_reply) == (same.box, same.crop, same.given_reply)
        assert trace.box == single.box
        assert trace.micro is not None
        assert trace.micro.tokens == same.micro.tokens == single.micro.tokens
        assert trace.micro.logprobs == pytest.approx(same.micro.logprobs, abs=1e-6)


# --- the window --------------------------------------------------------------------------------------------


def hot(cells: Grid, *cells_at: tuple[int, int], value: float = 9.0) -> torch.Tensor:
    weights = torch.ones(cells.rows, cells.columns)
    for row, column in cells_at:
        weights[row, column] = value
    return weights


def test_an_image_not_larger_than_the_encoders_input_is_its_own_region() -> None:
    for size in ((336, 336), (100, 336), (1, 1), (336, 20)):
        assert region(hot(SQUARE, (3, 3)), SQUARE, size) == WHOLE
    assert region(hot(SQUARE, (3, 3)), SQUARE, (400, 336)) != WHOLE


def test_the_window_lies_around_the_peak() -> None:
    """2400 x 1200: cells of 120 pixels in the original's frame, windows of 100 pixels are one cell."""
    box = region(hot(EVEN, (4, 7)), EVEN, (2400, 1200))
    assert box.xyxy == pytest.approx((850 / 2400, 490 / 1200, 950 / 2400, 590 / 1200))


def test_the_side_with_the_highest_contrast_is_chosen() -> None:
    """Cells of 50 pixels, windows of 100 to 200: four hot cells in a square are 2 x 2, nine are 3 x 3."""
    size = (1000, 500)
    four = region(hot(EVEN, *((row, column) for row in (4, 5) for column in (7, 8))), EVEN, size)
    assert four.xyxy == pytest.approx((350 / 1000, 200 / 500, 450 / 1000, 300 / 500))
    nine = region(hot(EVEN, *((row, column) for row in (4, 5, 6) for column in (7, 8, 9))), EVEN, size)
    assert (nine.x0 + nine.x1, nine.y0 + nine.y1) == pytest.approx((2 * 0.425, 2 * 0.55))
    assert 1000 * (nine.x1 - nine.x0) == pytest.approx(160)


@pytest.mark.parametrize("corner", [(0, 0), (0, 19), (9, 0), (9, 19)])
def test_a_window_at_the_border_lies_inside(corner: tuple[int, int]) -> None:
    box = region(hot(EVEN, corner), EVEN, (1000, 500))
    assert box == box.clip()
    assert (box.x0 == 0, box.x1 == 1) == (corner[1] == 0, corner[1] == 19)
    assert (box.y0 == 0, box.y1 == 1) == (corner[0] == 0, corner[0] == 9)
    assert 1000 * (box.x1 - box.x0) == pytest.approx(500 * (box.y1 - box.y0))


@pytest.mark.parametrize(("size", "turned"), [((2400, 1200), False), ((1200, 2400), True)])
def test_the_padding_of_a_square_is_not_part_of_the_image(size: tuple[int, int], turned: bool) -> None:
    """Cells of 100 pixels; the image takes the middle 12 rows (columns). The padding is hottest."""
    weights = hot(SQUARE, (8, 3))
    weights[:6] = weights[18:] = 50
    box = region(weights.T if turned else weights, SQUARE, size)
    along, across = ((box.y0, box.y1), (box.x0, box.x1)) if turned else ((box.x0, box.x1), (box.y0, box.y1))
    assert box == box.clip()
    assert along[0] < 350 / 2400 < along[1]
    assert across[0] < 250 / 1200 < across[1]
    assert 2400 * (along[1] - along[0]) == pytest.approx(1200 * (across[1] - across[0]))


def test_what_every_question_attends_to_cancels_out() -> None:
    """A cell that draws attention with every question is plain attention's peak, and not the quotient's."""
    sink = hot(EVEN, (1, 1), value=1000.0)
    question_weights = sink.clone()
    question_weights[6, 12] = 30
    size = (2400, 1200)
    plain, relative = region(question_weights, EVEN, size), region(question_weights / sink, EVEN, size)
    assert plain.x0 < 1.5 / 20 < plain.x1
    assert relative.x0 < 12.5 / 20 < relative.x1
    assert relative.y0 < 6.5 / 10 < relative.y1


# --- a model that has learned to look ----------------------------------------------------------------------


def test_the_small_model_attends_to_the_thing_in_the_question() -> None:
    """Mean overlap with the shape that 40 questions ask for: 0.43 measured, against 0.06 of a random box."""
    model = DualFocusModel("dualfocus-nano", device="cpu", grounding="attention_plain")
    grounder = model.settings.grounder
    pairs = [
        (Question(f"{scene.name} {item.question}", scene.image(), item.question, item.question), item.box)
        for scene in (make_scene("test", 0, number) for number in range(14))
        for item in scene.questions
        if item.kind == "detail"
    ][:40]
    overlap = {
        name: sum(box.iou(way(question)) for question, box in pairs) / len(pairs)
        for name, way in (
            ("attended", grounder),
            *((name, GROUNDINGS[name]) for name in ("center", "random")),
        )
    }
    assert overlap["attended"] > 0.3
    assert overlap["attended"] > 3 * max(overlap["center"], overlap["random"])


def test_the_map_is_brightest_at_the_thing_in_the_question() -> None:
    model = DualFocusModel("dualfocus-nano", device="cpu", grounding="attention_plain")
    scene = make_scene("test", 0, 0)
    item = next(item for item in scene.questions if item.kind == "detail")
    found = model.heat_map(scene.image(), item.question)
    assert found is not None
    assert (found.mode, found.size, found.getextrema()) == ("L", scene.image().size, (0, 255))
    inside = found.crop(
        [round(value * side) for value, side in zip(item.box.xyxy, found.size * 2, strict=True)]
    )
    assert ImageStat.Stat(inside).mean[0] > 3 * ImageStat.Stat(found).mean[0]
    assert DualFocusModel.on(model.backend).heat_map(scene.image(), item.question) is None


def test_a_map_has_the_shape_of_its_image_without_the_padding(
    engine: Callable[[str], Any], noise: Noise
) -> None:
    backend = engine("shared")
    assert heat_map(backend, noise(200, 150), "what is it?").size == (200, 150)
    assert heat_map(backend, noise(3000, 20), "what is it?").size == (1024, 7)


# --- where it is impossible --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention", "attention_plain"])
def test_a_backend_without_a_local_model_raises(name: str) -> None:
    with pytest.raises(UserError):
        DualFocusModel.on(FakeBackend({"macro": "cat"}), grounding=name)


def test_settings_without_a_bound_model_raise_at_the_first_question() -> None:
    question = Question("0", Image.new("RGB", (9, 9)), "What is it?", "What is it?")
    for name in ("dino", "attention", "attention_plain"):
        with pytest.raises(UserError):
            answer_batch(
                FakeBackend({"macro": "cat"}), [question], [StopCriteria(3)], Settings.of(grounding=name)
            )


def test_a_family_whose_images_may_be_cropped_raises(checkpoint: Any) -> None:
    cutting = replace(checkpoint, family=replace(checkpoint.family, image="as_is"))
    with pytest.raises(UserError):
        bind_grounding(Settings.of(grounding="attention"), make_engine("shared", cutting))


def test_a_model_without_a_known_grid_raises(
    engine: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = engine("shared")
    monkeypatch.setattr(backend.model.config, "model_type", "tiles")
    with pytest.raises(UserError):
        bind_grounding(Settings.of(grounding="attention"), backend)
