"""The Trainer of transformers, whose methods our trainer overrides: that they are called, when, with what."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
Same = Callable[[Any, Any, str], None]

LEARNED = 2  # tokens of each row: of four, two have the label -100


class Rows(torch.utils.data.Dataset):
    """Twelve rows; as ours, some hold nothing, and the collator knows what to do."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int | None:
        return None if index == 7 else index


def collate(rows: Sequence[int | None]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[0 if row is None else row, 20, 21, 22] for row in rows])
    labels = ids.clone()
    labels[:, :LEARNED] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@dataclass
class Watched:
    """What a run did, in order, and what it wrote."""

    folder: Path
    events: list[str] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)
    saving: list[bool] = field(default_factory=list)
    loaded: list[Any] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    trainer: Any = None


class Companions:
    """What our trainer gives as `processing_class`."""

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "companion").touch()


def watched(foreign: LookUp, model: Any, folder: Path, fail: bool = False, **changed: Any) -> Watched:
    """A trainer of a model that writes down what it does, made as ours is."""
    seen = Watched(folder)

    class Trainer(foreign("transformers:Trainer")):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            seen.batches.append(inputs["input_ids"][:, 0].tolist())
            seen.counts.append(num_items_in_batch)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
        ) -> dict[str, float]:
            seen.events.append("evaluate")
            metrics = {f"{metric_key_prefix}_macro": 0.5}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            seen.loaded.append(resume_from_checkpoint)

    class Callback(foreign("transformers:TrainerCallback")):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.start.append(float(next(iter(kwargs["model"].parameters())).detach().sum()))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.saving.append(control.should_save)
            control.should_log |= control.should_save or control.should_training_stop

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.events.append("log " + " ".join(sorted(logs)))
            seen.logs.append(logs)
            if fail:
                raise ArithmeticError(state.global_step)

        def on_save(self, *args: Any, **kwargs: Any) -> None:
            seen.events.append("save")

    given = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_train_epochs": 1, "seed": 0, "train_sampling_strategy": "sequential", "use_cpu": True,
        "remove_unused_columns": False, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2,
        "logging_steps": 100, "report_to": "none", "logging_nan_inf_filter": False, "learning_rate": 0.01,
        "ddp_find_unused_parameters": False, "disable_tqdm": True,
    }  # fmt: skip
    seen.trainer = Trainer(
        model=model, args=foreign("transformers:TrainingArguments")(**(given | changed)),
        data_collator=collate, train_dataset=Rows(), eval_dataset=["any", "thing"],
        processing_class=Companions(), callbacks=[Callback()],
    )  # fmt: skip
    return seen


@pytest.fixture(scope="module")
def begun(foreign: LookUp, make_llama: Make, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run of three steps that was stopped after two, with a checkpoint then."""
    seen = watched(foreign, make_llama(), tmp_path_factory.mktemp("run"), max_steps=2)
    seen.trainer.train()
    return seen


@pytest.fixture(scope="module")
def resumed(foreign: LookUp, make_llama: Make, begun: Watched) -> Watched:
    """The same run continued, with a model whose weights differ from the checkpoint's."""
    seen = watched(foreign, make_llama(), begun.folder)
    seen.trainer.train(resume_from_checkpoint=str(begun.folder / "checkpoint-2"))
    return seen


def test_resuming_calls_load_from_checkpoint(resumed: Watched) -> None:
    """Our trainer overrides it: the weights are loaded already. Renamed, a run would start from others."""
    expected = [str(resumed.folder / "checkpoint-2")]
    assert resumed.loaded == expected, "Trainer._load_from_checkpoint is not called when a run is resumed"


def test_nothing_else_loads_weights_when_resuming(resumed: Watched, begun: Watched) -> None:
    """Our trainer: another way to load would look for names of modules and find none, or other weights."""
    assert resumed.start == begun.start, "Trainer loads weights without _load_from_checkpoint"


def test_a_resumed_run_goes_on_where_it_was(resumed: Watched) -> None:
    """Our trainer: the order of a run is that of its rows, wherever it was interrupted."""
    assert resumed.batches == [[8, 9], [10, 11]], (
        'resume_from_checkpoint, train_sampling_strategy="sequential"'
    )
    assert resumed.trainer.state.global_step == 3, "resume_from_checkpoint"


def test_a_checkpoint_that_is_loaded_has_the_weights_it_was_given(
    same: Same, foreign: LookUp, make_llama: Make, begun: Watched, tmp_path: Path
) -> None:
    """LoRA and sharded runs leave loading to the Trainer's own `_load_from_checkpoint`."""
    seen = watched(foreign, make_llama(), tmp_path)
    before = seen.trainer.model.lm_head.weight.detach().clone()
    foreign("transformers:Trainer._load_from_checkpoint")(
        seen.trainer, str(begun.folder / "checkpoint-2"), None
    )
    after, trained = seen.trainer.model.lm_head.weight, begun.trainer.model.lm_head.weight
    assert not torch.equal(before, trained), "the run has not trained"
    same(after, trained, "Trainer._load_from_checkpoint")


def test_rows_come_in_their_order(begun: Watched) -> None:
    """Our data: a run's order follows from recipe and seed, so the Trainer must not shuffle."""
    assert begun.batches == [[0, 1], [2, 3], [4, 5], [6, 0]], 'train_sampling_strategy="sequential"'


def test_the_learned_tokens_of_a_whole_step_are_counted(begun: Watched) -> None:
    """Our loss divides by them, clamped; not given, each micro-batch would weigh as much as any other."""
    assert all(torch.is_tensor(count) for count in begun.counts), "compute_loss(num_items_in_batch=...)"
    assert [int(count.clamp(min=1)) for count in begun.counts] == [4 * LEARNED] * 4, "num_items_in_batch"


def test_the_loss_is_divided_by_that_number(
    same: Same, foreign: LookUp, make_llama: Make, tmp_path: Path
) -> None:
    """Our trainer leaves plain losses to the Trainer: a sum over tokens, over the number that it gives on."""
    seen, batch = watched(foreign, make_llama(), tmp_path), collate([1, 2])
    loss = seen.trainer.compute_loss(seen.trainer.model, dict(batch), False, torch.tensor(7))
    logits = seen.trainer.model(batch["input_ids"]).logits[:, 1:3].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 2:].flatten(), reduction="sum")
    same(loss, expected / 7, "Trainer.compute_loss(num_items_in_batch=...)")
    assert seen.trainer.args.average_tokens_across_devices is True, "average_tokens_across_devices"


