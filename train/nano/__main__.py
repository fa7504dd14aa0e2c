"""python -m dualfocus_lmms.train.nano --seed 0 --output runs/nano: the small model from scratch."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from loguru import logger
from transformers import LlavaForConditionalGeneration

from dualfocus_lmms.models.checkpoint.shipped import resolve_path
from dualfocus_lmms.models.tiny.nano import image_processor, nano_tokenizer
from dualfocus_lmms.scenes import make_scenes
from dualfocus_lmms.train.data.scene_files import write_visual_genome
from dualfocus_lmms.train.nano.base import train_base
from dualfocus_lmms.train.nano.images import Labelled, labelled
from dualfocus_lmms.train.nano.instructions import write_instructions
from dualfocus_lmms.train.nano.optimizer import rank_and_world
from dualfocus_lmms.train.nano.pretrain_vision import train_tower
from dualfocus_lmms.train.nano.questions import GLOBAL_MIX, WHOLE_MIX
from dualfocus_lmms.train.nano.timed import Plan, train_timed
from dualfocus_lmms.train.trainer.recipe import processes
from dualfocus_lmms.train.trainer.trainer import train
from dualfocus_lmms.train.vg.visual_genome import build

TOWER_SCENES = 16_000  # scenes of the first two stages
SCENES, HELD_OUT = 8000, 40  # scenes of the last one, and of its evaluation
SEE_STEPS = (2800, 1600)  # the schedule runs twice: small details are learned late
BASE_STEPS = 1400
# What the second run of stage 3 changes in the recipe: more second looks, which are learned more slowly.
SECOND_LOOKS = (
    "steps=400",
    "training.learning_rate=3e-4",
    "data.0.share=0.7",
    "data.1.share=0.15",
    "data.2.share=0.15",
)
MINUTES = 5.0  # of stage 2 on a GPU
NANO = "dualfocus-nano"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Timed:
    """A base stage within a given time. source: the checkpoint that its tower comes from; go_on: whether its
    language model does, too."""

    plan: Plan
    source: str
    go_on: bool


class Stage(str, Enum):
    TOWER = "tower"
    BASE = "base"
    DATA = "data"  # of the last stage, and nothing before it
    END = "end"


def draw(output: Path) -> Labelled:
    """The images of stages 1 and 2, in `output`/pictures."""
    return labelled(output / "pictures", TOWER_SCENES)


def make_tower(output: Path, device: str, images: Labelled) -> tuple[Any, Any]:
    """Stage 1: tower and heads. Trained once and shared by all seeds, as all LLaVA models share one CLIP."""
    first, second = output / "tower-1.pt", output / "tower-2.pt"
    train_tower(images, SEE_STEPS[0], device, first)
    return train_tower(images, SEE_STEPS[1], device, second, before=first)


def make_base(output: Path, device: str, timed: Timed | None = None) -> Path:
    """Stage 2: the checkpoint of the base model, in `output`/base; by all processes together, or by one in a
    given time."""
    result = output / "base"
    if not (result / "config.json").exists() and timed is not None:
        latest = output / "base.latest"
        source: Any = LlavaForConditionalGeneration.from_pretrained(resolve_path(timed.source))
        train_timed(timed.plan, source, timed.go_on, device, lambda model: save_base(model, latest))
        latest.replace(result)
    elif not (result / "config.json").exists():
        images = draw(output)
        tower, heads = make_tower(output, device, images)
        model = train_base(images, tower, heads, BASE_STEPS, 0, device, output / "base.pt")
        if rank_and_world()[0] == 0:
            unfinished = output / "base.unfinished"
            save_base(model, unfinished)
            unfinished.replace(result)
    return result


def save_base(model: Any, folder: Path) -> None:
    """Write a checkpoint; every file of it is complete or as it was before."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        for part in (model, nano_tokenizer(), image_processor()):
            part.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)


def make_data(output: Path, scenes: int = SCENES, mix: dict[str, float] = WHOLE_MIX) -> None:
    """The data of stage 3: scenes as Visual Genome's files, the samples built from them, instructions."""
    splits = {"samples": ("train", scenes, 1), "held_out": ("validation", HELD_OUT, 1_000_001)}
    for name, (split, count, first_id) in splits.items():
        if not (output / name / "report.json").exists():
            root = output / f"scenes_{split}"
            write_visual_genome(root, list(make_scenes(split, 0, count)), first_id)
            build(root, output / name, workers=os.cpu_count() or 1, protocol="paper")
    if not (output / "instructions" / "instructions.json").exists():
        write_instructions(output / "instructions", list(make_scenes("train", 0, scenes)), mix)


