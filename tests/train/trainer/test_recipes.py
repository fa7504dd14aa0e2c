"""Recipes: ours bind to the libraries' real signatures, and all faults of one are named at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin

from dualfocus_lmms import UserError
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.train.trainer.recipe import (
    RECIPES,
    Recipe,
    load_recipe,
    lora_config,
    training_arguments,
)

OURS = sorted(path.stem for path in RECIPES.glob("*.yaml"))
GPUS = {name: int(match[1]) for name in OURS if (match := re.search(r"(\d)gpu", name))}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes every file that a recipe names, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def make(given: Any) -> None:
        for source in [*given["data"], given.get("evaluation") or {}]:
            for key in {"path", "images"} & set(source):
                Path(source[key]).mkdir(parents=True, exist_ok=True)
        if given["model"].startswith("runs/"):
            Path(given["model"]).mkdir(parents=True, exist_ok=True)

    return make


def ours(name: str, files: Callable[[Any], None], *overrides: str) -> Recipe:
    files(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    return load_recipe(name, overrides)


def test_the_recipes_are_those_that_are_promised():
    assert OURS == [
        "llava15_7b_full_8gpu_fsdp",
        "llava15_7b_full_8gpu_zero3",
        "llava15_7b_lora_1gpu",
        "nano",
        "qwen2_5_vl_7b_lora_1gpu",
        "qwen_vl",
        "tiny_cpu",
    ]


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_opens_with_the_command_that_runs_it(name):
    first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f" train train/recipes/{name}.yaml")
    processes = re.search(r"--nproc_per_node (\d+)", first)
    assert (int(processes[1]) if processes else 1) == GPUS.get(name, 1)


@pytest.mark.parametrize("name", [name for name in OURS if "zero3" not in name])
def test_a_recipe_makes_real_training_arguments(name, files):
    # bf16 is refused where there is neither a GPU nor this switch.
    recipe = ours(name, files, "training.use_cpu=true", "training.report_to=none")
    processes = GPUS.get(name, 1)
    arguments = training_arguments(recipe, processes)
    per_step = arguments.per_device_train_batch_size * processes * arguments.gradient_accumulation_steps
    assert per_step == recipe.batch_size
    assert arguments.train_sampling_strategy == "sequential"
    expected = (0.1, 0.01) if name == "qwen_vl" else (0.0, 0.03)
    assert (arguments.weight_decay, arguments.warmup_steps) == expected
    assert arguments.lr_scheduler_type == "cosine"
    assert arguments.eval_steps == recipe.evaluation.every
    assert bool(arguments.fsdp) == ("fsdp" in name)


def test_llava_hyper_parameters(files):
    """Table 9 of "Improved Baselines with Visual Instruction Tuning", and LLaVA's LoRA script."""
    for name in ("llava15_7b_full_8gpu_fsdp", "llava15_7b_full_8gpu_zero3"):
        recipe = ours(name, files)
        assert (recipe.batch_size, recipe.epochs, recipe.max_length) == (128, 1, 2048)
        assert recipe.train == ("projector", "language_model")
        assert recipe.training["learning_rate"] == 2e-5
    lora = ours("llava15_7b_lora_1gpu", files)
    assert (lora.training["learning_rate"], lora.lora["r"], lora.lora["lora_alpha"]) == (2e-4, 128, 256)
    assert (lora.batch_size, lora.epochs) == (128, 1)


def test_qwen_vl_hyper_parameters(files):
    """Qwen-VL's finetuning script with LoRA, and the parts that the paper trains."""
    recipe = ours("qwen_vl", files)
    assert recipe.train == ("projector",)
    assert recipe.lora == {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05}
    assert (recipe.training["learning_rate"], recipe.training["adam_beta2"]) == (1e-5, 0.95)
    assert (recipe.epochs, recipe.max_length) == (1, 2048)


