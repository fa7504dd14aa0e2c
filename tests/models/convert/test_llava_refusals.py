"""Checkpoints and targets that are not converted: each is refused with a message, and nothing is written."""

from __future__ import annotations

import pytest
import torch
from original_llava import VOCABULARY, WIDTH, save_shards

from dualfocus_lmms import UserError
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.convert.llava import convert, plan


def test_a_value_that_float16_cannot_hold_stops_the_conversion(make, own_tower, original, tmp_path):
    state = original.weights(tower=True)
    state["model.mm_projector.0.bias"][3] = 1e6
    source = make(mm_vision_tower=own_tower, state=state)
    with pytest.raises(UserError, match=r"mm_projector\.0\.bias"):
        convert(str(source), tmp_path / "out", dtype="float16", progress=False)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": "llama"},
        {"model_type": "llava_mistral"},
        {"mm_projector_type": "linear"},
        {"mm_patch_merge_type": "spatial_unpad"},
        {"image_aspect_ratio": "anyres"},
        {"mm_use_im_start_end": True},
        {"text_config": {}},
        {"num_hidden_layers": 3},
        {"intermediate_size": 100},
        {"mm_vision_tower": "no-such-organisation/no-such-tower"},
    ],
)
def test_what_is_not_built_like_llava_is_refused(make, own_tower, tmp_path, changed):
    source = make(**{"mm_vision_tower": own_tower, **changed})
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("out*"))


def test_a_tower_of_another_size_than_its_name_says_is_refused(make):
    with pytest.raises(UserError, match="vision_model"):
        plan(str(make()))


def test_unknown_and_missing_weights_are_named(make, own_tower, original):
    state = original.weights(tower=True)
    odd = make("bin", 1, mm_vision_tower=own_tower, state={**state, "model.image_newline": torch.ones(WIDTH)})
    with pytest.raises(UserError, match=r"model\.image_newline"):
        plan(str(odd))
    for name, said in (
        ("model.layers.1.mlp.up_proj.weight", r"layers\.1\.mlp\.up_proj"),
        ("model.mm_projector.2.bias", r"linear_2\.bias"),
        ("model.embed_tokens.weight", "embed_tokens"),
    ):
        save_shards(odd, "bin", 1, {key: value for key, value in state.items() if key != name})
        with pytest.raises(UserError, match=said):
            plan(str(odd))
    save_shards(odd, "bin", 1, state | {"lm_head.weight": torch.ones(VOCABULARY, WIDTH, dtype=torch.int8)})
    with pytest.raises(UserError, match=r"lm_head\.weight int8"):
        plan(str(odd), dtype="float16")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        lambda folder: torch.save({}, folder / "non_lora_trainables.bin"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "tokenizer.model").unlink(),
        lambda folder: (folder / "pytorch_model-00002-of-00002.bin").unlink(),
        lambda folder: (folder / "pytorch_model-00002-of-00002.bin").write_text("version https://git-lfs"),
        lambda folder: (folder / "pytorch_model.bin.index.json").write_text("[]"),
        lambda folder: [file.unlink() for file in folder.glob("pytorch_model*")],
        lambda folder: [
            file.rename(folder / "mm_projector.bin") for file in sorted(folder.glob("pytorch_model*"))
        ],
    ],
)
def test_adapters_and_incomplete_folders_are_refused(make, own_tower, tmp_path, spoil):
    source = make(mm_vision_tower=own_tower)
    spoil(source)
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "out", progress=False)
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_exists_is_never_touched(make, own_tower, tmp_path):
    source = make(mm_vision_tower=own_tower)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError):
        convert(str(source), tmp_path / "new", dtype="float64", progress=False)


def test_an_original_checkpoint_is_not_loaded_as_it_is(make):
    with pytest.raises(UserError):
        load_checkpoint(str(make()), device="cpu")
