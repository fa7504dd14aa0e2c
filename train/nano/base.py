"""Stage 2: a plain vision-language model on the frozen tower, before it knows anything of DualFocus.

Questions about the picture, phrases to boxes and boxes to phrases in LLaVA-1.5's own wordings. Several short
conversations about one picture share its tokens: each sees the picture and itself, at the positions it would
have alone, so that what is learned is what inference computes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import LlavaForConditionalGeneration

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.nano import GRID, nano_config, nano_tokenizer, normalize
from dualfocus_lmms.models.rendering import Renderer
from dualfocus_lmms.scenes import SHAPES
from dualfocus_lmms.train.conversations import SHORT_ANSWER
from dualfocus_lmms.train.nano.optimizer import Optimizer, restore, save
from dualfocus_lmms.train.nano.pictures import COLOR_NAMES, Labelled, flip
from dualfocus_lmms.train.nano.see import Scale

PICTURES, BRANCHES = 24, 6  # of one step
EVERY = 200  # steps from one saved state to the next
LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: {}"
NAME = "Please provide a short description for this region: {}"
LIST = "Please provide a description for the image"
WHOLE_MIX = {
    "locate": 0.27,
    "locate_color": 0.08,
    "locate_shape": 0.06,
    "locate_both": 0.12,
    "name": 0.12,
    "list": 0.07,
    "exist": 0.12,
    "relation": 0.1,
    "count": 0.04,
    "detail": 0.02,
}
CROP_MIX = {"detail": 0.6, "exist": 0.2, "relation": 0.1, "list": 0.1}

Pair = tuple[str, str]  # what is asked, what is answered
Things = Sequence[Sequence[float]]


def named(thing: Sequence[float]) -> str:
    return f"{COLOR_NAMES[int(thing[0])]} {SHAPES[int(thing[1])]}"


def ask(rng: random.Random, things: Things, mix: dict[str, float]) -> Pair:
    """A random question about a picture with these things, of a kind that it allows."""
    while True:
        kind = rng.choices(list(mix), list(mix.values()))[0]
        pair = _ASK[kind](rng, things)
        if pair is not None:
            return pair


def _short(question: str) -> str:
    return f"{question}\n{SHORT_ANSWER}"


def _write(*things: Sequence[float]) -> str:
    """The box that holds them."""
    x0, y0, x1, y1 = zip(*(thing[3:7] for thing in things), strict=True)
    return LLAVA.box_format.write(Box(min(x0), min(y0), max(x1), max(y1)), (1, 1))


def _locate(rng: random.Random, things: Things) -> Pair | None:
    if not things:
        return None
    thing = rng.choice(things)
    return LOCATE.format(named(thing)), _write(thing)


def _locate_color(rng: random.Random, things: Things) -> Pair | None:
    return _locate_by(rng, things, 0, lambda thing: f"{COLOR_NAMES[int(thing[0])]} shape")


def _locate_shape(rng: random.Random, things: Things) -> Pair | None:
    return _locate_by(rng, things, 1, lambda thing: SHAPES[int(thing[1])])


def _locate_by(rng: random.Random, things: Things, column: int, phrase: Any) -> Pair | None:
    values = [thing[column] for thing in things]
    alone = [thing for thing in things if values.count(thing[column]) == 1]
    if not alone:
        return None
    thing = rng.choice(alone)
    return LOCATE.format(phrase(thing)), _write(thing)


def _locate_both(rng: random.Random, things: Things) -> Pair | None:
    if len(things) < 2:
        return None
    first, second = rng.sample(list(things), 2)
    return LOCATE.format(f"{named(first)} and the {named(second)}"), _write(first, second)


def _name(rng: random.Random, things: Things) -> Pair | None:
    if not things:
        return None
    thing = rng.choice(things)
    return NAME.format(_write(thing)), named(thing)


def _list(rng: random.Random, things: Things) -> Pair | None:
    if not things:
        return None
    return LIST, ", ".join(named(thing) for thing in sorted(things, key=lambda thing: thing[3] + thing[5]))


def _exist(rng: random.Random, things: Things) -> Pair | None:
    present = [named(thing) for thing in things]
    if present and rng.random() < 0.5:
        return _short(f"Is there a {rng.choice(present)} in the image?"), "yes"
    absent = [
        f"{color} {shape}" for color in COLOR_NAMES for shape in SHAPES if f"{color} {shape}" not in present
    ]
    near = [name for name in absent if any(name.split()[0] in other for other in present)]
    return _short(
        f"Is there a {rng.choice(near if near and rng.random() < 0.7 else absent)} in the image?"
    ), "no"


def _relation(rng: random.Random, things: Things) -> Pair | None:
    if len(things) < 2:
        return None
    first, second = rng.sample(list(things), 2)
    word, edge = rng.choice([("left of", 3), ("above", 4)])
    holds = first[edge] + first[edge + 2] < second[edge] + second[edge + 2]
    return _short(f"Is the {named(first)} {word} the {named(second)}?"), "yes" if holds else "no"


def _count(rng: random.Random, things: Things) -> Pair | None:
    return _short("How many shapes are in the image?"), str(len(things))


def _detail(rng: random.Random, things: Things) -> Pair | None:
    """A digit that can be read, else any: it has to learn what it cannot know."""
    if not things:
        return None
    thing = rng.choice([thing for thing in things if thing[7] > 0] or things)
    return _short(f"What digit is on the {named(thing)}?"), str(int(thing[2]))


_ASK = {
    "locate": _locate,
    "locate_color": _locate_color,
    "locate_shape": _locate_shape,
    "locate_both": _locate_both,
    "name": _name,
    "list": _list,
    "exist": _exist,
    "relation": _relation,
    "count": _count,
    "detail": _detail,
}


@dataclass(frozen=True, slots=True)
class Branch:
    """One conversation after its picture: ids, and how many of the last ones are the reply with its end."""

    ids: tuple[int, ...]
    reply: int
    box: bool


class Branches:
    """Conversations as token ids, by the renderer of inference, split after the picture they share."""

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        self._renderer = Renderer(tokenizer, LLAVA, image_token_id)
        self._closing = tokenizer.eos_token_id
        first, second = self._prompt("a"), self._prompt("What")
        shared = next(
            place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]
        )
        self.prefix = first[:shared]
        self._asked = lru_cache(4096)(self._asked_ids)

    def _prompt(self, text: str) -> tuple[int, ...]:
        return self._renderer.render(Conversation().user(text, _NO_PICTURE), lambda _: GRID**2).ids

    def _asked_ids(self, text: str) -> tuple[int, ...]:
        return self._prompt(text)[len(self.prefix) :]

    def __call__(self, pair: Pair) -> Branch:
        reply = (*self._renderer.reply(pair[1]), self._closing)
        return Branch(self._asked(pair[0]) + reply, len(reply), pair[1].startswith("["))


_NO_PICTURE: Any = object()


@dataclass(frozen=True, slots=True)
class Packed:
    """Branches of several pictures, (B, L) each: ids, positions, the branch of each token (0: the shared
    picture, -1: padding), labels (-100: not learned) and weights."""

    ids: torch.Tensor
    positions: torch.Tensor
    branch: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor

    def mask(self) -> torch.Tensor:
        """(B, 1, L, L) bool: which token sees which."""
        branch, length = self.branch, self.branch.shape[1]
        same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        return (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


def pack(
    prefix: Sequence[int], rows: Sequence[Sequence[Branch]], pad: int, box_weights: Sequence[float]
) -> Packed:
    """Rows of branches behind the shared prefix. box_weights: of first digits, second digits, the rest of a
    box (its closing token included)."""
    width = len(prefix) + max(sum(len(branch.ids) for branch in row) for row in rows)
    shape = (len(rows), width)
    ids, positions, number = np.full(shape, pad), np.zeros(shape, int), np.full(shape, -1)
    labels, weights = np.full(shape, -100), np.zeros(shape, np.float32)
    first, second, rest = box_weights
    box_pattern = [rest, first, second] * 4 + [rest, rest]
    for place, row in enumerate(rows):
        start = len(prefix)
        ids[place, :start], positions[place, :start], number[place, :start] = prefix, range(start), 0
        for count, branch in enumerate(row, 1):
            end = start + len(branch.ids)
            ids[place, start:end] = branch.ids
            positions[place, start:end] = range(len(prefix), len(prefix) + len(branch.ids))
            number[place, start:end] = count
            said = slice(end - branch.reply, end)
            labels[place, said] = branch.ids[-branch.reply :]
            weights[place, said] = box_pattern if branch.box else 1.0
            start = end
    return Packed(*(torch.from_numpy(array) for array in (ids, positions, number, labels, weights)))


def train_base(
    pictures: Labelled, tower: Any, scale: Scale, steps: int, seed: int, device: str, state: Path
) -> LlavaForConditionalGeneration:
    """A model trained for `steps` batches of PICTURES x BRANCHES questions.

    It goes on from `state` after a kill.
    """
    torch.manual_seed(seed)
    tokenizer = nano_tokenizer()
    model = LlavaForConditionalGeneration(nano_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    start_from(model, tower, scale)
    model.to(device)
    projector, language = model.model.multi_modal_projector, model.model.language_model
    model.model.vision_tower.requires_grad_(False)
    optimizer = Optimizer(
        [projector, language, model.lm_head], steps, heads=[language.get_input_embeddings(), model.lm_head]
    )
    branches = Branches(tokenizer, model.config.image_token_id)
    start = 0
    if (saved := restore(state)) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load(saved["optimizer"])
        start = saved["step"]
    for step in trange(start, steps, initial=start, total=steps, desc="base", mininterval=5):
        rng = random.Random(f"base {seed} {step}")
        box_weights = (1.0, 0.25, 0.02) if step < steps / 2 else (1.0, 0.5, 0.1)
        loss, figures = _loss(model, branches, tokenizer.pad_token_id, *_rows(pictures, rng), box_weights)
        optimizer.step(loss)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            logger.info(
                f"base {step + 1}: " + " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            )
            save(state, model=model.state_dict(), optimizer=optimizer.state(), step=step + 1)
    return model.eval()


def start_from(model: Any, tower: Any, scale: Scale) -> None:
    """Give a fresh model its tower, and a projector that reads standardised features and writes vectors of
    about the length of word embeddings."""
    model.model.vision_tower.load_state_dict(tower.state_dict())
    projector, language = model.model.multi_modal_projector, model.model.language_model
    with torch.no_grad():
        weight = torch.randn_like(projector.linear_1.weight) / weight_norm(projector.linear_1)
        projector.linear_1.weight.copy_(weight / scale.deviation.cpu())
        projector.linear_1.bias.copy_(-(projector.linear_1.weight @ scale.mean.cpu()))
        projector.linear_2.weight.normal_(0, 0.15 / weight_norm(projector.linear_2))
        projector.linear_2.bias.zero_()
        language.get_input_embeddings().weight.normal_(0, 0.06)


def with_images(model: Any, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(B, L, D) embeddings of ids (B, L), patch features (B, P, D) in the pictures' places."""
    images = model.model.multi_modal_projector(features)
    words = model.model.language_model.get_input_embeddings()(ids)
    is_image = (ids == model.config.image_token_id)[:, :, None]
    return words.masked_scatter(is_image, images.to(words.dtype))


