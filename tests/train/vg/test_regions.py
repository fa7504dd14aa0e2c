"""Samples with several regions: which they are, and that they are learned as the flow shows them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dualfocus_lmms import Box, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.boxes import WHOLE, BoxFormat
from dualfocus_lmms.cli import app
from dualfocus_lmms.plugins import FAMILIES, load_family, names
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.scene_layouts import make_layouts
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.train.data.conversations import from_sample, question_of
from dualfocus_lmms.train.data.samples import TrainingSample, read_samples
from dualfocus_lmms.train.data.scene_files import write_visual_genome
from dualfocus_lmms.train.vg.config import VGConfig
from dualfocus_lmms.train.vg.question_grounding import WHOLE_IMAGE, Grounded
from dualfocus_lmms.train.vg.records import Outcome, round_box, separate_regions
from dualfocus_lmms.train.vg.visual_genome import build
from dualfocus_lmms.zoom import DynamicResolution

QWEN = DynamicResolution(28, 56 * 56, 3584 * 3584)


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn scenes with questions about two things far apart, as Visual Genome's files."""
    folder = tmp_path_factory.mktemp("genome")
    write_visual_genome(folder, list(make_layouts("apart", "train", 0, 4)))
    return folder


@pytest.fixture(scope="module")
def samples(genome: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainingSample]:
    folder = tmp_path_factory.mktemp("samples")
    make(genome, folder, regions="separate", config=VGConfig.load(crop_format="png"))
    return list(read_samples(folder, separate=True))


def make(genome: Path, out: Path, **settings: Any) -> None:
    build(genome, out, **{"protocol": "paper", "progress": False} | settings)


def test_each_thing_of_a_drawn_question_has_a_box_and_a_crop(samples: list[TrainingSample]):
    scenes = make_layouts("apart", "train", 0, 4)
    asked = [question for scene in scenes for question in scene.questions]
    assert [sample.question for sample in samples] == [question.question for question in asked]
    for sample, question in zip(samples, asked, strict=True):
        things = {round_box(thing.box) for thing in question.things}
        assert set(sample.boxes) == things
        assert sample.box == Box.around(things)
        assert [crop.name for crop in sample.crops] == [f"{sample.id}-1.png", f"{sample.id}-2.png"]


def conversation_of_the_flow(sample: TrainingSample, regions: str, **backend: Any) -> Any:
    """The micro conversation about a sample's annotated boxes."""
    question = dataclasses.replace(question_of(sample, SHORT_ANSWER), box=sample.box, boxes=sample.boxes)
    asked = FakeBackend({"macro": "x", "micro": sample.answer}, **backend)
    settings = Settings.of("paper", grounding="annotated", regions=regions)
    answer_batch(asked, [question], [StopCriteria(9)], settings)
    assert asked.calls[-1].stage == "micro"
    return asked.calls[-1].conversations[0]


@pytest.mark.parametrize("resolution", [None, QWEN])
@pytest.mark.parametrize("regions", ["union", "separate"])
def test_a_sample_is_learned_as_the_flow_shows_it(
    samples: list[TrainingSample], regions: str, resolution: DynamicResolution | None
):
    for sample in samples[:3]:
        shown = conversation_of_the_flow(sample, regions, resolution=resolution)
        learned = from_sample(
            sample,
            Settings.of("paper").protocol,
            BoxFormat(),
            SHORT_ANSWER,
            resolution=resolution,
            separate=regions == "separate",
        ).conversation
        assert [turn.text for turn in learned.turns[:3]] == [turn.text for turn in shown.turns]
        assert [image.tobytes() for image in learned.images] == [image.tobytes() for image in shown.images]
        assert len(learned.images) == (3 if regions == "separate" else 2)
        assert learned.turns[3].text == sample.answer


@pytest.mark.parametrize("family", names(FAMILIES))
def test_every_family_writes_several_boxes_as_the_flow_does(samples: list[TrainingSample], family: str):
    form = load_family(family).box_format
    shown = conversation_of_the_flow(samples[0], "separate", box_format=form, resolution=QWEN)
    learned = from_sample(
        samples[0],
        Settings.of("paper").protocol,
        form,
        input_size=lambda image: QWEN.fit(image.size),
        separate=True,
    )
    assert learned.conversation.turns[1].text == shown.turns[1].text
    assert len(form.read_all(shown.turns[1].text, (512, 512), QWEN.fit((512, 512)))) == 2


