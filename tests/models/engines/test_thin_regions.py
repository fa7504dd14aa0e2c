"""A region thinner than a processor takes: whatever the box, the question is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dualfocus_lmms import Answer, Box, Question, Settings, StopCriteria, answer_batch
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import MAKERS, save_tiny_family
from dualfocus_lmms.types import Prompt

pytestmark = pytest.mark.seconds(20)

SIDE = 1000
REPLIES = ['{"bbox_2d": [0, 500, 1000, 502]}', '{"bbox_2d": [999, 0, 1000, 1000]}']


@pytest.fixture(scope="module", params=sorted(MAKERS))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_family(tmp_path_factory.mktemp(request.param), request.param)
    return load_checkpoint(str(folder), device="cpu")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")


@pytest.mark.parametrize("box", [Box(0, 0.5, 1, 0.502), Box(0.999, 0, 1, 1)])
def test_an_annotated_region_may_be_thin(loaded: Checkpoint, image: Image.Image, box: Box):
    question = Question("1", image, "What?", "What?\nBe short.", box=box)
    settings = Settings.of(grounding="annotated")
    (trace,) = answer_batch(make_engine(None, loaded), [question], [StopCriteria(2)], settings)
    assert trace.micro is not None
    assert trace.crop == ((0, 499, SIDE, 504) if box.y0 else (SIDE - 5, 0, SIDE, SIDE))
    assert trace.box == box.xyxy


@pytest.mark.parametrize("text", REPLIES)
def test_what_the_model_says_never_ends_a_run(tmp_path: Path, image: Image.Image, text: str):
    checkpoint = load_checkpoint(str(save_tiny_family(tmp_path, "qwen3_vl")), device="cpu")
    engine = make_engine("naive", checkpoint)
    tokens = tuple(checkpoint.tokenizer(text, add_special_tokens=False).input_ids)
    generate = engine.generate

    def located(prompts: Sequence[Prompt]) -> list[Answer]:
        written = {"text": text, "tokens": tokens, "logprobs": (0.0,) * len(tokens), "lengths": None}
        return [
            replace(answer, **written) if prompt.stage == "locate" else answer
            for prompt, answer in zip(prompts, generate(prompts), strict=True)
        ]

    engine.generate = located
    question = Question("1", image, "What?", "What?\nBe short.")
    (trace,) = answer_batch(engine, [question], [StopCriteria(2)], Settings.of())
    assert (trace.locate.text, trace.fallback) == (text, None)
    assert trace.micro is not None
    width, height = trace.crop[2] - trace.crop[0], trace.crop[3] - trace.crop[1]
    assert sorted((width, height)) == [5, SIDE]
