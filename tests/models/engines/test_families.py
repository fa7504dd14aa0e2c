"""Every family on a tiny model of its true classes: the same tests for all of them."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from same_traces import assert_same
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from dualfocus_lmms import Box, Conversation, Question, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import MAKERS, save_tiny_family
from dualfocus_lmms.models.tiny.llava import save_tiny
from dualfocus_lmms.plugins import FAMILIES, load_family, names
from dualfocus_lmms.types import Prompt

pytestmark = pytest.mark.seconds(40)

GOLDEN = Path(__file__).parents[2] / "golden" / "families"
NAMES = sorted(MAKERS.keys() - {"qwen3_5_moe"})  # which differs from qwen3_5 in its experts: see below
FAST = ["shared", "template", "tree"]
REFUSED = {"gemma4": "last 24 tokens.*tokens of an image.*each layer", "qwen3_5": "linear attention"}


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_family(tmp_path_factory.mktemp(request.param), request.param)
    return load_checkpoint(str(folder), device="cpu")


def two_rounds(reply: str) -> Conversation:
    photo, crop = Image.new("RGB", (130, 70), "red"), Image.new("RGB", (60, 90), "blue")
    return Conversation().user("Where is it?", photo).assistant(reply).user("What is it?", crop)


def shares(checkpoint: Checkpoint) -> bool:
    """Whether the engines that share computed prefixes run it."""
    return checkpoint.family.name not in REFUSED


@pytest.mark.parametrize("name", FAST)
def test_a_model_whose_prefixes_cannot_be_shared_is_refused_with_the_reason(loaded: Checkpoint, name: str):
    if shares(loaded):
        assert make_engine(name, loaded).model is loaded.model
        assert loaded.family.engine == "tree"
        return
    with pytest.raises(UserError, match=REFUSED[loaded.family.name] + ".*engine=batched"):
        make_engine(name, loaded)
    assert loaded.family.engine == "batched"


@pytest.mark.parametrize("grounding", ["model", "annotated"])
def test_the_shared_engine_equals_the_naive_one_on_ragged_rows(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]], grounding: str
):
    name, (questions, limits), settings = "shared", asked, Settings.of(grounding=grounding)
    if not shares(loaded):
        if grounding == "annotated":
            pytest.skip("test_batched.py compares it")
        name, questions, limits = "batched", questions[:3], limits[:3]
        settings = dataclasses.replace(
            settings, protocol=dataclasses.replace(settings.protocol, locate_tokens=9)
        )
    shared = make_engine(name, loaded)
    if grounding == "model":  # random weights say no box: whatever they say is read as one
        shared, naive = (with_a_box(make_engine(each, loaded)) for each in (name, "naive"))
    else:
        naive = make_engine("naive", loaded)
    traces = answer_batch(shared, questions, limits, settings)
    for trace, other in zip(traces, answer_batch(naive, questions, limits, settings), strict=True):
        assert_same(trace, other)
        for answer in trace.answers:
            assert answer.lengths is not None
            assert set(answer.text[sum(answer.lengths) :]) <= {"\ufffd"}  # bytes of half a character
    looked = sum(trace.micro is not None for trace in traces)
    assert looked >= len(questions) - 2
    if not shares(loaded):
        return
    assert shared.counts.encodes == len(questions) + looked
    default = make_engine(None, loaded)
    default.box_format = shared.box_format
    for trace, other in zip(answer_batch(default, questions, limits, settings), traces, strict=True):
        assert_same(trace, other)


@pytest.mark.parametrize(
    "settings", [{}, {"crop_pixels": "original"}, {"protocol": "release", "select": "ppl"}]
)
def test_a_traces_sizes_are_what_the_model_got(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]], settings: dict[str, Any]
):
    """Of every image; a crop of a family of one resolution, and of the release, is what was cut out."""
    questions, limits = small_regions(*asked)
    engine = make_engine("naive", loaded)
    shown: list[Image.Image] = []
    own = engine.image_reader

    class Recorder:
        def __call__(self, images: Any) -> Any:
            shown.extend(images)
            return own(images)

        def __getattr__(self, name: str) -> Any:
            return getattr(own, name)

    engine.image_reader = Recorder()
    enlarged = 0
    for question, limit in zip(questions, limits, strict=True):
        shown.clear()
        (trace,) = answer_batch(engine, [question], [limit], Settings.of(grounding="annotated", **settings))
        if trace.crop is None:
            continue
        cut, seen = question.image.crop(trace.crop), shown[-1]
        if engine.resolution is None or settings:
            assert seen.tobytes() == cut.tobytes()
        enlarged += seen.size != cut.size
        if engine.resolution is not None:
            assert trace.input_size == own.input_size(question.image)
            assert trace.crop_size == own.input_size(seen)
            assert trace.micro.usage.tokens >= engine.resolution.tokens(seen.size)
        else:
            assert (trace.input_size, trace.crop_size) == (None, None)
    assert (enlarged == len(questions)) == (engine.resolution is not None and not settings)


def small_regions(
    questions: list[Question], limits: list[StopCriteria]
) -> tuple[list[Question], list[StopCriteria]]:
    """Some of the questions, about larger images and a small box in each."""
    sizes, box = [(200, 150), (90, 100), (150, 64)], Box(0.4, 0.4, 0.55, 0.6)
    chosen = [
        dataclasses.replace(question, image=question.image.resize(size), box=box)
        for question, size in zip(questions, sizes, strict=False)
    ]
    return chosen, limits[: len(sizes)]


@pytest.mark.parametrize("name", FAST)
def test_every_engine_equals_the_naive_one_with_enlarged_crops(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]], name: str
):
    if loaded.family.resolution is None:
        pytest.skip("its encoder or its tiles enlarge every crop")
    if not shares(loaded):
        if name != "tree":
            pytest.skip("refused")
        name = "batched"
    questions, limits = small_regions(*asked)
    settings = Settings.of(grounding="annotated")
    naive = answer_batch(make_engine("naive", loaded), questions, limits, settings)
    traces = answer_batch(make_engine(name, loaded), questions, limits, settings)
    for trace, other in zip(traces, naive, strict=True):
        assert_same(trace, other)
        left, top, right, bottom = trace.crop
        assert trace.crop_size[0] * trace.crop_size[1] > 4 * (right - left) * (bottom - top)


@pytest.mark.parametrize("name", ["tree", "batched"])
def test_every_engine_shows_two_crops_as_the_naive_one_does(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]], name: str
):
    """And the model gets the crops that the trace names."""
    if name != "batched" and not shares(loaded):
        pytest.skip("refused")
    (question, *_), limits = small_regions(*asked)
    question = dataclasses.replace(question, boxes=(Box(0.6, 0.1, 0.9, 0.5), Box(0.1, 0.2, 0.4, 0.7)))
    settings = Settings.of(grounding="annotated", regions="separate")
    naive, engine = (make_engine(one, loaded) for one in ("naive", name))
    shown: list[Image.Image] = []
    render = engine.renderer.render

    def recorded(conversation: Any, picture_ids: Any) -> Any:
        shown[:] = conversation.images
        return render(conversation, picture_ids)

    engine.renderer.render = recorded
    (trace,) = answer_batch(engine, [question], limits[:1], settings)
    assert_same(trace, *answer_batch(naive, [question], limits[:1], settings))
    assert trace.crops == ((14, 22, 86, 113), (114, 9, 186, 81))
    if engine.resolution is None:
        cut = [question.image.crop(crop).tobytes() for crop in trace.crops]
        assert [image.tobytes() for image in shown[1:]] == cut
    else:
        assert trace.crop_sizes == tuple(engine.input_size(image) for image in shown[1:])


class Always:
    """The family's own format, which reads any reply as a box."""

    def __init__(self, box_format: Any) -> None:
        self._format = box_format
        self.frame = box_format.frame

    def read(self, text: str, image_size: Any, input_size: Any = None) -> Box:
        written = self._format.write(Box(0.2, 0.25, 0.75, 0.9), image_size, input_size)
        return self._format.read(written, image_size, input_size)


