"""Samples a second and peak memory of our trainer, against a plain loop over transformers' own parts.

    python -m dualfocus_lmms.train.trainer.throughput MODEL SAMPLES [--steps 6 --batch 2 --repeats 3]

Both train the projector and the language model of MODEL on the same samples (a file or folder of
train/data/samples.py), in turns, each time in a process of its own. The plain loop is what the documentation
of transformers shows: AutoProcessor, AdamW, no Trainer.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    TrainerCallback,
    get_scheduler,
)

from dualfocus_lmms.models.checkpoint.image_inputs import complete_processor
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.protocol import load_protocol
from dualfocus_lmms.train.data.conversations import from_sample
from dualfocus_lmms.train.data.samples import read_samples
from dualfocus_lmms.train.trainer.collate import epoch_order
from dualfocus_lmms.train.trainer.recipe import load_recipe, training_arguments
from dualfocus_lmms.train.trainer.trainer import build

_RATE, _MEMORY = "samples_per_second", "peak_memory_bytes"

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)


class Loop(str, Enum):
    OURS = "ours"
    PLAIN = "plain"


class Clock(TrainerCallback):
    """When each step ended, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def ours(model: str, samples: str, steps: int, batch: int) -> dict[str, float]:
    """The project's trainer."""
    with tempfile.TemporaryDirectory() as output:
        overrides = [f"model={model}", f"data=[{{path: {samples}}}]", f"output={output}", "evaluation=null"]
        overrides += [
            f"steps={steps}",
            f"batch_size={batch}",
            f"micro_batch_size={batch}",
            "max_length=4096",
            "protocol=paper",
        ]
        overrides += ["train=[projector, language_model]", "training.save_strategy='no'"]
        overrides += ["training.logging_steps=1", f"training.use_cpu={not torch.cuda.is_available()}"]
        recipe = load_recipe("tiny_cpu", overrides)
        run = build(recipe, training_arguments(recipe, 1))
        clock = Clock()
        run.trainer.add_callback(clock)
        run.trainer.train()
    return _figures(clock.ends, batch)


def plain(model: str, samples: str, steps: int, batch: int) -> dict[str, float]:
    """A loop of torch and transformers alone, on the samples in the same order."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    complete_processor(processor, AutoConfig.from_pretrained(model, trust_remote_code=False))
    network: Any = AutoModelForImageTextToText.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False
    )
    network = network.to(device).train()
    network.model.vision_tower.requires_grad_(False)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=3e-3, weight_decay=0.0, fused=True)
    schedule = get_scheduler("cosine", optimizer, 1, steps)
    stored = read_samples(samples)
    order = [number for _, number in epoch_order([len(stored)], [len(stored)], 0, 0)]
    clock = Clock()
    for step in range(steps):
        rows = [stored[int(order[(step * batch + place) % len(order)])] for place in range(batch)]
        inputs = _processed(processor, rows).to(device)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = network(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
        clock.on_step_end()
    return _figures(clock.ends, batch)


def _processed(processor: Any, rows: Sequence[Any]) -> Any:
    """Model inputs of samples, made by transformers' processor from the same words and images."""
    protocol = load_protocol("paper")
    talks = [from_sample(row, protocol, LLAVA.box_format, SHORT_ANSWER).conversation for row in rows]
    texts = [
        processor.tokenizer.apply_chat_template(
            talk.messages(), chat_template=LLAVA.chat_template, tokenize=False
        )
        for talk in talks
    ]
    images = [image for talk in talks for image in talk.images]
    return processor(text=texts, images=images, padding=True, add_special_tokens=False, return_tensors="pt")


def _figures(ends: Sequence[float], batch: int) -> dict[str, float]:
    """From the ends of the steps: the rate of the fastest one, as other programs only make steps slower. The
    first step only starts the clock."""
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    fastest = min(end - start for start, end in pairwise(ends))
    return {_RATE: batch / fastest, _MEMORY: float(peak)}


def compare(model: str, samples: str, steps: int, batch: int, repeats: int) -> dict[str, float]:
    """The highest rate and the median memory of `repeats` turns of both, and their ratios (ours / plain)."""
    measured: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for turn in range(repeats):
        for which in ("ours", "plain") if turn % 2 == 0 else ("plain", "ours"):
            command = [sys.executable, "-m", "dualfocus_lmms.train.trainer.throughput", model, samples]
            command += ["--only", which, "--steps", str(steps), "--batch", str(batch)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measured[which].append(json.loads(done.stdout.splitlines()[-1]))
            print(which, measured[which][-1], flush=True)
    over_turns: dict[str, Any] = {_RATE: max, _MEMORY: statistics.median}
    figures = {
        f"{which} {name}": chosen(turn[name] for turn in turns)
        for which, turns in measured.items()
        for name, chosen in over_turns.items()
    }
    ratios = {f"ratio {name}": figures[f"ours {name}"] / figures[f"plain {name}"] for name in over_turns}
    return figures | ratios


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Argument(help="A checkpoint.")],
    samples: Annotated[str, typer.Argument(help="A file or folder of samples.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps of each turn.")] = 6,
    batch: Annotated[int, typer.Option(help="Samples of a step.")] = 2,
    repeats: Annotated[int, typer.Option(help="Turns of each loop.")] = 3,
    only: Annotated[Loop | None, typer.Option(help="One turn of one loop.")] = None,
) -> None:
    if only is not None:
        print(json.dumps({Loop.OURS: ours, Loop.PLAIN: plain}[only](model, samples, steps, batch)))
        return
    for name, value in compare(model, samples, steps, batch, repeats).items():
        print(f"{name}: {value:,.3f}")


if __name__ == "__main__":
    app(prog_name="python -m dualfocus_lmms.train.trainer.throughput")
