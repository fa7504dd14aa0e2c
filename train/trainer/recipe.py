"""A training run as a value: the YAML recipes, checked before anything is loaded. Knows no model and no data.

Two sections are the libraries' own, key for key: `training` (transformers.TrainingArguments) and `lora`
(peft.LoraConfig). All faults of a recipe are reported in one message.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.checkpoint.shipped import SHIPPED
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.protocol import PROTOCOLS, Protocol
from dualfocus_lmms.settings import Regions
from dualfocus_lmms.train.data.yaml_file import read_yaml
from dualfocus_lmms.types import Template

RECIPES = Path(__file__).parents[1] / "recipes"

Part = Literal["vision_tower", "projector", "language_model"]
_Count = Annotated[int, Field(ge=1)]
_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

# What the trainer sets itself, and what a recipe says instead.
_TAKEN = {
    "output_dir": "output",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size and micro_batch_size",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "seed": "seed",
    "data_seed": "seed",
    "eval_strategy": "evaluation.every",
    "eval_steps": "evaluation.every",
    "train_sampling_strategy": "nothing: the order of the data follows from `data` and `seed`",
    "remove_unused_columns": "nothing",
    "resume_from_checkpoint": "nothing: the same command continues a run that was interrupted",
    "label_smoothing_factor": "nothing: for models with images transformers compares each token with itself",
    "load_best_model_at_end": "nothing: the last model is the result",
}
_TAKEN_LORA = {"modules_to_save": "train", "task_type": "nothing"}


@dataclass(frozen=True, slots=True)
class Data:
    """One source of data. kind: "samples" (a Parquet file or folder, see train/data/samples.py), "macro"
    (these, with only the whole image and the question of each) or "llava" (LLaVA's JSON, with images in the
    folder `images`). share: its part of the mixture; without shares an epoch is everything once. box_jitter:
    by up to which share of its box's sides the edges of a sample's crop are moved."""

    path: str
    kind: Literal["samples", "macro", "llava"] = "samples"
    images: str | None = None
    share: Annotated[float, Field(gt=0)] | None = None
    box_jitter: Annotated[float, Field(ge=0, lt=0.5)] = 0.0

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out samples to answer during training: the first `samples` of a Parquet file or folder, `every` so
    many steps and at the end."""

    path: str
    every: _Count = 500
    samples: _Count = 500
    batch_size: _Count = 8
    max_new_tokens: _Count = 16

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run.

    model: checkpoint folder or hub name. output: folder of the run; the trained checkpoint is its `model`.
    train: the parts that learn. lora: adapts the language model instead of training it. batch_size: samples a
    step, over all processes; micro_batch_size: samples a process computes at once. steps, if given, wins over
    epochs. max_length: tokens a sample may have. instruction: how to answer, in the macro prompt and in Q2.
    box_weight: factor on the loss of box tokens. dtype: of the weights that are loaded. chat_template,
    crop_pixels, min_pixels, max_pixels, regions: as the model arguments of these names; the bounds go into
    the trained checkpoint.
    """

    model: str
    output: str
    data: tuple[Data, ...]
    train: tuple[Part, ...] = ("projector", "language_model")
    lora: dict[str, Any] | None = None
    protocol: str = "paper"
    instruction: str = SHORT_ANSWER
    batch_size: _Count = 128
    micro_batch_size: _Count = 16
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: _Count | None = None
    max_length: _Count = 2048
    box_weight: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    attn_implementation: str | None = None
    chat_template: Template = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    crop_pixels: Literal["auto", "original"] | _Count | None = None
    min_pixels: _Count | None = None
    max_pixels: _Count | None = None
    regions: Regions = "union"
    evaluation: Evaluation | None = None
    training: dict[str, Any] = field(default_factory=dict)

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    @property
    def sharded(self) -> bool:
        """Whether the weights are divided among processes."""
        return bool(self.training.get("fsdp") or self.training.get("deepspeed"))

    def rules(self) -> Protocol:
        """The protocol, with the crops of this recipe."""
        chosen = PROTOCOLS[self.protocol]
        return chosen if self.crop_pixels is None else replace(chosen, crop_pixels=self.crop_pixels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, all defaults filled in."""
        return asdict(self)


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or of one of ours by name, with `key=value` overrides ("data.0.path=...").

    UserError with every fault that can be found: unknown keys, wrong types, rules, missing files.
    """
    path = _find(recipe)
    given = read_yaml(path, "The recipe")
    if not isinstance(given, dict):
        raise UserError(f"The recipe {str(path)!r} is no mapping of keys to values.")
    problems = list(_override(given, overrides))
    sections = {"training": (_training_types, _TAKEN), "lora": (_lora_types, _TAKEN_LORA)}
    for name, (types, taken) in sections.items():
        if isinstance(given.get(name), dict):
            given[name], found = _section(name, given[name], types(), taken)
            problems += found
    made, found = _validated(Recipe, given)
    problems += [*found, *_missing_files(given)]
    if made is not None:
        problems += _broken_rules(made)
    if problems or made is None:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"The recipe {str(path)!r} cannot be used:\n{listed}")
    return made


def _find(recipe: str) -> Path:
    """A path as it is, or a recipe of ours by name."""
    path = Path(recipe)
    if os.path.isfile(path):
        return path
    ours = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if recipe in ours:
        return RECIPES / f"{recipe}.yaml"
    raise UserError(f"There is no recipe {recipe!r}: give a YAML file or one of {', '.join(ours)}.")


def _override(given: dict[str, Any], overrides: Iterable[str]) -> Iterator[str]:
    """Put `key=value` overrides into `given`; what is wrong with them."""
    for override in overrides:
        dotted, equals, text = override.partition("=")
        *parents, last = dotted.split(".")
        try:
            place: Any = given
            for key in parents:
                if isinstance(place, dict) and place.get(key) is None:
                    place[key] = {}
                place = place[int(key)] if isinstance(place, list) else place[key]
            value = yaml.safe_load(text)
            if not equals:
                raise ValueError
            place[int(last) if isinstance(place, list) else last] = value
        except (ValueError, IndexError, KeyError, TypeError, yaml.YAMLError):
            yield f"{override!r} is no override: give key=value, as in training.learning_rate=1e-5"


def _validated(kind: Any, given: Any, prefix: str = "") -> tuple[Any, list[str]]:
    """(the value, nothing) or (None, its faults)."""
    try:
        return TypeAdapter(kind).validate_python(given), []
    except ValidationError as error:
        return None, [_fault(fault, prefix) for fault in error.errors()]


def _fault(fault: Any, prefix: str) -> str:
    """One fault as a line: where it is, what it is, what is allowed."""
    where = prefix or ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "unexpected_keyword_argument":
        inner = {"data": Data, "evaluation": Evaluation}
        kind = inner.get(str(fault["loc"][0]), Recipe) if len(fault["loc"]) > 1 else Recipe
        return f"{where}: unknown key; allowed are {', '.join(field.name for field in fields(kind))}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    if fault["type"] in ("literal_error", "enum") and isinstance(fault["input"], bool):
        return f"{where}: YAML takes yes, no, on and off for true and false; put the word in quotes"
    return f"{where}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {fault['input']!r}"


def _section(
    name: str, given: Mapping[str, Any], types: Mapping[str, Any], taken: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """(the values as the library types them, faults) of a section that is a library's own."""
    values, problems = dict(given), []
    for key, value in given.items():
        if key in taken:
            problems.append(f"{name}.{key}: the trainer sets this; use {taken[key]}")
        elif key not in types:
            problems.append(f"{name}.{key}: unknown key; allowed are {', '.join(sorted(types))}")
        else:
            values[key], found = _validated(types[key], value, f"{name}.{key}")
            problems += found[:1]
    return values, problems