def with_a_box(engine: Any) -> Any:
    engine.box_format = Always(engine.box_format)
    return engine


def test_one_batch_equals_one_question_at_a_time(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]]
):
    settings, engine = Settings.of(grounding="annotated"), make_engine(None, loaded)
    asked = tuple(column[: 10 if shares(loaded) else 4] for column in asked)
    together = answer_batch(engine, *asked, settings)
    for trace, *one in zip(together, *asked, strict=True):
        (alone,) = answer_batch(engine, [one[0]], [one[1]], settings)
        assert_same(trace, alone)


def test_a_sub_image_joins_the_tiles_where_there_are_any(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]]
):
    questions, limits = asked
    settings = Settings.of(grounding="annotated", subimage="patch")
    shared = make_engine("shared" if shares(loaded) else None, loaded)
    if not loaded.family.local_patches:
        with pytest.raises(UserError):
            answer_batch(shared, questions, limits, settings)
        return
    traces = answer_batch(shared, questions, limits, settings)
    naive = answer_batch(make_engine("naive", loaded), questions, limits, settings)
    tokens, turn = [], Settings.of(grounding="annotated")
    for trace, other, question in zip(traces, naive, questions, strict=True):
        assert_same(trace, other)
        assert trace.prompts.get("micro") in (None, question.prompt)
        if trace.micro:  # one view of 16 tokens, and the question once more
            tokens.append(trace.micro.usage.tokens - 16 - len(question.prompt))
    plain = answer_batch(shared, questions, limits, turn)
    assert sum(trace.micro is not None for trace in plain) == len(tokens) >= 8
    assert max(tokens) < 30


