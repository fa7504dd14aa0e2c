"""Stage 2 within a given time: the base model on a GPU, fed from a table that grows while it trains.

The frozen tower comes from a checkpoint. Worker processes draw scenes and write all questions about them;
features and questions lie on the device, where packs are made of them. The learning rate follows the share of
the time that has passed, so that it has decayed at the end, however fast the machine is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from transformers import LlavaForConditionalGeneration

from dualfocus_lmms.models.tiny.nano import nano_config, nano_tokenizer
from dualfocus_lmms.train.nano.base import packed_loss, start_from
from dualfocus_lmms.train.nano.heads import fit_heads
from dualfocus_lmms.train.nano.optimizer import WARMUP, Optimizer, check, decay
from dualfocus_lmms.train.nano.packs import Packs
from dualfocus_lmms.train.nano.probe import probe
from dualfocus_lmms.train.nano.questions import BOX_MIX, CROP_MIX, GLOBAL_MIX
from dualfocus_lmms.train.nano.table import CHUNK, VIEWS, Drawing, Table, branch_maker, joined, tasks


@dataclass(frozen=True)
class Plan:
    """How a timed run is made.

    minutes: from its call to its return, about. images, branches: of one step. scenes: drawn at most;
    first: before the first step. speed: factor on the learning rates. box_share: the share of the time in
    which most questions ask for boxes; showing: the share in which attention is supervised. log, probe:
    seconds from one line to the next, and from one evaluation on `held_out` scenes to the next.
    """

    minutes: float
    images: int = 256
    branches: int = 6
    scenes: int = 60_000
    first: int = 4096
    held_out: int = 512
    workers: int = max((os.cpu_count() or 2) - 1, 1)
    speed: float = 1.0
    box_share: float = 0.25
    showing: float = 0.4
    bfloat16: bool = True
    seed: int = 0
    log: float = 10
    probe: float = 30


def train_timed(
    plan: Plan, source: Any, from_source: bool, device: str, keep: Callable[[Any], None]
) -> LlavaForConditionalGeneration:
    """A base model on the tower of `source`, a model of the same architecture; its language model starts at
    random, or as it is in `source`. keep: called with the model at every probe and at the end."""
    began = time.monotonic()
    held_out = tasks("validation", plan.held_out)
    with Drawing([*held_out, *tasks("train", plan.scenes)], plan.workers) as tables:
        torch.manual_seed(plan.seed)
        tokenizer = nano_tokenizer()
        model: Any = source
        if not from_source:
            model = LlavaForConditionalGeneration(nano_config(tokenizer))
            model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.to(device)
        tower = model.model.vision_tower
        tower.load_state_dict(source.model.vision_tower.state_dict())
        tower.requires_grad_(False).eval()

        packs, held_out_packs = (
            Packs(branch_maker(), tokenizer.pad_token_id, VIEWS * scenes, device, plan.seed)
            for scenes in (plan.scenes, plan.held_out)
        )
        for _ in held_out:
            held_out_packs.add(next(tables), tower)
        first = [next(tables) for _ in range(-(-min(plan.first, plan.scenes) // CHUNK))]
        for table in first:
            packs.add(table, tower)
        if not from_source:
            head_start(model, tokenizer, packs, joined(first))
        logger.info(f"base: {len(packs)} images after {time.monotonic() - began:.0f} s")

        def examine() -> dict[str, float]:
            keep(model)
            return probe(model, held_out_packs, plan.branches)

        _steps(plan, model, packs, tables, began, examine)
    return model.eval()


def head_start(model: Any, tokenizer: Any, packs: Packs, table: Table) -> None:
    """`start_from` with heads fitted to the features of the first images."""
    tower, features = model.model.vision_tower, packs.features[: len(table)]
    heads = fit_heads(features, table.things)
    device = features.device
    model.cpu()
    start_from(model, tokenizer, tower, heads.cpu(), features[: VIEWS * 256].flatten(0, 1).cpu())
    model.to(device)


def _steps(
    plan: Plan,
    model: Any,
    packs: Packs,
    tables: Drawing,
    began: float,
    examine: Callable[[], dict[str, float]],
) -> None:
    projector, language = model.model.multi_modal_projector, model.model.language_model
    optimizer = Optimizer(
        [projector, language, model.lm_head], heads=[language.get_input_embeddings(), model.lm_head]
    )
    device = str(model.device.type)
    precise = not (plan.bfloat16 and device == "cuda")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    start, end = time.monotonic(), began + 60 * plan.minutes
    step, logged, probed = 0, start, start
    loss = torch.zeros(())
    while (now := time.monotonic()) < end:
        share = (now - start) / (end - start)
        mix = BOX_MIX if share < plan.box_share else GLOBAL_MIX
        box_weights = (1.0, 0.25, 0.02) if share < 0.5 else (1.0, 0.5, 0.1)
        pack = packs.draw(plan.images, plan.branches, mix, CROP_MIX, box_weights)
        with nullcontext() if precise else torch.autocast(device, torch.bfloat16):
            features = packs.features[pack.images]
            loss, figures = packed_loss(model, pack.packed, features, share < plan.showing)
        factor = plan.speed * min((step + 1) / WARMUP, decay(share))
        optimizer.update(loss, factor)
        step += 1
        if tables.ready:
            packs.add(next(tables), model.model.vision_tower)
        if now - logged > plan.log:
            check(loss)
            summary = " ".join(f"{name} {value.item():.3f}" for name, value in figures.items())
            logger.info(
                f"base {now - began:.0f} s, step {step}, {step * plan.images * plan.branches:,} questions, "
                f"{len(packs)} images, rate {factor:.3f}: {summary}"
            )
            logged = now
        if now - probed > plan.probe and end - now > plan.probe / 3:
            check(loss)
            _report(f"base {now - began:.0f} s", examine())
            probed = now
    check(loss)
    _report(f"base, the end after {step} steps", examine())


def _report(when: str, figures: dict[str, float]) -> None:
    logger.info(f"{when}, held out: " + " ".join(f"{name} {value:.3f}" for name, value in figures.items()))