def test_the_fsdp_recipe_makes_a_real_plugin(files):
    recipe = ours("llava15_7b_full_8gpu_fsdp", files, "training.use_cpu=true", "training.report_to=none")
    before = copy.deepcopy(recipe.to_dict())
    plugin = FullyShardedDataParallelPlugin(**training_arguments(recipe, 8).fsdp_plugin_args)
    assert recipe.to_dict() == before  # transformers writes into what it is given
    assert plugin.fsdp_version == 2
    assert plugin.activation_checkpointing
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer", "CLIPEncoderLayer"]
    # Every key is one that transformers reads: what it does not know it would pass over in silence.
    import transformers.training_args as source

    text = Path(source.__file__).read_text()
    for key in recipe.training["fsdp_config"]:
        assert re.search(rf'fsdp_config(\.get\(|\[)"{key}"|"{key}" in self\.fsdp_config', text), key


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_the_zero3_recipe_makes_real_training_arguments(files):
    recipe = ours("llava15_7b_full_8gpu_zero3", files, "training.use_cpu=true", "training.report_to=none")
    arguments = training_arguments(recipe, 8)
    filled = arguments.hf_deepspeed_config.config
    assert filled["zero_optimization"]["stage"] == 3
    assert filled["bf16"]["enabled"]


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_without_deepspeed_the_zero3_recipe_says_what_is_missing(files):
    recipe = ours("llava15_7b_full_8gpu_zero3", files, "training.use_cpu=true", "training.report_to=none")
    with pytest.raises(UserError, match="deepspeed"):
        training_arguments(recipe, 8)