def test_a_box_survives_writing_and_reading(loaded: Checkpoint):
    rng, engine = random.Random(1), make_engine(None, loaded)
    for _ in range(50):
        size = (rng.randint(30, 700), rng.randint(30, 700))
        resized = engine.input_size(Image.new("RGB", size))
        xs, ys = sorted(rng.uniform(0, 1) for _ in range(2)), sorted(rng.uniform(0, 1) for _ in range(2))
        box = Box(xs[0], ys[0], xs[1], ys[1])
        back = engine.box_format.read(engine.box_format.write(box, size, resized), size, resized)
        step = {"resized": 1 / min(resized)}.get(
            engine.box_format.frame, 0.01 if engine.box_format.scale == 1 else 0.001
        )
        assert back.xyxy == pytest.approx(box.xyxy, abs=step)


def test_prompts_are_what_the_checkpoints_own_processor_makes_of_two_images(loaded: Checkpoint):
    reply = loaded.family.box_format.write(Box(0.25, 0.25, 0.5, 0.75), (130, 70), (112, 56))
    conversation = two_rounds(reply)
    engine = make_engine(None, loaded)
    ours = engine.renderer.render(conversation, engine.image_reader.ids)
    processor = loaded.processor
    text = processor.apply_chat_template(conversation.messages(), add_generation_prompt=True, tokenize=False)
    theirs = processor(
        text=[text], images=list(conversation.images), add_special_tokens=False, return_tensors="pt"
    )
    assert list(ours.ids) == theirs["input_ids"][0].tolist()
    assert [start for start, _ in ours.spans] == sorted(start for start, _ in ours.spans)
    for name, value in engine.encoder_input(
        [engine.image_reader([image])[0] for image in ours.images]
    ).items():
        expected = theirs[name].to(value.dtype)
        if loaded.family.name == "idefics3":
            value, expected = tiles(value), tiles(expected)
        assert torch.equal(value, expected)


def tiles(filled: torch.Tensor) -> torch.Tensor:
    """All tiles of rows (n, most tiles of one, ...) in order, without the zeros that fill up a row."""
    flat = filled.flatten(0, 1)
    return flat[flat.flatten(1).any(1)]


def test_the_naive_engine_says_what_transformers_says(loaded: Checkpoint):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 150, 3), dtype=np.uint8)
    question = Conversation().user("What is it?", Image.fromarray(pixels))
    (ours,) = make_engine("naive", loaded).generate(Prompt.batch("macro", [question], [StopCriteria(6)]))
    messages = question.messages()
    messages[0]["content"][0]["image"] = question.images[0]
    inputs = loaded.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs.pop("batch_num_images", None)
    said = loaded.model.generate(
        **inputs, max_new_tokens=6, do_sample=False, suppress_tokens=[loaded.model.config.image_token_id]
    )
    assert list(ours.tokens) == said[0, inputs["input_ids"].shape[1] :].tolist()[: len(ours.tokens)]


def test_golden_prompts(loaded: Checkpoint):
    engine = make_engine(None, loaded)
    reply = loaded.family.box_format.write(Box(0.25, 0.25, 0.5, 0.75), (130, 70), (112, 56))
    rendered = engine.renderer.render(two_rounds(reply), engine.image_reader.ids)
    text, end = "", 0
    for start, length in rendered.spans:
        text += loaded.tokenizer.decode(rendered.ids[end:start]) + f"[picture, {length} tokens]"
        end = start + length
    text += loaded.tokenizer.decode(rendered.ids[end:])
    assert text + "\n" == (GOLDEN / f"{loaded.family.name}.txt").read_text(encoding="utf-8")


def test_the_family_is_found_by_the_checkpoints_type(loaded: Checkpoint):
    assert loaded.model.config.model_type in loaded.family.model_types
    assert loaded.family == load_family(loaded.family.name)