# What settings of the section `training` were called before transformers 5.23.
_OLDER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}


def _training_types() -> dict[str, Any]:
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    types = {field.name: hints[field.name] for field in fields(TrainingArguments) if field.init}
    older = {new: types[old] for new, old in _OLDER_NAMES.items() if old in types}
    return older | types | {"fsdp": bool | None}


def _lora_types() -> dict[str, Any]:
    from peft import LoraConfig

    hints = get_type_hints(LoraConfig)
    simple = {bool, int, float}
    return {
        field.name: hints[field.name] if hints[field.name] in simple else Any
        for field in fields(LoraConfig)
        if field.init
    }


def _broken_rules(recipe: Recipe) -> Iterator[str]:
    """What the values must fulfil together."""
    rate = recipe.training.get("learning_rate", 1.0)
    if isinstance(rate, (int, float)) and not 0 < rate < math.inf:
        yield f"training.learning_rate: must be a number above 0, got {rate}"
    if recipe.protocol not in PROTOCOLS:
        yield f"protocol: unknown {recipe.protocol!r}; allowed are {', '.join(PROTOCOLS)}"
    if recipe.regions == "separate" and recipe.protocol == "release":
        yield "regions: separate needs protocol paper; the authors' release shows one region"
    if not recipe.data:
        yield "data: give at least one source"
    if recipe.batch_size % recipe.micro_batch_size:
        yield f"batch_size: {recipe.batch_size} is no multiple of micro_batch_size {recipe.micro_batch_size}"
    if len({source.share is None for source in recipe.data}) > 1:
        yield "data: give a share to every source or to none"
    for number, source in enumerate(recipe.data):
        if source.box_jitter and source.kind != "samples":
            yield f"data.{number}.box_jitter: only examples of kind samples have crops, not {source.kind}"
    if recipe.lora is None and not recipe.train:
        yield "train: nothing would be trained; give parts of the model, or lora"
    if recipe.lora is not None and "language_model" in recipe.train:
        yield "train: lora adapts the language_model; leave it out here"
    if recipe.lora is not None and recipe.sharded:
        yield "lora: runs on one GPU or with a whole model on each; leave out training.fsdp and .deepspeed"
    if recipe.dtype == "bfloat16" and recipe.lora is None and not recipe.training.get("deepspeed"):
        yield "dtype: bfloat16 weights lose small updates; use float32 with training.bf16, or DeepSpeed"
    if recipe.dtype == "bfloat16" and not recipe.training.get("bf16"):
        yield "dtype: bfloat16 needs training.bf16"


