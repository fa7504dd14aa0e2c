"""What training takes of transformers, peft, accelerate and torch beside the Trainer."""

from __future__ import annotations

import gc
import inspect
import os
import weakref
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml

import dualfocus_lmms

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
Same = Callable[[Any, Any, str], None]

ROOT = Path(dualfocus_lmms.__file__).parent
# What our trainer sets itself, and what recipes must not say.
SET = (
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "seed",
    "data_seed", "max_steps", "eval_strategy", "eval_steps", "train_sampling_strategy", "use_cpu",
    "remove_unused_columns", "resume_from_checkpoint", "load_best_model_at_end", "logging_nan_inf_filter",
    "ddp_find_unused_parameters", "average_tokens_across_devices", "report_to", "fp16", "bf16", "fsdp",
    "save_strategy", "logging_steps", "fsdp_config", "deepspeed",
)  # fmt: skip


# What fields were called before transformers 5.23; the recipes are translated there.
OLDER = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}


def recipe_keys() -> list[tuple[str, str]]:
    """(section, key) of every key that our recipes hand to a library."""
    rows = set()
    for folder, _, files in os.walk(ROOT, followlinks=True):
        for file in (name for name in files if Path(folder).name == "recipes" and name.endswith(".yaml")):
            given = yaml.safe_load(Path(folder, file).read_text(encoding="utf-8"))
            rows |= {(part, key) for part in ("training", "lora") for key in given.get(part) or {}}
    return sorted(rows)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("evaluate", ["eval_dataset", "ignore_keys", "metric_key_prefix"]),
        ("_load_from_checkpoint", ["resume_from_checkpoint", "model"]),
    ],
)
def test_a_method_that_ours_overrides_takes_these_arguments(
    foreign: LookUp, method: str, names: list[str]
) -> None:
    """Our trainer's methods have the same arguments: it is called, and calls on, by their names and order."""
    taken = list(inspect.signature(foreign(f"transformers:Trainer.{method}")).parameters)[1:]
    assert taken[: len(names)] == names, f"Trainer.{method} takes {taken}, ours takes {names}"


@pytest.mark.parametrize("name", SET)
def test_training_arguments_have_the_fields_that_ours_set(foreign: LookUp, name: str) -> None:
    """The recipes: a field that is called otherwise, and every recipe is refused."""
    known = {one.name for one in fields(foreign("transformers:TrainingArguments")) if one.init}
    assert name in known, f"TrainingArguments.{name} is gone"


def test_our_recipes_were_read() -> None:
    """This file: where there are none, the next test would check nothing."""
    assert {("training", "learning_rate"), ("lora", "r")} <= set(recipe_keys())


@pytest.mark.parametrize(("section", "key"), recipe_keys())
def test_a_key_of_our_recipes_is_known(foreign: LookUp, section: str, key: str) -> None:
    """The recipes that come with the project name these fields of the libraries."""
    owner = {"training": "transformers:TrainingArguments", "lora": "peft:LoraConfig"}[section]
    known = {one.name for one in fields(foreign(owner)) if one.init}
    assert {key, OLDER.get(key)} & known, f"{owner}.{key} is gone"


@pytest.mark.parametrize("owner", ["transformers:TrainingArguments", "peft:LoraConfig"])
def test_fields_have_types_that_can_be_read(foreign: LookUp, owner: str) -> None:
    """The recipes are checked against these types before anything is loaded."""
    hints = get_type_hints(foreign(owner))
    name = {"transformers:TrainingArguments": "bf16", "peft:LoraConfig": "r"}[owner]
    assert hints[name] in (bool, int), f"{owner}.{name} is of type {hints[name]}"


def test_arguments_that_do_not_fit_are_these_errors(foreign: LookUp, tmp_path: Path) -> None:
    """The recipes turn them into a message that says what transformers refuses."""
    with pytest.raises((ValueError, TypeError, ImportError, NotImplementedError)):
        foreign("transformers:TrainingArguments")(output_dir=str(tmp_path), lr_scheduler_type="none")


def test_reports_are_made_of_classes_by_name(foreign: LookUp) -> None:
    """The recipes try each of them before the run, so that one that is not installed is told at once."""
    made = foreign("transformers.integrations:get_reporting_integration_callbacks")
    assert made([]) == [], "get_reporting_integration_callbacks"
    assert all(callable(one) for one in made(["tensorboard"])), "get_reporting_integration_callbacks"
    with pytest.raises(ValueError, match="no_such_report"):
        made(["no_such_report"])