def test_the_lora_recipe_adapts_every_linear_layer_of_the_language_model(files, untrained):
    from peft import get_peft_model
    from transformers import LlavaForConditionalGeneration

    recipe = ours("llava15_7b_lora_1gpu", files)
    config = lora_config(recipe, LLAVA.lora_targets, ["multi_modal_projector"])
    model = get_peft_model(LlavaForConditionalGeneration.from_pretrained(untrained), config)
    adapted = [name for name, module in model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 7 * 2
    assert all("language_model" in name for name in adapted)


MINIMAL = {"model": "organisation/model", "output": "out", "data": [{"path": "here"}]}


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> str:
    """A recipe of the fewest keys, with changes; None takes a key out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    given = {key: value for key, value in {**MINIMAL, **changed}.items() if value is not None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    return str(tmp_path / "recipe.yaml")


def test_the_fewest_keys_and_the_defaults(tmp_path, monkeypatch):
    recipe = load_recipe(written(tmp_path, monkeypatch))
    assert recipe.train == ("projector", "language_model")
    assert (recipe.protocol, recipe.batch_size, recipe.box_weight, recipe.seed) == ("paper", 128, 1.0, 0)
    assert (recipe.data[0].kind, recipe.lora, recipe.evaluation, recipe.training) == (
        "samples",
        None,
        None,
        {},
    )


def test_label_smoothing_is_refused(tmp_path, monkeypatch):
    """transformers shifts labels for text models alone: each token would be taught to repeat itself."""
    path = written(tmp_path, monkeypatch, training={"label_smoothing_factor": 0.1})
    with pytest.raises(
        UserError, match=r"training\.label_smoothing_factor: the trainer sets this; use nothing"
    ):
        load_recipe(path)


def test_all_faults_are_named_in_one_message(tmp_path, monkeypatch):
    path = written(
        tmp_path,
        monkeypatch,
        model="./nowhere",
        output=None,
        epoch=1,
        batch_size="many",
        train=["head"],
        data=[{"path": "gone", "kind": "vqa"}, {"path": "here", "image": "x"}],
        evaluation={"path": "lost", "every": 0},
        lora={"rank": 8, "r": "x"},
        training={"learning_rat": 1, "output_dir": "y", "weight_decay": "w", "bf16": True},
    )
    with pytest.raises(UserError) as error:
        load_recipe(path, ["seed=-1", "nothing", "data.7.path=x"])
    listed = [line.strip() for line in str(error.value).splitlines()[1:]]
    places = [
        "'nothing'", "'data.7.path=x'", "training.learning_rat:", "training.output_dir:",
        "training.weight_decay:", "lora.rank:", "lora.r:", "output:", "epoch:", "batch_size:", "train.0:",
        "data.0.kind:", "data.1.image:", "evaluation.every:", "seed:", "model:", "data.0.path:",
        "evaluation.path:",
    ]  # fmt: skip
    assert sorted(line.split(" ")[0] for line in listed) == sorted(places)
    unknown = next(line for line in listed if line.startswith("epoch:"))
    assert {"epochs", "batch_size", "lora"} <= set(re.findall(r"\w+", unknown))
    inner = next(line for line in listed if line.startswith("data.1.image:"))
    assert {"path", "kind", "images", "share"} <= set(re.findall(r"\w+", inner))


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"protocol": "papr"}, "protocol"),
        ({"data": []}, "data"),
        ({"data": [{"path": "here", "share": 0.5}, {"path": "here"}]}, "data"),
        ({"data": [{"path": "here", "share": 0}]}, "data.0.share"),
        ({"batch_size": 10, "micro_batch_size": 4}, "batch_size"),
        ({"train": []}, "train"),
        ({"lora": {"r": 4}}, "train"),
        ({"train": ["projector"], "lora": {"r": 4}, "training": {"fsdp": True}}, "lora"),
        ({"dtype": "bfloat16", "training": {"bf16": True}}, "dtype"),
        ({"dtype": "float16"}, "dtype"),
        ({"data": [{"path": "here", "box_jitter": 0.5}]}, "data.0.box_jitter"),
        ({"data": [{"path": "here", "kind": "macro", "box_jitter": 0.1}]}, "data.0.box_jitter"),
        ({"box_weight": 0}, "box_weight"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate"),
        ({"training": {"learning_rate": ".nan"}}, "training.learning_rate"),
        ({"training": {"save_strategy": False}}, "training.save_strategy"),
        ({"train": ["projector"], "lora": {"r": 4}, "dtype": "bfloat16"}, "dtype"),
        ({"regions": "separate", "protocol": "release"}, "regions"),
        ({"regions": "both"}, "regions"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
    ],
)
def test_what_cannot_be_together_is_refused(tmp_path, monkeypatch, changed, place):
    with pytest.raises(UserError) as error:
        load_recipe(written(tmp_path, monkeypatch, **changed))
    assert [line.strip().split(":")[0] for line in str(error.value).splitlines()[1:]] == [place]


def test_overrides_replace_add_and_read_numbers_as_people_write_them(tmp_path, monkeypatch):
    path = written(tmp_path, monkeypatch, training={"learning_rate": "2e-5"})  # YAML 1.1 reads a text
    assert load_recipe(path).training == {"learning_rate": 2e-5}
    overrides = ["training.learning_rate=1e-3", "evaluation.path=here", "data.0.share=1"]
    recipe = load_recipe(path, [*overrides, "train=[projector]", "steps=5"])
    assert recipe.training == {"learning_rate": 1e-3}
    assert (recipe.evaluation.path, recipe.data[0].share) == ("here", 1.0)
    assert (recipe.train, recipe.steps) == (("projector",), 5)


def test_a_recipe_that_is_not_there_names_ours(tmp_path):
    with pytest.raises(UserError, match="tiny_cpu"):
        load_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name in ("list.yaml", "broken.yaml"):
        with pytest.raises(UserError):
            load_recipe(str(tmp_path / name))


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path, monkeypatch):
    recipe = load_recipe(written(tmp_path, monkeypatch), ["batch_size=48", "training.use_cpu=true"])
    assert training_arguments(recipe, 3).gradient_accumulation_steps == 1
    with pytest.raises(UserError):
        training_arguments(recipe, 2)


@pytest.mark.parametrize("wrong", [{"lr_scheduler_type": "zigzag"}, {"report_to": "nowhere"}])
def test_what_transformers_refuses_is_the_users_mistake(tmp_path, monkeypatch, wrong):
    path = written(tmp_path, monkeypatch, training={**wrong, "use_cpu": True})
    with pytest.raises(UserError):
        training_arguments(load_recipe(path), 1)