def _missing_files(given: Mapping[str, Any]) -> Iterator[str]:
    """Files that are named and are not there. "organisation/model" may be a hub name."""
    named = {"model": given.get("model")}
    sources = given.get("data")
    for number, source in enumerate(sources if isinstance(sources, list) else []):
        if isinstance(source, dict):
            named |= {f"data.{number}.{key}": source.get(key) for key in ("path", "images")}
    if isinstance(given.get("evaluation"), dict):
        named["evaluation.path"] = given["evaluation"].get("path")
    for key, path in named.items():
        if not isinstance(path, str):
            continue
        hub_name = key == "model" and (path in SHIPPED or re.fullmatch(r"[\w-]+/[\w.-]+", path))
        if not hub_name and not os.path.exists(path):
            yield f"{key}: there is no {path!r}"


def training_arguments(recipe: Recipe, processes: int) -> Any:
    """transformers.TrainingArguments of a recipe on so many processes. UserError for what they refuse.

    Make them before the model is loaded: FSDP and ZeRO change how weights are loaded.
    """
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    at_once = recipe.micro_batch_size * processes
    if recipe.batch_size % at_once:
        raise UserError(
            f"batch_size {recipe.batch_size} is no multiple of {processes} processes x micro_batch_size "
            f"{recipe.micro_batch_size}: change one of the two."
        )
    defaults = {
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,  # every part runs in every step, see collate.Collator
    }
    fixed = {
        "output_dir": recipe.output,
        "per_device_train_batch_size": recipe.micro_batch_size,
        "gradient_accumulation_steps": recipe.batch_size // at_once,
        "num_train_epochs": 1,  # the data set is the whole run
        "seed": recipe.seed,
        "train_sampling_strategy": "sequential",  # its order is the run's
        "remove_unused_columns": False,
        "eval_strategy": "no" if recipe.evaluation is None else "steps",
        "eval_steps": None if recipe.evaluation is None else recipe.evaluation.every,
    }
    known = {field.name for field in fields(TrainingArguments)}
    given = {
        name if name in known else _OLDER_NAMES.get(name, name): copy.deepcopy(value)
        for name, value in recipe.training.items()
    }
    try:
        arguments = TrainingArguments(**{**defaults, **given, **fixed})
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise UserError(f"transformers refuses the section `training`: {error}") from error
    try:
        for logger in get_reporting_integration_callbacks(arguments.report_to):
            logger()
    except (ValueError, RuntimeError) as error:  # unknown, or not installed
        raise UserError(f"training.report_to: {error}") from error
    return arguments


def lora_config(recipe: Recipe, targets: str, parts: Sequence[str]) -> Any:
    """peft.LoraConfig of a recipe: `targets` unless it names its own; the modules `parts` train in full."""
    from peft import LoraConfig

    given = {"target_modules": targets, **copy.deepcopy(recipe.lora or {})}
    try:
        return LoraConfig(**given, modules_to_save=list(parts) or None)
    except (ValueError, TypeError) as error:
        raise UserError(f"peft refuses the section `lora`: {error}") from error


def processes() -> int:
    """How many processes this run has; torchrun and accelerate say so."""
    return int(os.environ.get("WORLD_SIZE", "1"))