def test_a_report_that_is_not_there_is_a_runtime_error(
    foreign: LookUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipes turn it into a message: TensorBoard is an extra of ours."""
    monkeypatch.setattr(
        foreign("transformers.integrations.integration_utils"), "is_tensorboard_available", _no
    )
    (kind,) = foreign("transformers.integrations:get_reporting_integration_callbacks")(["tensorboard"])
    with pytest.raises(RuntimeError, match="ensor"):
        kind()


def _no() -> bool:
    return False


# --- LoRA --------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(foreign: LookUp, make_llava: Make) -> Any:
    """A LLaVA with LoRA on its language model, as a recipe of ours makes it."""
    config = foreign("peft:LoraConfig")(
        target_modules=r".*language_model.*\.(q|v)_proj", r=2, lora_alpha=4,
        modules_to_save=["model.multi_modal_projector"],
    )  # fmt: skip
    return foreign("peft:get_peft_model")(make_llava(), config)


def test_a_text_chooses_modules_as_a_whole_pattern(adapted: Any) -> None:
    """LoRA of the families: the vision encoder has projections of the same names and must stay as it is."""
    names = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert len(names) == 6, f"LoraConfig(target_modules=<pattern>) adapts {sorted(names)}"
    assert all("language_model" in name for name in names), "LoraConfig(target_modules=<pattern>)"


def test_modules_to_save_train_whole(adapted: Any) -> None:
    """LoRA of a recipe that trains the projector too: it is named by its path."""
    learning = {name for name, one in adapted.named_parameters() if one.requires_grad and "lora" not in name}
    assert learning, "LoraConfig(modules_to_save=...) trains nothing"
    assert all("multi_modal_projector" in name for name in learning), (
        f"LoraConfig(modules_to_save=...) {learning}"
    )


def test_an_adapted_model_gives_its_base(foreign: LookUp, adapted: Any) -> None:
    """Evaluations during training answer with the model inside, adapters and all."""
    base = adapted.get_base_model()
    assert type(base) is foreign("transformers:LlavaForConditionalGeneration"), "PeftModel.get_base_model"
    assert any("lora_A" in name for name, _ in base.named_parameters()), "PeftModel.get_base_model"


def test_merging_adds_the_adapters_to_the_weights(
    same: Same, make_llava: Make, adapted: Any, tmp_path: Path
) -> None:
    """The result of a LoRA run loads like any checkpoint: weight + scale * B A, under its own name."""
    layer = adapted.get_base_model().model.language_model.layers[0].self_attn.q_proj
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    torch.nn.init.normal_(up)
    expected = layer.base_layer.weight + 2.0 * up @ down
    merged = adapted.merge_and_unload()
    merged_layer = merged.model.language_model.layers[0].self_attn.q_proj
    same(merged_layer.weight, expected, "PeftModel.merge_and_unload")
    assert merged.state_dict().keys() == make_llava().state_dict().keys(), "PeftModel.merge_and_unload"
    assert isinstance(merged.model.multi_modal_projector.linear_1, torch.nn.Linear), "merge_and_unload"


# --- accelerate and torch ----------------------------------------------------------------------------------


def test_gathering_leaves_a_single_process_its_rows(foreign: LookUp) -> None:
    """Evaluations and the counts of what did not fit: processes put their lists together."""
    rows = [{"shortened": 1}, {"shortened": 2}]
    assert foreign("accelerate.utils:gather_object")(rows) == rows, "gather_object"


def test_clearing_a_device_collects_garbage(foreign: LookUp) -> None:
    """The runner, after memory ran out: an error holds what it failed with, in a circle."""

    class Held:
        pass

    held = Held()
    held.itself = held  # type: ignore[attr-defined]
    gone = weakref.ref(held)
    gc.disable()
    try:
        del held
        assert gone() is not None
        foreign("accelerate.utils.memory:clear_device_cache")(garbage_collection=True)
        assert gone() is None, "clear_device_cache(garbage_collection=True)"
    finally:
        gc.enable()


def test_a_divided_module_can_be_whole_for_a_while(foreign: LookUp) -> None:
    """Evaluations during training under FSDP: the weights are gathered once and divided again."""
    for name in ("unshard", "reshard", "set_reshard_after_forward"):
        assert callable(foreign(f"torch.distributed.fsdp:FSDPModule.{name}"))
    method = foreign("torch.distributed.fsdp:FSDPModule.set_reshard_after_forward")
    assert "recurse" in inspect.signature(method).parameters, (
        "FSDPModule.set_reshard_after_forward(recurse=...)"
    )


def test_a_divided_state_can_be_written_whole(foreign: LookUp) -> None:
    """The result of a run under FSDP: `accelerator.state.fsdp_plugin.set_state_dict_type`."""
    assert callable(foreign("accelerate:FullyShardedDataParallelPlugin.set_state_dict_type"))
    assert callable(foreign("accelerate:Accelerator.get_state_dict"))


def test_an_accelerator_says_where_it_runs(foreign: LookUp) -> None:
    """The model classes: number of the process, how many there are, and the device."""
    accelerator = foreign("accelerate:Accelerator")()
    assert (accelerator.process_index, accelerator.num_processes) == (0, 1), "Accelerator"
    assert isinstance(accelerator.device, torch.device), "Accelerator.device"


def test_operations_are_counted(foreign: LookUp) -> None:
    """The benchmark: how near a batch comes to what the hardware could do."""
    with foreign("torch.utils.flop_counter:FlopCounterMode")(display=False) as counter:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert counter.get_total_flops() == 2 * 3 * 4 * 5, "FlopCounterMode.get_total_flops"
