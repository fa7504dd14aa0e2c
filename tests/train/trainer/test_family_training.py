"""Training of every family's tiny model: what is learned is what inference says, and the result loads."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger
from PIL import Image
from transformers import TrainerCallback

from dualfocus_lmms import Settings, StopCriteria, answer_batch
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import MAKERS, save_tiny_family
from dualfocus_lmms.protocol import load_protocol
from dualfocus_lmms.train.data.conversations import IGNORED, from_sample, question_of
from dualfocus_lmms.train.data.samples import (
    SampleImage,
    TrainingSample,
    read_samples,
    shard_path,
    write_shard,
)
from dualfocus_lmms.train.trainer.recipe import load_recipe, training_arguments
from dualfocus_lmms.train.trainer.trainer import build, train

pytestmark = pytest.mark.seconds(50)

NAMES = sorted(MAKERS)


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp(request.param), request.param)


def overrides(folder: Path, samples: str, output: Path, *more: str) -> list[str]:
    return [
        f"model={folder}",
        f"output={output}",
        f"data.0.path={samples}",
        f"data.1.path={samples}",
        "evaluation=null",
        "protocol=paper",
        "steps=2",
        "batch_size=4",
        "micro_batch_size=2",
        "max_length=2048",
        "training.disable_tqdm=true",
        "training.logging_steps=1",
        *more,
    ]


def test_a_padded_batch_gives_each_reply_the_log_probabilities_of_inference(
    folder: Path, sample_folders: Any, tmp_path: Path
):
    samples = str(sample_folders[0])
    recipe = load_recipe("tiny_cpu", overrides(folder, samples, tmp_path, "train=[language_model]"))
    run = build(recipe, training_arguments(recipe, 1))
    checkpoint, engine = run.checkpoint, make_engine("naive", run.checkpoint)
    checkpoint.model.eval()
    rows = read_samples(samples)[:3]
    protocol, form = load_protocol("paper"), checkpoint.family.box_format
    rows.append(replace(rows[0], boxes=(rows[0].box,) * 2, crops=(rows[0].crop,) * 2))
    examples = [
        from_sample(row, protocol, form, "", input_size=engine.input_size, separate=bool(row.boxes))
        for row in rows
    ]
    encoder = run.mixture.encoder
    batch = run.trainer.data_collator([encoder.encode(example) for example in examples])
    labels = batch.pop("labels")
    with torch.no_grad():
        scores = checkpoint.model(**batch).logits[:, :-1].log_softmax(-1)  # (B, L - 1, V)
    for number, example in enumerate(examples):
        learned = labels[number, 1:] != IGNORED
        said = scores[number, learned].gather(-1, labels[number, 1:][learned][:, None])[:, 0]
        (expected,) = engine.score([example.conversation])
        assert said.tolist() == pytest.approx([value for turn in expected for value in turn], abs=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_two_steps_and_the_checkpoint_answers(folder: Path, sample_folders: Any, tmp_path: Path, lora: bool):
    if not lora and folder.name.startswith("qwen3_5_moe"):
        pytest.skip("tried with qwen3_vl_moe")
    parts = ("train=[projector]", "lora={r: 4}") if lora else ("train=[projector, language_model]",)
    samples = str(sample_folders[0])
    made = train("tiny_cpu", overrides(folder, samples, tmp_path / "run", *parts))
    before, after = (load_checkpoint(str(path), device="cpu") for path in (folder, made))
    changed = {
        name
        for (name, old), new in zip(
            before.model.state_dict().items(), after.model.state_dict().values(), strict=True
        )
        if not torch.equal(old, new)
    }
    assert any("q_proj" in name for name in changed)
    assert any(
        part in name for name in changed for part in ("projector", "merger", "connector", "embed_vision")
    )
    frozen = [
        name
        for name in changed
        if any(part in name for part in ("vision_tower", "vision_model", "visual.blocks"))
    ]
    assert frozen == []
    question = question_of(read_samples(samples)[0], "")
    engine = make_engine(None, after)
    (trace,) = answer_batch(engine, [question], [StopCriteria(4)], Settings.of(grounding="center"))
    assert trace.micro is not None


class Gradients(TrainerCallback):
    """Keeps what a step learns with: the gradient of every parameter, and the loss that is logged."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.loss = math.nan

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.found = {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        self.loss = logs.get("loss", self.loss)


def one_step(folder: Path, samples: str, output: Path, at_once: int, *more: str) -> Gradients:
    """A step of 8 rows of different lengths, `at_once` in a forward."""
    given = ("steps=1", "batch_size=8", f"micro_batch_size={at_once}", "training.max_grad_norm=0", *more)
    parts = ("train=[projector, language_model]", *given)
    recipe = load_recipe("tiny_cpu", overrides(folder, samples, output, *parts))
    run, gradients = build(recipe, training_arguments(recipe, 1)), Gradients()
    run.trainer.add_callback(gradients)
    run.trainer.train()
    return gradients


@pytest.mark.parametrize("box_weight", [1, 3])
def test_a_step_is_the_mean_over_its_tokens_however_it_is_divided(
    folder: Path, sample_folders: Any, tmp_path: Path, box_weight: int
):
    if box_weight == 1 and folder.name.startswith(("gemma4", "idefics3", "qwen3_5")):
        pytest.skip("tried with weights")
    samples, weight = str(sample_folders[0]), f"box_weight={box_weight}"
    whole = one_step(folder, samples, tmp_path / "whole", 8, weight)
    divided = one_step(folder, samples, tmp_path / "divided", 1, weight)
    assert divided.loss == pytest.approx(whole.loss, abs=1e-5)
    assert divided.found.keys() == whole.found.keys()
    squares = [(divided.found[name] - whole.found[name]).square().sum().item() for name in whole.found]
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in whole.found.values()))
    assert math.sqrt(sum(squares)) < 1e-4 * norm


def thin(sample: TrainingSample) -> TrainingSample:
    """The sample with a crop of 1 x 300 pixels, as an older version cut it."""
    file = io.BytesIO()
    Image.new("RGB", (1, 300)).save(file, "PNG")
    return replace(sample, crop=SampleImage(file.getvalue(), "thin.png"))


def test_an_image_that_the_processor_refuses_costs_one_sample(make_samples: Any, tmp_path: Path):
    model = save_tiny_family(tmp_path / "qwen", "qwen3_vl")
    samples = make_samples(4)
    (tmp_path / "samples").mkdir()
    write_shard([thin(samples[0]), *samples[1:]], shard_path(tmp_path / "samples", 0))
    told: list[str] = []
    sink = logger.add(told.append, level="WARNING", format="{message}")
    path, parts = str(tmp_path / "samples"), "train=[projector, language_model]"
    try:
        made = train("tiny_cpu", overrides(model, path, tmp_path / "run", parts))
    finally:
        logger.remove(sink)
    assert (made / "config.json").exists()
    history = json.loads((made.parent / "trainer_state.json").read_text())["log_history"]
    assert [entry["refused"] for entry in history if "refused" in entry] == [1]
    assert any("Example 0 of 'samples' is left out" in line and "1 x 300" in line for line in told)
    assert any("refuses: 1, left out" in line for line in told)
