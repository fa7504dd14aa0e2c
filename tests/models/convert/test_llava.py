"""Checkpoints in LLaVA's original format, converted, and compared with the original's graph."""

from __future__ import annotations

import json

import pytest
import torch
from original_llava import VOCABULARY, Original, compare
from transformers import LlavaForConditionalGeneration

from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.convert.llava import convert, on_disk
from dualfocus_lmms.models.convert.weight_files import headers

pytestmark = pytest.mark.seconds(6)


@pytest.mark.parametrize(("form", "shards"), [("bin", 3), ("bin", 1), ("safetensors", 2), ("safetensors", 1)])
@pytest.mark.parametrize("kind", ["llava", "share4v"])
def test_the_logits_are_the_originals_with_the_tower_inside(
    make, own_tower, original, tmp_path, form, shards, kind
):
    source = make(form, shards, model_type=kind, mm_vision_tower=own_tower)
    done = convert(str(source), tmp_path / "converted", progress=False)
    assert compare(tmp_path / "converted", original) < 1e-5
    assert len(list((tmp_path / "converted").glob("*.safetensors"))) == shards
    assert done.new_rows == 48


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_the_logits_are_the_originals_with_a_tower_from_elsewhere(make, original, tmp_path, form):
    tower = original.save_tower(tmp_path / "clip")
    convert(str(make(form, tower=False)), tmp_path / "given", str(tower), progress=False)
    assert compare(tmp_path / "given", original) < 1e-5
    named = make(form, shards=1, tower=False, mm_vision_tower=str(tower))
    convert(str(named), tmp_path / "named", progress=False)
    assert compare(tmp_path / "named", original) < 1e-5


def test_a_given_tower_takes_the_place_of_the_one_inside(make, tmp_path, original):
    other = Original(seed=7)
    done = convert(str(make()), tmp_path / "out", str(other.save_tower(tmp_path / "clip")), progress=False)
    other.language, other.projector = original.language, original.projector
    assert compare(tmp_path / "out", other) < 1e-5
    replaced = [w.source for w in done.weights if w.reason and "vision_tower" in w.source]
    assert len(replaced) == len(original.tower.state_dict()) + 1  # and its position_ids


def test_the_names_on_disk_are_those_that_transformers_writes(make, own_tower, tmp_path):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    config = load_checkpoint(str(tmp_path / "out"), device="cpu").model.config
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "written")
    written = {name: spec.shape for name, spec in headers(tmp_path / "written/model.safetensors").items()}
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    ours = {name: spec.shape for file in files for name, spec in headers(file).items()}
    assert ours == written == on_disk(config)


def test_the_report_has_every_weight_of_the_source(make, own_tower, tmp_path, original):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    report = json.loads((tmp_path / "out/conversion.json").read_text())
    entries = {entry["source"]: entry for entry in report["weights"]}
    assert set(entries) == set(original.weights(tower=True))
    out = {name for name, entry in entries.items() if "dropped" in entry}
    assert {name.rpartition(".")[2] for name in out} == {"inv_freq", "position_ids"}
    written = {
        name: spec
        for file in (tmp_path / "out").glob("*.safetensors")
        for name, spec in headers(file).items()
    }
    assert {entry["target"]: entry["shape"] for entry in entries.values() if "target" in entry} == {
        name: list(spec.shape) for name, spec in written.items()
    }
    assert report["new_embedding_rows"] == 48


def test_every_weight_keeps_its_type_or_gets_the_one_asked_for(make, original, tmp_path):
    state = {name: value.to(torch.bfloat16) for name, value in original.weights(tower=False).items()}
    source, tower = str(make(tower=False, state=state)), str(original.save_tower(tmp_path / "clip"))
    for dtype, of_the_tower, of_the_rest in (
        ("auto", "float32", "bfloat16"),
        ("float16", "float16", "float16"),
    ):
        done = convert(source, tmp_path / dtype, tower, dtype, progress=False)
        kinds = {
            prefix: {weight.spec.kind for weight in done.kept if weight.target.startswith(prefix)}
            for prefix in ("vision_tower", "multi_modal_projector", "language_model")
        }
        assert kinds == {
            "vision_tower": {of_the_tower},
            "multi_modal_projector": {of_the_rest},
            "language_model": {of_the_rest},
        }
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path / dtype, dtype="auto")
        assert str(model.dtype) == f"torch.{of_the_rest}"
        head = model.lm_head.weight[:VOCABULARY]
        assert torch.equal(head, state["lm_head.weight"].to(head.dtype))


def test_new_rows_are_the_mean_of_the_old_ones(make, own_tower, original, tmp_path):
    convert(str(make(mm_vision_tower=own_tower)), tmp_path / "out", progress=False)
    model = load_checkpoint(str(tmp_path / "out"), device="cpu").model
    for embedding, old in (
        (model.get_input_embeddings(), original.language.model.embed_tokens),
        (model.lm_head, original.language.lm_head),
    ):
        mean = old.weight.mean(0).expand(48, -1)
        torch.testing.assert_close(embedding.weight[VOCABULARY:], mean)
