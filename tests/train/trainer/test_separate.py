"""A run with `regions: separate`: several crops are learned, and the held-out samples are answered so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dualfocus_lmms import Settings, UserError
from dualfocus_lmms.train.data.samples import TrainingSample, shard_path, write_shard
from dualfocus_lmms.train.trainer import trainer
from dualfocus_lmms.train.trainer.output import claim
from dualfocus_lmms.train.trainer.recipe import load_recipe, training_arguments


def with_two_regions(sample: TrainingSample) -> TrainingSample:
    if sample.box is None or sample.crop is None:
        return sample
    return replace(sample, boxes=(sample.box, sample.box), crops=(sample.crop, sample.crop))


@pytest.fixture
def separate(common, untrained, make_samples, tmp_path: Path) -> list[str]:
    (tmp_path / "samples").mkdir()
    write_shard(map(with_two_regions, make_samples(8)), shard_path(tmp_path / "samples", 0), separate=True)
    data = f"data=[{{path: {tmp_path / 'samples'}}}]"
    return [
        *common,
        f"model={untrained}",
        data,
        f"output={tmp_path / 'run'}",
        "regions=separate",
        "steps=1",
        "evaluation.samples=1",
    ]


def test_each_region_is_learned_and_held_out_samples_are_answered_so(separate, monkeypatch):
    recipe = load_recipe("tiny_cpu", separate)
    run = trainer.build(recipe, training_arguments(recipe, 1))
    examples = [run.mixture.example(index) for index in range(8)]
    assert sorted(len(example.conversation.images) for example in examples) == [1, *[3] * 7]
    located = [len(example.conversation.turns[1].text.split("], [")) for example in examples if example.boxes]
    assert located == [2] * 7
    asked: list[Settings] = []
    answer = trainer.evaluate

    def recorded(backend, samples, settings, *more):
        asked.append(settings)
        return answer(backend, samples, settings, *more)

    monkeypatch.setattr(trainer, "evaluate", recorded)
    run.trainer.train()
    assert [settings.regions for settings in asked] == ["separate"]


def test_macro_samples_and_union_need_no_regions_of_their_own(separate, common, sample_folders, tmp_path):
    for changes in (["regions=union"], ["data.0.kind=macro"]):
        paths = [f"data=[{{path: {sample_folders[0]}}}]", *changes]
        recipe = load_recipe("tiny_cpu", [*separate, *paths])
        run = trainer.build(recipe, training_arguments(recipe, 1))
        assert len(run.mixture.example(0).conversation.images) == (1 if "macro" in changes[0] else 2)


def test_samples_of_one_region_are_refused_before_the_run(separate, sample_folders):
    with pytest.raises(UserError, match="--regions separate"):
        trainer.train("tiny_cpu", [*separate, f"data=[{{path: {sample_folders[0]}}}]"])


def test_a_run_of_an_older_version_had_one_region(separate, tmp_path):
    """Its recipe.json does not have the key."""
    union = load_recipe("tiny_cpu", [*separate, "regions=union"])
    (tmp_path / "run" / "model").mkdir(parents=True)
    note = json.loads(json.dumps(union.to_dict()))
    del note["regions"]
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match="another regions"):
        claim(load_recipe("tiny_cpu", separate), training_arguments(union, 1))
    claim(union, training_arguments(union, 1))
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["regions"] == "union"