def finetune(output: Path, seed: int, with_samples: bool = True, overrides: Sequence[str] = ()) -> Path:
    """Stage 3: `dualfocus train nano`, and from its model once more by SECOND_LOOKS; without DualFocus
    samples the first run alone: the model that they are compared with, which has 400 steps fewer.

    overrides: of the recipe, as `key=value`, for both runs.
    """
    folder = output / f"seed-{seed}"
    samples, instructions = output / "samples", output / "instructions"
    plain = (
        f"[{{path: {samples}, kind: macro, share: 0.6}}, {{path: {instructions / 'instructions.json'}, "
        f"kind: llava, images: {instructions / 'images'}, share: 0.4}}]"
    )
    sources = [
        f"data.0.path={samples}",
        f"data.1.path={samples}",
        f"data.2.path={instructions / 'instructions.json'}",
        f"data.2.images={instructions / 'images'}",
    ]
    common = [f"seed={seed}", f"evaluation.path={output / 'held_out'}"]
    base = [f"model={output / 'base'}", *common]
    if not with_samples:
        return train("nano", [*base, f"output={folder / 'plain'}", f"data={plain}", *overrides])
    first = train("nano", [*base, f"output={folder / 'first'}", *sources, *overrides])
    second = [f"model={first}", f"output={folder / 'dualfocus'}", *common, *sources, *SECOND_LOOKS]
    return train("nano", [*second, *overrides])


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="Of stage 3.")] = 0,
    output: Annotated[Path, typer.Option(help="The folder of all stages.")] = Path("runs/nano"),
    device: Annotated[str, typer.Option(help="Where to train.")] = DEVICE,
    until: Annotated[Stage, typer.Option(help="The last stage to run.")] = Stage.END,
    plain: Annotated[bool, typer.Option("--plain", help="Stage 3 without DualFocus samples.")] = False,
    last_scenes: Annotated[int, typer.Option(help="Scenes of stage 3.")] = SCENES,
    minutes: Annotated[
        float | None,
        typer.Option(help=f"Time for the base stage. On a GPU: {MINUTES:g}, else as many as it takes."),
    ] = None,
    tower: Annotated[str, typer.Option(help="With --minutes: the checkpoint whose tower it takes.")] = NANO,
    go_on: Annotated[
        bool, typer.Option("--continue", help="With --minutes: take that checkpoint's language model, too.")
    ] = False,
    pictures: Annotated[int, typer.Option(help="With --minutes: images of a step.")] = Plan.images,
    scenes: Annotated[int, typer.Option(help="With --minutes: scenes drawn at most.")] = Plan.scenes,
    first: Annotated[int, typer.Option(help="With --minutes: scenes before the first step.")] = Plan.first,
    held_out: Annotated[int, typer.Option(help="With --minutes: held-out scenes.")] = Plan.held_out,
    workers: Annotated[int, typer.Option(help="With --minutes: processes that draw.")] = Plan.workers,
    speed: Annotated[float, typer.Option(help="With --minutes: factor on the learning rates.")] = Plan.speed,
    showing: Annotated[
        float,
        typer.Option(help="With --minutes: share of the time in which attention is supervised."),
    ] = Plan.showing,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe of stage 3, as key=value.")
    ] = None,
) -> None:
    """Train the small model from scratch. The same command continues a run that was interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the worker processes, too
    torch.set_num_threads(1)  # at this size more threads only wait for each other
    if processes() > 1:
        if until is not Stage.BASE or minutes is not None:
            raise typer.BadParameter(
                "several processes can only make the base model, without --minutes: --until base"
            )
        dist.init_process_group("gloo")
    if until is Stage.TOWER:
        make_tower(output, device, draw(output))
        return
    if minutes is None and device.startswith("cuda") and processes() == 1:
        minutes = MINUTES
    mix = WHOLE_MIX if minutes is None else GLOBAL_MIX
    if until is Stage.DATA:
        make_data(output, last_scenes, mix)
        return
    timed = None
    if minutes is not None:
        plan = Plan(
            minutes,
            images=pictures,
            scenes=scenes,
            first=first,
            held_out=held_out,
            workers=workers,
            speed=speed,
            showing=showing,
        )
        timed = Timed(plan, tower, go_on)
    logger.info(f"base model: {make_base(output, device, timed)}")
    if until is Stage.END:
        make_data(output, last_scenes, mix)
        logger.info(f"trained model: {finetune(output, seed, not plain, overrides or [])}")


if __name__ == "__main__":
    app(prog_name="python -m dualfocus_lmms.train.nano")