def test_evaluations_call_evaluate(begun: Watched) -> None:
    """Our trainer answers held-out questions there; renamed, the Trainer would try its own loss on them."""
    assert begun.events.count("evaluate") == 1, "Trainer.evaluate"


def test_a_step_is_logged_then_evaluated_then_saved(begun: Watched) -> None:
    """Our callback stops a run whose loss is no number before that becomes a checkpoint: it makes each step
    that saves log first, and must find `should_save` decided."""
    logged = next(place for place, event in enumerate(begun.events) if " loss" in event)
    order = [logged, begun.events.index("evaluate"), begun.events.index("save")]
    assert order == sorted(order), f"order of a step: {begun.events}"
    assert begun.saving == [False, True], "control.should_save in TrainerCallback.on_step_end"


def test_a_log_has_loss_and_gradient(begun: Watched) -> None:
    """Our callback looks for numbers that are none under these names."""
    (log,) = (log for log in begun.logs if "loss" in log)
    assert {"loss", "grad_norm"} <= log.keys(), f"a log holds {sorted(log)}"
    assert math.isfinite(log["loss"]), "logs['loss'] is a number"
    assert math.isfinite(log["grad_norm"]), "logs['grad_norm'] is a number"


def test_an_error_while_logging_leaves_no_checkpoint(
    foreign: LookUp, make_llama: Make, tmp_path: Path
) -> None:
    """Our callback raises what stops a run."""
    seen = watched(foreign, make_llama(), tmp_path, fail=True, max_steps=2)
    with pytest.raises(ArithmeticError):
        seen.trainer.train()
    assert list(tmp_path.glob("checkpoint-*/trainer_state.json")) == [], "TrainerCallback.on_log"


def test_the_state_is_the_last_file_of_a_checkpoint(begun: Watched) -> None:
    """Our trainer takes a checkpoint for complete by it; written first, half of one would be continued."""
    files = list((begun.folder / "checkpoint-2").iterdir())
    state = begun.folder / "checkpoint-2" / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 2, "trainer_state.json"
    assert state.stat().st_mtime_ns == max(file.stat().st_mtime_ns for file in files), "trainer_state.json"


def test_a_checkpoint_holds_what_the_processing_class_saves(begun: Watched) -> None:
    """Our trainer gives it what makes every checkpoint load on its own."""
    assert (begun.folder / "checkpoint-2" / "companion").exists(), "Trainer(processing_class=...)"
    assert (begun.folder / "checkpoint-2" / "model.safetensors").exists(), "the weights of a checkpoint"


def test_a_trainer_has_what_is_read_of_it(begun: Watched, tmp_path: Path) -> None:
    """Our trainer: how it runs, the model inside, and the writing of the result."""
    trainer = begun.trainer
    assert trainer.is_world_process_zero() is True, "Trainer.is_world_process_zero"
    assert trainer.is_deepspeed_enabled is False, "Trainer.is_deepspeed_enabled"
    assert trainer.is_fsdp_enabled is False, "Trainer.is_fsdp_enabled"
    assert (trainer.args.n_gpu <= 1, trainer.args.process_index) == (True, 0), "TrainingArguments"
    with trainer.args.main_process_first(local=False), trainer.accelerator.autocast():
        assert trainer.accelerator.unwrap_model(trainer.model) is trainer.model, "Accelerator.unwrap_model"
    assert (trainer.accelerator.process_index, trainer.accelerator.num_processes) == (0, 1), "Accelerator"
    trainer.accelerator.wait_for_everyone()
    trainer.save_state()
    assert (begun.folder / "trainer_state.json").exists(), "Trainer.save_state"
    trainer.save_model(str(tmp_path))
    assert (tmp_path / "config.json").exists(), "Trainer.save_model"
    assert hasattr(trainer, "deepspeed"), "Trainer.deepspeed"
