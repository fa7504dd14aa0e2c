"""The files of training that the fuzzer damages, and how each is read: recipes, annotations, samples."""

# ruff: noqa: E501 - tables of files

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.mutations import bent_json, bent_yaml
from fuzz.small_files import put

RECIPE = {
    "model": "dualfocus-nano", "output": "out", "data": [{"path": "samples", "kind": "samples", "share": 1.0}],
    "train": ["projector", "language_model"], "batch_size": 8, "micro_batch_size": 4, "steps": 10,
    "evaluation": {"path": "samples", "every": 5}, "training": {"learning_rate": 1e-4, "warmup_steps": 2},
}  # fmt: skip


def write_recipe(folder: Path) -> None:
    put(
        folder / "recipe.yaml",
        json.dumps(RECIPE, indent=1).replace('"path": "samples"', f'"path": {json.dumps(str(folder))}'),
    )


def recipe(folder: Path) -> None:
    from dualfocus_lmms.train.trainer.recipe import load_recipe

    load_recipe(str(folder / "recipe.yaml"))


def write_settings(folder: Path) -> None:
    from dualfocus_lmms.train.vg.config import DEFAULTS

    put(folder / "vg.yaml", DEFAULTS.read_text(encoding="utf-8"))


def settings(folder: Path) -> None:
    from dualfocus_lmms.train.vg.config import VGConfig

    VGConfig.load(folder / "vg.yaml")


def write_llava(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    records = [{"id": str(n), "image": "a.png", "conversations": turns} for n in range(3)]
    put(folder / "llava.json", json.dumps(records))
    put(folder / "a.png", "an image, opened later")


def llava(folder: Path) -> None:
    from dualfocus_lmms.train.trainer.collate import llava_source

    llava_source(str(folder / "llava.json"), str(folder))


def write_genome(folder: Path) -> None:
    thing = {"object_id": 1, "names": ["dog"], "synsets": ["dog.n.01"], "x": 10, "y": 10, "w": 30, "h": 30}
    images, ids = folder / "vg", range(1, 4)
    put(
        images / "image_data.json",
        json.dumps([{"image_id": n, "width": 99, "height": 99, "url": "x"} for n in ids]),
    )
    put(images / "objects.json", json.dumps([{"image_id": n, "objects": [thing]} for n in ids]))
    qas = [
        {"qa_id": 1, "image_id": 1, "question": "What color is the dog?", "answer": "Brown.", "q_objects": []}
    ]
    put(images / "question_answers.json", json.dumps([{"id": n, "qas": qas} for n in ids]))
    put(images / "attributes.json", json.dumps([{"image_id": n, "attributes": [thing]} for n in ids]))
    region = {"region_id": 7, "x": 5, "y": 5, "width": 40, "height": 40, "phrase": "a dog"}
    put(images / "region_descriptions.json", json.dumps([{"id": n, "regions": [region]} for n in ids]))
    put(images / "qa_to_region_mapping.json", {"1": 7})


def genome(folder: Path) -> None:
    from dualfocus_lmms.train.vg.visual_genome import build

    build(folder / "vg", folder / "out", annotations_only=True, progress=False)


def write_build(folder: Path) -> None:
    write_genome(folder)
    genome(folder)


def write_samples(folder: Path) -> None:
    from dualfocus_lmms import Box
    from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample, shard_path, write_shard

    image = SampleImage(b"bytes", "a.jpg")
    rows = [
        TrainingSample(str(n), image, "What?", "A dog.", Box(0, 0, 0.5, 0.5), image, "vg:1") for n in range(3)
    ]
    write_shard(rows, shard_path(folder, 0))


def write_regions(folder: Path) -> None:
    from dualfocus_lmms import Box
    from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample, shard_path, write_shard

    image, box = SampleImage(b"bytes", "a.jpg"), Box(0, 0, 0.5, 0.5)
    row = TrainingSample("1", image, "What?", "A dog.", box, image, "vg:1", (box, box), (image, image))
    write_shard([row], shard_path(folder, 0), separate=True)


def samples(folder: Path) -> None:
    from dualfocus_lmms.train.data.samples import read_samples

    list(read_samples(folder))


def readers(make: Callable[..., Any]) -> list[Any]:
    """Those of training; weight is about what one reading costs."""
    return [
        make("recipe", "recipe.yaml", write_recipe, recipe, bent_yaml, 0.5),
        make("settings of data vg", "vg.yaml", write_settings, settings, bent_yaml, 0.2),
        make("LLaVA's JSON", "llava.json", write_llava, llava, bent_json),
        *(
            make(f"Visual Genome: {name}", f"vg/{name}.json", write_genome, genome, bent_json, 0.3)
            for name in ("image_data", "objects", "question_answers", "attributes", "region_descriptions",
                         "qa_to_region_mapping")
        ),
        make("data vg, continued: build.json", "out/build.json", write_build, genome, bent_json, 0.3),
        make("data vg, continued: a part", "out/parts/part-00000.json", write_build, genome, bent_json, 0.3),
        make("samples in Parquet", "samples-00000.parquet", write_samples, samples, None),
        make("samples of several regions", "samples-00000.parquet", write_regions, samples, None),
    ]  # fmt: skip
