"""Checkpoints: how transformers and torch load them, what weights are called on disk, and `generate`."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
LOAD = "transformers:AutoModelForImageTextToText.from_pretrained"


@pytest.fixture
def incomplete(llava_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that lacks one of its weights."""
    for file in llava_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["multi_modal_projector.linear_2.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_missing_weights_are_told(foreign: LookUp, incomplete: Path) -> None:
    """The loader refuses such a checkpoint: transformers fills them with random numbers and only warns."""
    model, info = foreign(LOAD)(incomplete, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["model.multi_modal_projector.linear_2.bias"], "missing_keys"
    assert type(model) is foreign("transformers:LlavaForConditionalGeneration"), "output_loading_info"


def test_a_whole_checkpoint_misses_nothing(foreign: LookUp, llava_folder: Path) -> None:
    """The loader: a weight that is told to be missing and is not would refuse every checkpoint."""
    given = {"revision": None, "dtype": torch.bfloat16, "attn_implementation": None, "device_map": None}
    model, info = foreign(LOAD)(llava_folder, output_loading_info=True, **given)
    assert not info["missing_keys"], "missing_keys"
    assert model.dtype == torch.bfloat16, "from_pretrained(dtype=...)"


def test_what_is_no_checkpoint_is_one_of_these_errors(foreign: LookUp, tmp_path: Path) -> None:
    """The loader turns them into a message; any other would be shown with its traceback."""
    expected = (OSError, ValueError, ImportError, RuntimeError)
    with pytest.raises(expected):
        foreign(LOAD)(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"model_type": "llava"')
    with pytest.raises(expected):
        foreign(LOAD)(tmp_path)


def test_weights_of_another_shape_are_a_runtime_error(foreign: LookUp, incomplete: Path) -> None:
    """The loader: config.json of one checkpoint beside the weights of another."""
    config = json.loads((incomplete / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (incomplete / "config.json").write_text(json.dumps(config))
    with pytest.raises((RuntimeError, ValueError), match=r"size|shape"):
        foreign(LOAD)(incomplete)


def test_a_configuration_is_read_as_it_stands(foreign: LookUp, tmp_path: Path) -> None:
    """The loader tells LLaVA's original format by keys of config.json that no class of transformers knows."""
    (tmp_path / "config.json").write_text('{"model_type": "llava", "mm_vision_tower": "clip"}')
    settings, rest = foreign("transformers:PreTrainedConfig.get_config_dict")(str(tmp_path), revision=None)
    assert settings["mm_vision_tower"] == "clip", "PreTrainedConfig.get_config_dict"
    assert settings["model_type"] == "llava", "PreTrainedConfig.get_config_dict"
    assert isinstance(rest, dict), "PreTrainedConfig.get_config_dict"


def test_weights_are_called_so_on_disk(llava_folder: Path) -> None:
    """The conversion writes these names by itself: under others, converted weights would not be found."""
    names = load_file(llava_folder / "model.safetensors").keys()
    for name in (
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.weight",
    ):
        assert name in names, f"LlavaForConditionalGeneration no longer writes {name}"
    parts = ("language_model.", "multi_modal_projector.", "vision_tower.")
    assert all(name.startswith(parts) for name in names), "LlavaForConditionalGeneration: names on disk"


def test_weights_have_the_names_of_modules_where_that_is_asked(make_llava: Make, tmp_path: Path) -> None:
    """Training with ZeRO-3 writes so: the other way gives names of no format at all there."""
    model = make_llava()
    model.save_pretrained(tmp_path, state_dict=model.state_dict(), save_original_format=False)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys(), (
        "save_original_format"
    )


def test_parameters_have_the_parts_in_their_names(make_llava: Make) -> None:
    """Training chooses what learns by these names: a part that is called otherwise would not learn."""
    names = [name for name, _ in make_llava().named_parameters()]
    for part in ("vision_tower", "multi_modal_projector", "language_model", "lm_head"):
        assert any(part in name.split(".") for name in names), f"LLaVA has no parameter in {part}"
    assert any(".vision_tower." in name and ".layers.1." in name for name in names), "vision_tower: layers"


def test_a_vision_tower_has_layers_that_nothing_reads(make_llava: Make) -> None:
    """Training freezes what comes after the layer of the features: gradients of it would be missing."""
    model = make_llava()
    assert model.config.vision_feature_layer == -2, "LlavaConfig.vision_feature_layer"
    ids = torch.tensor([[1, *[63] * 16, 5]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 56, 56), labels=ids).loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle, "every layer of the vision tower is read"
    assert all(".layers.1." in name or ".post_layernorm." in name for name in idle), f"idle: {idle}"


# --- configurations ----------------------------------------------------------------------------------------


def test_a_plain_llava_has_the_encoder_of_llava_1_5(foreign: LookUp) -> None:
    """The conversion takes the default for OpenAI's encoder at 336 pixels: another would fit no weight."""
    vision = foreign("transformers:LlavaConfig")().vision_config
    sizes = (vision.image_size, vision.patch_size, vision.hidden_size, vision.intermediate_size)
    assert sizes == (336, 14, 1024, 4096), "LlavaConfig().vision_config"
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (24, 16), "LlavaConfig().vision_config"


def test_the_encoders_part_is_read_of_a_whole_clip(foreign: LookUp, tmp_path: Path) -> None:
    """The conversion: a vision tower's folder may hold CLIP with its text half."""
    config = foreign("transformers:CLIPConfig")(vision_config={"hidden_size": 48, "patch_size": 7})
    config.save_pretrained(tmp_path)
    vision = foreign("transformers:CLIPVisionConfig.from_pretrained")(tmp_path)
    assert (vision.hidden_size, vision.patch_size) == (48, 7), "CLIPVisionConfig.from_pretrained"


def test_rotary_settings_of_old_checkpoints_are_taken_over(foreign: LookUp) -> None:
    """The conversion hands `rope_theta` and `rope_scaling` on as they stand: dropped, a model would read
    positions it was not trained on, without a word."""
    make = foreign("transformers:LlamaConfig")
    assert make(rope_theta=500.0).rope_parameters["rope_theta"] == 500.0, "LlamaConfig(rope_theta=...)"
    scaled = make(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}).rope_parameters
    assert (scaled["rope_type"], scaled["factor"], scaled["rope_theta"]) == ("linear", 2.0, 500.0), (
        "rope_scaling"
    )


def test_a_model_of_a_configuration_has_its_type(foreign: LookUp, make_llava: Make) -> None:
    """The benchmark's random weights."""
    make = foreign("transformers:AutoModelForImageTextToText.from_config")
    assert make(make_llava().config, dtype=torch.bfloat16).dtype == torch.bfloat16, "from_config(dtype=...)"


def test_the_ends_of_turns_are_kept(foreign: LookUp, make_llava: Make, tmp_path: Path) -> None:
    """The engines stop at every token that `generation_config` names, one or several."""
    model = make_llava()
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(tmp_path)
    assert foreign(LOAD)(tmp_path).generation_config.eos_token_id == [2, 5], "generation_config.eos_token_id"


@pytest.mark.parametrize(
    "name", ["transformers:AutoConfig.from_pretrained", "huggingface_hub:snapshot_download"]
)
def test_a_hub_that_cannot_be_reached_is_one_of_these_errors(
    foreign: LookUp, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The loader and the conversion turn them into a message that says to give a folder."""
    monkeypatch.setattr(foreign("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    with pytest.raises((OSError, ValueError)):
        foreign(name)("dualfocus-contract/none", revision=None)


# --- torch and safetensors ---------------------------------------------------------------------------------


def test_a_mapped_file_of_torch_runs_nothing(tmp_path: Path) -> None:
    """The conversion reads weights of strangers: `weights_only` refuses code with an UnpicklingError."""
    file = tmp_path / "weights.bin"
    torch.save({"w": torch.arange(3.0)}, file)
    assert zipfile.is_zipfile(file), "torch.save no longer writes a zip file, which can be mapped"
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    assert loaded["w"].tolist() == [0.0, 1.0, 2.0], "torch.load(mmap=True)"
    torch.save({"w": Path("x")}, file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def test_safetensors_reads_a_file_that_is_written_by_hand(tmp_path: Path) -> None:
    """The conversion writes one tensor at a time, which the library cannot: length, header, bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8)
    values = torch.tensor([1.0, 2.0])
    raw = values.view(torch.uint8).numpy().tobytes()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw)
    assert load_file(tmp_path / "w.safetensors")["w"].tolist() == [1.0, 2.0], "the format of safetensors"


def test_memory_that_runs_out_is_told_in_these_words() -> None:
    """The runner divides a batch where memory runs out, and knows it by the text; else the run would stop."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    signs = ("out of memory", "DefaultCPUAllocator", "can't allocate memory")
    assert any(sign in str(caught.value) for sign in signs), f"torch says: {caught.value}"
    assert issubclass(torch.OutOfMemoryError, RuntimeError), "torch.OutOfMemoryError"


# --- generate ----------------------------------------------------------------------------------------------


def test_generate_never_says_a_suppressed_token(foreign: LookUp, make_llama: Make) -> None:
    """The slow engine: the image's token must not be said, and decoding is greedy up to any end of turn."""
    model, ids = make_llama(), torch.tensor([[1, 5, 6]])
    with torch.inference_mode():
        order = model(ids).logits[0, -1].argsort(descending=True).tolist()
    config = foreign("transformers:GenerationConfig")(
        max_new_tokens=4, do_sample=False, num_beams=1, eos_token_id=[order[1], 63], pad_token_id=0,
        suppress_tokens=[order[0]],
    )  # fmt: skip
    said = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    assert said[0].tolist() == [1, 5, 6, order[1]], "GenerationConfig: suppress_tokens, eos_token_id"


def test_generate_from_embeddings_gives_the_new_tokens_alone(foreign: LookUp, make_llama: Make) -> None:
    """The slow engine cuts the prompt off, but not where it gives embeddings."""
    model, ids = make_llama(), torch.tensor([[1, 5, 6]])
    config = foreign("transformers:GenerationConfig")(max_new_tokens=2, do_sample=False, pad_token_id=0)
    given = {"attention_mask": torch.ones_like(ids), "generation_config": config}
    whole = model.generate(ids, **given)
    said = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **given)
    assert said.tolist() == whole[:, 3:].tolist(), "generate(inputs_embeds=...)"
