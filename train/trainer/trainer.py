"""From a recipe to a trained checkpoint, on transformers' Trainer.

    dualfocus train RECIPE.yaml [key=value ...]

The same command continues a run that was interrupted. The result is `<output>/model`, which loads wherever
its base model does.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from loguru import logger
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, set_seed

from dualfocus_lmms.errors import GenerationError, Interrupted, UserError
from dualfocus_lmms.models.checkpoint.image_inputs import FixedSizeImages, ProcessorImages
from dualfocus_lmms.models.checkpoint.image_text_inputs import reader, token_types
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.train.data.conversations import IGNORED, Encoder
from dualfocus_lmms.train.data.samples import TrainingSample, read_samples
from dualfocus_lmms.train.trainer.collate import (
    MISFITS,
    Collator,
    Mixture,
    Source,
    blank_row,
    llava_source,
    sample_source,
)
from dualfocus_lmms.train.trainer.evaluation import Scored, evaluate, summary
from dualfocus_lmms.train.trainer.output import claim, last_checkpoint
from dualfocus_lmms.train.trainer.recipe import Recipe, load_recipe, processes, training_arguments
from dualfocus_lmms.train.trainer.weights import Companions, trainable, whole_weights, write_checkpoint
from dualfocus_lmms.zoom import check_crops


def train(recipe: str, overrides: Sequence[str] = ()) -> Path:
    """Train by the recipe and return the folder of the trained checkpoint.

    Every process of a run calls this with the same arguments. UserError for the user's own mistakes;
    GenerationError when the loss is no longer a number.
    """
    chosen = load_recipe(recipe, overrides)
    result = Path(chosen.output) / "model"
    arguments = training_arguments(chosen, processes())
    if arguments.n_gpu > 1:
        raise UserError("One process sees several GPUs: launch with torchrun, or set CUDA_VISIBLE_DEVICES.")
    claim(chosen, arguments)
    if (result / "config.json").exists():
        return result
    run = build(chosen, arguments)
    if run.trainer.is_world_process_zero():
        logger.info(_announcement(run))
    try:
        run.trainer.train(resume_from_checkpoint=str(run.last) if run.last else None)
        _finish(run, result)
    except KeyboardInterrupt as error:
        last = last_checkpoint(Path(chosen.output))
        done = f"the last complete checkpoint is {last}" if last else "there is no complete checkpoint yet"
        raise Interrupted(f"{done}. Run the same command to resume from there.") from error
    except (OSError, RuntimeError, SafetensorError) as error:  # what the libraries raise when a disk is full
        if shutil.disk_usage(chosen.output).free > _SPACE:
            raise
        raise UserError(
            f"There is no space left for {chosen.output!r} ({error}): make some, and the same command goes "
            "on from the last checkpoint that is complete."
        ) from error
    return result


_SPACE = 1 << 23  # bytes; with fewer a disk is full


@dataclass(frozen=True, eq=False)
class Run:
    """Everything of a run that is about to start. last: the checkpoint it continues from."""

    recipe: Recipe
    checkpoint: Checkpoint
    trainer: DualFocusTrainer
    mixture: Mixture
    last: Path | None


def build(recipe: Recipe, arguments: Any) -> Run:
    """Load, freeze and adapt the model and make its trainer. What is drawn follows from the recipe's seed."""
    set_seed(recipe.seed)  # before LoRA's first weights are drawn; the Trainer sets it again
    last = last_checkpoint(Path(recipe.output))
    adopt = last is not None and recipe.lora is None and not recipe.sharded
    # A Trainer looks for the names of modules in a checkpoint's file and finds other ones: we load it.
    checkpoint = load_checkpoint(
        str(last) if adopt else recipe.model,
        dtype=recipe.dtype,
        device="cpu",
        attn_implementation=recipe.attn_implementation,
        chat_template=recipe.chat_template,
        min_pixels=recipe.min_pixels,
        max_pixels=recipe.max_pixels,
    )
    renderer, image_reader = reader(checkpoint)
    for part in filter(None, (checkpoint.tokenizer, checkpoint.processor)):
        part.chat_template = renderer.template.text  # written beside the weights
    mixture, collator = _data(recipe, checkpoint, renderer, image_reader)
    model = trainable(recipe, checkpoint)
    held_out: Sequence[TrainingSample] = []
    if recipe.evaluation is not None:
        held_out = read_samples(recipe.evaluation.path)[: recipe.evaluation.samples]
    trainer = DualFocusTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=mixture,
        eval_dataset=held_out,
        processing_class=Companions(checkpoint),
        callbacks=[StopAtNaN()],
        answer_held_out=lambda trainer: _answer_held_out(trainer, recipe, checkpoint, held_out),
        weights_are_loaded=adopt,
    )
    return Run(recipe, checkpoint, trainer, mixture, last)


