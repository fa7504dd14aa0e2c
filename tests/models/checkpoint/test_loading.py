"""Checkpoints that load, and those that cannot, each with a message for the user."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import dispatch_model
from loguru import logger
from safetensors.torch import load_file, save_file

from dualfocus_lmms import Settings, UserError, answer_batch
from dualfocus_lmms.models.checkpoint.loading import fingerprint, load_checkpoint, torch_device, torch_dtype
from dualfocus_lmms.models.engines.registry import make_engine


def test_a_checkpoint_loads_in_float32_on_a_cpu_and_in_another_type_on_request(tiny_checkpoint):
    loaded = load_checkpoint(str(tiny_checkpoint), device="cpu")
    assert (loaded.model.dtype, loaded.model.device.type, loaded.model.training) == (
        torch.float32,
        "cpu",
        False,
    )
    assert loaded.family.name == "llava"
    assert load_checkpoint(str(tiny_checkpoint), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_missing_checkpoint_is_the_users_mistake(tmp_path):
    for missing in (str(tmp_path / "nothing"), "no-such-organisation/no-such-model"):
        with pytest.raises(UserError, match="no"):
            load_checkpoint(missing, device="cpu")


@pytest.mark.parametrize("model_type", ["bert", "an_architecture_of_tomorrow"])
def test_a_model_type_without_a_family_is_refused_and_the_known_ones_are_named(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match="llava|" + model_type):
        load_checkpoint(str(tmp_path), device="cpu")


def test_a_checkpoint_that_says_no_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for family in (None, "generic"):
        with pytest.raises(UserError):
            load_checkpoint(str(tmp_path), device="cpu", family=family)


@pytest.mark.parametrize("part", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_checkpoint_without_one_of_its_parts_is_refused(tmp_path, tiny_checkpoint, part):
    folder = tmp_path / "half"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / part).unlink()
    with pytest.raises(UserError):
        load_checkpoint(str(folder), device="cpu")


def test_weights_that_are_missing_cut_or_of_another_shape_are_refused(tmp_path, tiny_checkpoint):
    weights = load_file(tiny_checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight"))
    spoiled = {
        "missing": {key: value for key, value in weights.items() if key != name},
        "shape": weights | {name: weights[name][:, :-1].contiguous()},
        "cut": weights,
    }
    for how, content in spoiled.items():
        folder = tmp_path / how
        shutil.copytree(tiny_checkpoint, folder)
        file = folder / "model.safetensors"
        save_file(content, file, metadata={"format": "pt"})
        if how == "cut":
            file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError):
            load_checkpoint(str(folder), device="cpu")


def test_impossible_devices_and_types_are_refused():
    for device in ("cuda:99", "toaster"):
        with pytest.raises(UserError):
            torch_device(device)
    with pytest.raises(UserError):
        torch_dtype("float8", torch.device("cpu"))
    assert torch_dtype("auto", torch.device("cpu")) == torch.float32


def test_the_fingerprint_tells_retrained_weights_apart(tmp_path, tiny_checkpoint):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    assert fingerprint(str(folder)) == fingerprint(str(tiny_checkpoint))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for changed in (slice(-5, None), slice(len(content) // 3, len(content) // 2), slice(1000, 2000)):
        other = bytearray(content)
        other[changed] = bytes(byte ^ 1 for byte in content[changed])
        weights.write_bytes(other)
        assert fingerprint(str(folder)) != fingerprint(str(tiny_checkpoint))
    weights.write_bytes(content)
    assert fingerprint(str(folder)) == fingerprint(str(tiny_checkpoint))
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert fingerprint(str(folder)) != fingerprint(str(tiny_checkpoint))
    assert fingerprint("organisation/model") is None


def answers(checkpoint, ragged):
    return answer_batch(make_engine("shared", checkpoint), *ragged(4), Settings.of())


def test_a_model_that_is_spread_over_devices_answers_as_one_on_a_single_device(tiny_checkpoint, ragged):
    """There is only one device here, but accelerate moves the inputs of every part to where the part is."""
    whole = load_checkpoint(str(tiny_checkpoint), device="cpu")
    spread = load_checkpoint(str(tiny_checkpoint), device_map="auto")
    assert spread.device == whole.device
    assert not spread.model.training
    language_model = spread.model.model.language_model
    parts = [
        "vision_tower",
        "multi_modal_projector",
        *(f"language_model.{name}" for name in dict(language_model.named_children())),
    ]
    places = dict.fromkeys([f"model.{part}" for part in parts] + ["lm_head"], "cpu")
    dispatch_model(spread.model, places, force_hooks=True, skip_keys=spread.model._skip_keys_device_placement)
    hooked = [name for name, module in spread.model.named_modules() if hasattr(module, "_hf_hook")]
    assert set(places) <= set(hooked)
    for one, other in zip(answers(whole, ragged), answers(spread, ragged), strict=True):
        for answer, same in zip(one.answers, other.answers, strict=True):
            assert answer.tokens == same.tokens
            assert answer.logprobs == pytest.approx(same.logprobs, abs=1e-6)


def test_a_model_has_a_device_or_is_spread_over_several(tiny_checkpoint):
    with pytest.raises(UserError):
        load_checkpoint(str(tiny_checkpoint), device="cpu", device_map="auto")


def test_a_model_is_not_spread_over_the_devices_of_several_processes(tiny_checkpoint, monkeypatch):
    from dualfocus_lmms.models.host import model as host

    two = SimpleNamespace(process_index=0, num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr(host, "Accelerator", lambda: two)
    with pytest.raises(UserError):
        host.DualFocus(pretrained=str(tiny_checkpoint), device_map="auto")


def test_a_revision_of_a_folder_is_refused(tiny_checkpoint):
    for pretrained in (str(tiny_checkpoint), "dualfocus-nano"):
        with pytest.raises(UserError, match="v2"):
            load_checkpoint(pretrained, revision="v2", device="cpu")


@pytest.mark.parametrize("name", ["tree", "naive"])
def test_a_prompt_beyond_the_models_positions_is_warned_of_once(tiny_checkpoint, ragged, name):
    questions, limits = ragged(2)
    loaded = load_checkpoint(str(tiny_checkpoint), device="cpu")
    said: list[str] = []
    handler = logger.add(said.append, level="WARNING", format="{message}")  # the time may have a 17
    try:
        answer_batch(make_engine(name, loaded), questions, limits, Settings.of())
        assert said == []
        loaded.model.config.text_config.max_position_embeddings = 17
        answer_batch(make_engine(name, loaded), questions, limits, Settings.of())
        assert [line.count("17") for line in said] == [1]
    finally:
        logger.remove(handler)