def test_smolvlm_is_of_the_family_of_idefics3(
    tmp_path: Path, asked: tuple[list[Question], list[StopCriteria]]
):
    """Its own processor, with which it is published, would need the package num2words for videos."""
    model, processor = MAKERS["idefics3"]()
    settings = {name: value for name, value in model.config.to_dict().items() if "config" in name}
    for part in ("vision_config", "text_config"):
        settings[part].pop("model_type", None)
    smol = SmolVLMConfig(**settings, image_token_id=model.config.image_token_id, scale_factor=2)
    processor.chat_template = load_family("idefics3").chat_template
    for part in (SmolVLMForConditionalGeneration(smol), processor):
        part.save_pretrained(tmp_path)
    loaded = load_checkpoint(str(tmp_path), device="cpu")
    assert (loaded.family.name, loaded.model.config.model_type) == ("idefics3", "smolvlm")
    questions, limits = (column[:3] for column in asked)
    found = [
        answer_batch(make_engine(name, loaded), questions, limits, Settings.of(grounding="annotated"))
        for name in ("naive", "tree")
    ]
    for trace, other in zip(*found, strict=True):
        assert_same(trace, other)


def test_qwen3_5_with_experts_is_answered_as_without(
    tmp_path: Path, asked: tuple[list[Question], list[StopCriteria]]
):
    """test_batched.py has it with annotated boxes; here the model's replies are read as boxes."""
    loaded = load_checkpoint(str(save_tiny_family(tmp_path, "qwen3_5_moe")), device="cpu")
    assert (loaded.family.name, loaded.model.config.model_type) == ("qwen3_5", "qwen3_5_moe")
    experts = [name for name, _ in loaded.model.named_parameters() if ".mlp.experts." in name]
    assert len(experts) == 2 * loaded.model.config.text_config.num_hidden_layers
    for name in FAST:
        with pytest.raises(UserError, match=r"Qwen3_5Moe.*linear attention.*engine=batched"):
            make_engine(name, loaded)
    questions, limits = (column[:3] for column in asked)
    settings = Settings.of(grounding="model")
    settings = dataclasses.replace(settings, protocol=dataclasses.replace(settings.protocol, locate_tokens=9))
    batched, naive = (
        answer_batch(with_a_box(make_engine(name, loaded)), questions, limits, settings)
        for name in (None, "naive")
    )
    for trace, other in zip(batched, naive, strict=True):
        assert_same(trace, other)
        assert trace.micro is not None


def test_every_family_is_tested_here_or_is_llava():
    assert set(names(FAMILIES)) - set(NAMES) <= {"llava", "generic", "qwen_vl", "example"}


def test_the_generic_family_runs_a_model_that_no_family_knows(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]]
):
    own = loaded.family
    if own.engine == load_family("generic").engine:
        pytest.skip("it has the engine of the generic family")
    generic = dataclasses.replace(
        load_family("generic"), box_format=own.box_format, resolution=own.resolution
    )
    unknown = dataclasses.replace(loaded, family=generic)
    questions, limits = (column[:3] for column in asked)
    settings = Settings.of(grounding="annotated")
    traces = answer_batch(make_engine(None, unknown), questions, limits, settings)
    for trace, other in zip(
        traces, answer_batch(make_engine("naive", loaded), questions, limits, settings), strict=True
    ):
        assert_same(trace, other)
    with pytest.raises(UserError):
        make_engine("shared", unknown)


@pytest.mark.parametrize("crop", [True, False])
def test_a_processor_that_crops_the_middle_of_images_is_refused(tmp_path: Path, crop: bool):
    save_tiny(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config |= {"size": {"shortest_edge": 64}} if crop else {}
    path.write_text(json.dumps(config))
    if crop:
        with pytest.raises(UserError):
            load_checkpoint(str(tmp_path), device="cpu")
    else:
        load_checkpoint(str(tmp_path), device="cpu")
        with pytest.raises(UserError):
            load_checkpoint(str(tmp_path), device="cpu", family="generic")


def test_native_prompts_need_a_family_that_has_them(
    loaded: Checkpoint, asked: tuple[list[Question], list[StopCriteria]]
):
    questions, limits = (column[:2] for column in asked)
    settings, engine = Settings.of(prompts="native"), with_a_box(make_engine(None, loaded))
    if loaded.family.native_locate is None:
        with pytest.raises(UserError):
            answer_batch(engine, questions, limits, settings)
        return
    for trace, question in zip(answer_batch(engine, questions, limits, settings), questions, strict=True):
        assert trace.prompts["locate"] == loaded.family.native_locate.format(question=question.text)