def _announcement(run: Run) -> str:
    """What is about to be trained, on what."""
    mixture, total = run.mixture, run.mixture.epoch_length
    parts = [
        f"{source.name} {count:,} ({count / total:.1%})"
        for source, count in zip(mixture.sources, mixture.counts, strict=True)
    ]
    model: Any = run.trainer.model
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    start = f"continuing from {run.last}" if run.last else f"starting from {run.recipe.model}"
    return (
        f"An epoch: {', '.join(parts)}. {mixture.rows:,} samples in steps of {run.recipe.batch_size}; "
        f"{learning:,} parameters learn; {start}."
    )


class DualFocusTrainer(Trainer):
    """A Trainer that can weight tokens and that evaluates by answering questions."""

    def __init__(
        self,
        *args: Any,
        answer_held_out: Callable[[DualFocusTrainer], dict[str, float]],
        weights_are_loaded: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Qwen's models say False, and a step would be the mean of its micro batches' means; all of them take
        # the number of learned tokens and divide by it.
        self.model_accepts_loss_kwargs = True
        self._answer_held_out = answer_held_out
        self._weights_are_loaded = weights_are_loaded

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy summed over learned tokens, over their number in the whole step (eq. 4)."""
        if num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch.clamp(min=1)  # a step in which no sample fitted
        weights = inputs.pop("weights", None)
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = weighted_loss(outputs.logits, labels, weights, num_items_in_batch)
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answer the held-out samples with the current model; the figures of `evaluation.summary`."""
        figures = self._answer_held_out(self)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._weights_are_loaded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, count: torch.Tensor | int | None
) -> torch.Tensor:
    """Weighted cross-entropy (logits (B, L, V), labels and weights (B, L)) over `count` learned tokens."""
    targets = labels[:, 1:]
    learned = targets != IGNORED
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][learned].float(), targets[learned], reduction="none"
    )
    return (losses * weights[:, 1:][learned]).sum() / (learned.sum() if count is None else count)