def grounded(*boxes: Box) -> Outcome:
    return Outcome("1", 1, "What?", "It.", Grounded(boxes, "given"), round_box(Box.around(boxes)))


LEFT, RIGHT, BELOW = Box(0.1, 0.1, 0.2, 0.3), Box(0.7, 0.2, 0.9, 0.3), Box(0.1, 0.6, 0.3, 0.9)
APART = [round_box(Box(n / 10, 0.1, n / 10 + 0.05, 0.2)) for n in range(5)]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([BELOW, RIGHT, LEFT], [LEFT, RIGHT, BELOW]),  # in reading order
        ([LEFT, Box(0.12, 0.15, 0.18, 0.2), RIGHT], [LEFT, RIGHT]),  # a part lies in its owner
        ([LEFT, RIGHT, Box(0.15, 0.2, 0.4, 0.7), BELOW], [Box(0.1, 0.1, 0.4, 0.9), RIGHT]),  # a chain
        (
            [Box(0.111, 0.1, 0.2, 0.3), Box(0.2, 0.1, 0.399, 0.3)],
            [Box(0.11, 0.1, 0.2, 0.3), Box(0.2, 0.1, 0.4, 0.3)],
        ),
        (APART[:4], APART[:4]),
        (APART, [Box(0, 0.1, 0.45, 0.2)]),  # more than four are one
    ],
)
def test_what_overlaps_is_one_region(boxes: list[Box], expected: list[Box]):
    assert separate_regions(grounded(*boxes)) == tuple(expected)


def test_a_question_about_the_whole_image_has_one_region():
    assert separate_regions(Outcome("1", 1, "What?", "It.", WHOLE_IMAGE, WHOLE)) == (WHOLE,)


def test_only_separate_regions_add_columns(genome: Path, tmp_path: Path):
    make(genome, tmp_path / "union", limit=1)
    make(genome, tmp_path / "separate", limit=1, regions="separate")
    union, separate = (
        pq.read_table(tmp_path / name / "samples-00000.parquet") for name in ("union", "separate")
    )
    assert separate.column_names == [*union.column_names, "boxes", "crops"]
    assert separate.select(union.column_names).equals(union)
    settings = [json.loads((tmp_path / name / "build.json").read_text()) for name in ("union", "separate")]
    assert settings[1] == settings[0] | {"regions": "separate"}
    for folder, regions in (("union", "separate"), ("separate", "union")):
        with pytest.raises(UserError, match="another regions"):
            make(genome, tmp_path / folder, limit=1, regions=regions)
    make(genome, tmp_path / "rows", limit=1, regions="separate", annotations_only=True)
    (line, *_) = (tmp_path / "rows" / "samples-00000.jsonl").read_text().splitlines()
    assert json.loads(line)["boxes"] == separate["boxes"][0].as_py()


def test_the_commands_from_drawn_scenes_to_an_export(tmp_path: Path):
    scenes, made, out = (str(tmp_path / name) for name in ("scenes", "samples", "out"))
    runner = CliRunner()
    done = runner.invoke(app, ["data", "scenes", scenes, "--layout", "near", "--count", "1"])
    assert "--protocol paper --regions separate" in done.output
    chosen = ["--protocol", "paper", "--regions", "separate"]
    done = runner.invoke(app, ["data", "vg", "--root", scenes, "--out", made, "--workers", "1", *chosen])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["data", "export", made, out, *chosen])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "out" / "dualfocus_llava.json").read_text())
    assert [len(row["image"]) for row in rows] == [3] * len(rows)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"regions": "apart"}, "apart"), ({"regions": "separate", "protocol": "release"}, "protocol=paper")],
)
def test_regions_that_inference_does_not_have_are_refused(
    genome: Path, tmp_path: Path, settings: dict[str, str], named: str
):
    with pytest.raises(UserError, match=named):
        make(genome, tmp_path, **settings)