def weight_norm(linear: torch.nn.Linear) -> float:
    """By what to divide unit normal weights so that unit inputs give unit outputs."""
    return linear.in_features**0.5


def _rows(pictures: Labelled, rng: random.Random) -> tuple[np.ndarray, list[list[Pair]]]:
    pixels, asked = [], []
    for _ in range(PICTURES):
        number = rng.randrange(len(pictures) // 2) * 2 + (rng.random() < 0.25)  # scenes and crops alternate
        picture, things = pictures.pixels[number], pictures.things[number]
        whole = bool(pictures.whole[number])
        if whole and rng.random() < 0.5:
            picture, things = flip(picture, things)
        shown = [list(map(float, thing)) for thing in things if thing[0] >= 0]
        pixels.append(picture)
        asked.append([ask(rng, shown, WHOLE_MIX if whole else CROP_MIX) for _ in range(BRANCHES)])
    return np.stack(pixels), asked


def _loss(
    model: Any,
    branches: Branches,
    pad: int,
    pixels: np.ndarray,
    asked: Sequence[Sequence[Pair]],
    box_weights: Sequence[float],
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted cross-entropy of the replies; and for the log, shares of tokens that are right."""
    device = model.device
    packed = pack(branches.prefix, [[branches(pair) for pair in row] for row in asked], pad, box_weights)
    ids = packed.ids.to(device)
    with torch.no_grad():
        features = model.model.vision_tower(pixel_values=normalize(pixels).to(device)).last_hidden_state[
            :, 1:
        ]
    embeddings = with_images(model, ids, features)
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=packed.mask().to(device),
        position_ids=packed.positions.to(device),
        use_cache=False,
    ).last_hidden_state
    labels, weights = packed.labels[:, 1:].to(device), packed.weights[:, 1:].to(device)
    learned = labels >= 0
    logits = model.lm_head(hidden[:, :-1][learned])
    losses = cross_entropy(logits.float(), labels[learned], reduction="none")
    weight = weights[learned]
    right = (logits.argmax(1) == labels[learned]).float()
    figures = {"loss": losses.mean().item(), "replies": right.mean().item()}
    return (losses * weight).sum() / weight.sum(), figures