class StopAtNaN(TrainerCallback):
    """Stops a run whose loss or gradient is no longer a number, before a checkpoint of it is written."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save or control.should_training_stop

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # With fp16 a gradient that overflows is skipped, which is no fault.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(value):
                raise GenerationError(
                    f"The {name} is {value} at step {state.global_step}. Lower training.learning_rate, "
                    "lengthen training.warmup_steps, or check the data; earlier checkpoints are as they were."
                )


def _data(
    recipe: Recipe, checkpoint: Checkpoint, renderer: Renderer, image_reader: Any
) -> tuple[Mixture, Collator]:
    """The rows of the whole run, and what makes batches of them."""
    config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
    longest = getattr(config.get_text_config(), "max_position_embeddings", recipe.max_length)
    if recipe.max_length > longest:
        raise UserError(f"max_length {recipe.max_length} is above the {longest} tokens of {recipe.model!r}.")
    encoder = Encoder(
        renderer,
        image_reader.ids,
        tokenizer.eos_token_id,
        recipe.max_length,
        recipe.box_weight,
    )
    blank = blank_row(encoder)
    mixture = Mixture(_sources(recipe, checkpoint, image_reader), encoder, recipe.seed)
    rows = recipe.steps * recipe.batch_size if recipe.steps else math.ceil(recipe.epochs * len(mixture))
    at_once = recipe.micro_batch_size * processes()
    mixture = Mixture(mixture.sources, encoder, recipe.seed, rows, at_once)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    types = token_types(checkpoint.model)
    return mixture, Collator(
        image_reader, pad, blank, weighted=recipe.box_weight != 1, image=config.image_token_id, types=types
    )


def _sources(
    recipe: Recipe, checkpoint: Checkpoint, image_reader: FixedSizeImages | ProcessorImages
) -> list[Source]:
    protocol, box_format = recipe.rules(), checkpoint.family.box_format
    check_crops(recipe.crop_pixels, image_reader.resolution)
    for source in recipe.data:
        cut_by = _built_with(source.path)
        if cut_by not in (None, recipe.protocol):
            logger.warning(
                f"The regions in {source.path!r} were cut out by protocol {cut_by!r}, the recipe and its "
                f"evaluations have {recipe.protocol!r}."
            )
    return [
        llava_source(source.path, source.images, source.share)
        if source.kind == "llava"
        else sample_source(
            source.path,
            protocol,
            box_format,
            recipe.instruction,
            source.share,
            source.kind == "macro",
            image_reader.input_size,
            image_reader.resolution,
            source.box_jitter,
            recipe.regions == "separate",
        )
        for source in recipe.data
    ]


def _built_with(samples: str) -> str | None:
    """The protocol that cut out a folder's regions, where its builder has noted it."""
    try:
        return json.loads((Path(samples) / "build.json").read_text(encoding="utf-8"))["protocol"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answer_held_out(
    trainer: DualFocusTrainer, recipe: Recipe, checkpoint: Checkpoint, samples: Sequence[TrainingSample]
) -> dict[str, float]:
    """The held-out figures of the model in memory. Processes share the samples; with ZeRO-3, whose weights
    are only whole while all processes compute the same, each answers all of them."""
    assert recipe.evaluation is not None
    together = trainer.is_deepspeed_enabled
    rank, world = (
        (0, 1) if together else (trainer.accelerator.process_index, trainer.accelerator.num_processes)
    )
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if recipe.lora is not None else model
    model.eval()
    with whole_weights(model, recipe), trainer.accelerator.autocast():
        backend = make_engine(None, replace(checkpoint, model=model))
        scored = evaluate(
            backend,
            samples[rank::world],
            Settings.of(recipe.protocol, crop_pixels=recipe.crop_pixels, regions=recipe.regions),
            recipe.instruction,
            recipe.evaluation.batch_size,
            recipe.evaluation.max_new_tokens,
        )
    model.train()
    if not together:
        rows = gather_object([asdict(outcome) for outcome in scored])
        scored = [Scored(**row) for row in rows]
    return summary(scored)


def _refuse_nothing_learned(misfits: Mapping[str, int], run: Run) -> None:
    """UserError where no row of the run could be used."""
    if misfits["left_out"] + misfits["refused"] < run.mixture.rows:
        return
    if misfits["refused"]:
        raise UserError(
            f"No sample can be used: the checkpoint's processor refuses an image of {misfits['refused']}, "
            f"and {misfits['left_out']} do not fit into max_length {run.recipe.max_length}. Give other data."
        )
    raise UserError(f"No sample fits into max_length {run.recipe.max_length}: give a larger one.")


def _finish(run: Run, result: Path) -> None:
    """Write the trained checkpoint, complete before it has its name, and the log of the run."""
    trainer = run.trainer
    counted = gather_object([run.mixture.misfits])
    misfits = {name: sum(part[name] for part in counted) for name in MISFITS}
    _refuse_nothing_learned(misfits, run)
    trainer.log({name: float(count) for name, count in misfits.items()})
    trainer.save_state()
    if any(misfits.values()) and trainer.is_world_process_zero():
        logger.warning(
            f"Longer than {run.recipe.max_length} tokens: {misfits['shortened']} samples lost their last "
            f"rounds, {misfits['left_out']} were left out. With an image that the checkpoint's processor "
            f"refuses: {misfits['refused']}, left out."
        )
    unfinished = result.with_name("model.unfinished")
    write_checkpoint(trainer, run.recipe, run.checkpoint, unfinished)
    if trainer.is_world_process_zero():
        unfinished.replace(result)
    trainer.accelerator.wait_for_everyone()
