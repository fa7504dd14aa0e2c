"""Stage 2: a plain vision-language model on the frozen tower, before it knows anything of DualFocus.

Questions about the image, phrases to boxes and boxes to phrases in LLaVA-1.5's own wordings. Several short
conversations about one image share its tokens: each sees the image and itself, at the positions it would
have alone, so that what is learned is what inference computes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.tiny.nano import GRID, nano_config, nano_tokenizer, normalize
from dualfocus_lmms.scenes import DIGITS, SHAPES
from dualfocus_lmms.train.nano.images import COLOR_NAMES, Labelled, flip
from dualfocus_lmms.train.nano.optimizer import Optimizer, rank_and_world, restore, save, total
from dualfocus_lmms.train.nano.pretrain_vision import EDGES, Heads, sample_features
from dualfocus_lmms.train.nano.questions import BOX_MIX, CROP_MIX, WHOLE_MIX, Pair, ask

IMAGES, BRANCHES = 24, 6  # of one step
EVERY = 200  # steps from one saved state to the next
READ_LAYER, LOOK_LAYER, HEADS = 1, 2, 2  # layers whose attention is supervised, heads of each
SIMILAR = 1  # layers whose tokens attend to similar tokens at the start
BOX_SHARE = 0.5  # share of the steps that ask mostly for boxes; the rest ask for everything


@dataclass(frozen=True, slots=True)
class Branch:
    """One conversation after its image.

    ids: the last `reply` of them are the reply with its closing token. box: whether it is a box. patches: the
    indices of those that show what it is about; none where that is not one thing. name_positions: indices of
    the tokens in the question that name what it is about.
    """

    ids: tuple[int, ...]
    reply: int
    box: bool
    patches: np.ndarray
    name_positions: np.ndarray


class Branches:
    """Conversations as token ids, by the renderer of inference, split after the image they share."""

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        self._renderer = Renderer(tokenizer, LLAVA, image_token_id)
        self._closing = tokenizer.eos_token_id
        first, second = self._prompt("a"), self._prompt("What")
        shared = next(
            index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]
        )
        self.prefix = first[:shared]
        self.first_patch = self.prefix.index(image_token_id)
        named = [blank + word for blank in ("", " ") for word in (*COLOR_NAMES, *SHAPES, *DIGITS)]
        self.name_ids = frozenset(tokenizer.convert_tokens_to_ids(named))
        self._question = lru_cache(4096)(self._question_ids)
        self._reply = lru_cache(4096)(self._renderer.reply)

    def _prompt(self, text: str) -> tuple[int, ...]:
        return self._renderer.render(Conversation().user(text, _NO_IMAGE), lambda _: GRID**2).ids

    def _question_ids(self, text: str) -> tuple[int, ...]:
        return self._prompt(text)[len(self.prefix) :]

    def __call__(self, pair: Pair) -> Branch:
        question = self._question(pair.question)
        reply = (*self._reply(pair.answer), self._closing)
        name_positions = np.flatnonzero([token in self.name_ids for token in question])
        is_box = pair.answer.startswith("[")
        return Branch(question + reply, len(reply), is_box, patches_of(pair.about), name_positions)


_NO_IMAGE: Any = object()


def patches_of(thing: Sequence[float] | None) -> np.ndarray:
    """Indices of the patches whose centre a thing's box covers."""
    if thing is None:
        return np.empty(0, int)
    centres = (np.arange(GRID) + 0.5) / GRID
    x0, y0, x1, y1 = thing[3:7]
    columns, rows = (centres >= x0) & (centres <= x1), (centres >= y0) & (centres <= y1)
    return np.flatnonzero(rows[:, None] & columns[None])


@dataclass(frozen=True, slots=True)
class Packed:
    """Branches of several images, (B, L) each: ids, positions, the branch of each token (0: the shared
    image, -1: padding), labels (-100: not learned), weights. looks and reads (B, L, L): with
    what weight a token learns to attend to which others, to patches and to words of the question."""

    ids: torch.Tensor
    positions: torch.Tensor
    branch: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    looks: torch.Tensor
    reads: torch.Tensor

    def mask(self) -> torch.Tensor:
        """(B, 1, L, L) bool: whether a token may attend to another."""
        branch, length = self.branch, self.branch.shape[1]
        same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        return (same & torch.ones(length, length, dtype=torch.bool, device=branch.device).tril())[:, None]

    def to(self, device: torch.device) -> Packed:
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


def box_token_weights(box_weights: Sequence[float]) -> list[float]:
    """The weight of each token of a box and its closing token, of first digits, second digits, the rest."""
    first, second, rest = box_weights
    return [rest, first, second] * 4 + [rest, rest]


def pack(
    prefix: Sequence[int],
    first_patch: int,
    rows: Sequence[Sequence[Branch]],
    pad: int,
    box_weights: Sequence[float],
) -> Packed:
    """Rows of branches behind the shared prefix. box_weights: of first digits, second digits, the rest of a
    box (its closing token included)."""
    width = len(prefix) + max(sum(len(branch.ids) for branch in row) for row in rows)
    shape = (len(rows), width)
    ids, positions, number = np.full(shape, pad), np.zeros(shape, int), np.full(shape, -1)
    labels, weights = np.full(shape, -100), np.zeros(shape, np.float32)
    looks, reads = (np.zeros((*shape, width), np.float32) for _ in range(2))
    box_pattern = box_token_weights(box_weights)
    for index, row in enumerate(rows):
        start = len(prefix)
        ids[index, :start], positions[index, :start], number[index, :start] = prefix, range(start), 0
        for count, branch in enumerate(row, 1):
            end = start + len(branch.ids)
            ids[index, start:end] = branch.ids
            positions[index, start:end] = range(len(prefix), len(prefix) + len(branch.ids))
            number[index, start:end] = count
            reply_slice = slice(end - branch.reply, end)
            labels[index, reply_slice] = branch.ids[-branch.reply :]
            weights[index, reply_slice] = box_pattern if branch.box else 1.0
            opening = range(end - branch.reply - 1, end - branch.reply + 1)
            looks[index, opening[0] : end - 1, first_patch + branch.patches] = 0.3
            for token in opening:  # they depend on the question alone
                looks[index, token, first_patch + branch.patches] = 1.0
                reads[index, token, start + branch.name_positions] = 1.0
            start = end
    return Packed(
        *(torch.from_numpy(array) for array in (ids, positions, number, labels, weights, looks, reads))
    )


def train_base(
    images: Labelled, tower: Any, heads: Heads, steps: int, seed: int, device: str, state: Path
) -> LlavaForConditionalGeneration:
    """A model trained for `steps` batches of IMAGES x BRANCHES questions, shared by all processes.

    It resumes from `state` after an interruption.
    """
    torch.manual_seed(seed)
    tokenizer = nano_tokenizer()
    model: Any = LlavaForConditionalGeneration(nano_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    start_from(model, tokenizer, tower, heads, sample_features(tower, images))
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
    rank, world = rank_and_world()
    for step in trange(
        start, steps, initial=start, total=steps, desc="base", mininterval=5, disable=rank > 0
    ):
        mix = BOX_MIX if step < BOX_SHARE * steps else WHOLE_MIX
        pixels, pairs = _rows(images, random.Random(f"base {seed} {step}"), mix)
        box_weights = (1.0, 0.25, 0.02) if step < steps / 2 else (1.0, 0.5, 0.1)
        own = pixels[rank::world], pairs[rank::world]
        loss, figures = _loss(model, branches, tokenizer.pad_token_id, *own, box_weights)
        optimizer.step(loss)
        if rank == 0 and ((step + 1) % EVERY == 0 or step + 1 == steps):
            summary = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            logger.info(f"base {step + 1}: {summary}")
            save(state, model=model.state_dict(), optimizer=optimizer.state(), step=step + 1)
    return model.eval()


@torch.no_grad()
def start_from(model: Any, tokenizer: Any, tower: Any, heads: Heads, features: torch.Tensor) -> None:
    """Give a fresh model its tower, and a projector that starts as the read-out of the tower's heads.

    Its hidden units are the heads' classes (each head centred over its classes, which changes nothing for a
    softmax, and scaled to unit deviation over `features`, (N, D)); the rest are random mixtures of
    standardised features. A colour, a shape and a digit enter the language model as their own words do; the
    digits of the edges as random vectors. In the first layers tokens attend to similar tokens
    ("Mimetic Initialization of Self-Attention Layers", Trockman and Kolter 2023).
    """
    model.model.vision_tower.load_state_dict(tower.state_dict())
    projector, language = model.model.multi_modal_projector, model.model.language_model
    embeddings = language.get_input_embeddings().weight.normal_(0, 0.06)
    first, second = projector.linear_1, projector.linear_2
    mean, deviation = features.mean(0).cpu(), features.std(0).cpu()
    first.weight.copy_(torch.randn_like(first.weight) / first.in_features**0.5 / deviation)
    first.bias.copy_(-(first.weight @ mean))
    second.weight.normal_(0, 0.03)
    second.bias.zero_()
    class_names = {"color": ["", *COLOR_NAMES], "shape": ["", *SHAPES], "digit": list(DIGITS)}
    start = 0
    for name, head in heads.linears().items():
        weight, bias = (values.cpu() - values.cpu().mean(0) for values in (head.weight, head.bias))
        if name in ("tens", "ones"):  # four heads in one
            weight = head.weight.cpu().unflatten(0, (EDGES, -1))
            weight = (weight - weight.mean(1, keepdim=True)).flatten(0, 1)
            bias = head.bias.cpu().unflatten(0, (EDGES, -1))
            bias = (bias - bias.mean(1, keepdim=True)).flatten()
        size = (features.cpu() @ weight.T + bias).std()
        units = slice(start, start + len(weight))
        first.weight[units], first.bias[units] = weight / size, bias / size
        for unit, word in enumerate(class_names.get(name, []), start):
            if word:
                second.weight[:, unit] = embeddings[tokenizer.convert_tokens_to_ids(f" {word}")] / 2
        start = units.stop
    for layer in language.layers[:SIMILAR]:
        for matrix in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            matrix.add_(0.7 * torch.eye(len(matrix)))


def with_images(model: Any, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(B, L, D) embeddings of ids (B, L), patch features (B, P, D) at the positions of image tokens."""
    images = model.model.multi_modal_projector(features)
    embeddings = model.model.language_model.get_input_embeddings()(ids)
    is_image = (ids == model.config.image_token_id)[:, :, None]
    return embeddings.masked_scatter(is_image, images.to(embeddings.dtype))


def _rows(
    images: Labelled, rng: random.Random, whole_mix: dict[str, float]
) -> tuple[np.ndarray, list[list[Pair]]]:
    pixels, pairs = [], []
    for _ in range(IMAGES):
        number = rng.randrange(len(images) // 2) * 2 + (rng.random() < 0.25)  # scenes and crops alternate
        image, things = images.pixels[number], images.things[number]
        whole = bool(images.whole[number])
        if whole and rng.random() < 0.5:
            image, things = flip(image, things)
        present = [list(map(float, thing)) for thing in things if thing[0] >= 0]
        pixels.append(image)
        pairs.append([ask(rng, present, whole_mix if whole else CROP_MIX) for _ in range(BRANCHES)])
    return np.stack(pixels), pairs


def _loss(
    model: Any,
    branches: Branches,
    pad: int,
    pixels: np.ndarray,
    pairs: Sequence[Sequence[Pair]],
    box_weights: Sequence[float],
) -> tuple[torch.Tensor, dict[str, float]]:
    """`packed_loss` of this process's questions; and its figures for the log."""
    rows = [[branches(pair) for pair in row] for row in pairs]
    packed = pack(branches.prefix, branches.first_patch, rows, pad, box_weights).to(model.device)
    with torch.no_grad():
        hidden = model.model.vision_tower(pixel_values=normalize(pixels).to(model.device)).last_hidden_state
    loss, figures = packed_loss(model, packed, hidden[:, 1:])
    return loss, {name: value.item() for name, value in figures.items()}


def packed_loss(
    model: Any, packed: Packed, features: torch.Tensor, supervise_attention: bool = True
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """This process's part of the weighted cross-entropy of the replies about images with patch features
    (B, P, D); and for the log, their plain cross-entropy and the share of tokens that are correct.

    supervise_attention: whether the loss has a part for where tokens attend, see `attention_loss`.
    """
    mask = packed.mask()
    states = model.model.language_model(
        inputs_embeds=with_images(model, packed.ids, features),
        attention_mask=mask,
        position_ids=packed.positions,
        use_cache=False,
        output_hidden_states=supervise_attention,
    )
    hidden = states.last_hidden_state
    labels = packed.labels[:, 1:]
    learned = labels >= 0
    logits = model.lm_head(hidden[:, :-1][learned])
    losses = cross_entropy(logits.float(), labels[learned], reduction="none")
    weight = packed.weights[:, 1:][learned]
    loss = (losses * weight).sum() / total(weight.sum())
    figures = {
        "loss": losses.detach().mean(),
        "replies": (logits.argmax(1) == labels[learned]).float().mean(),
    }
    if supervise_attention:
        language = model.model.language_model
        for name, layer, targets in (
            ("looks", LOOK_LAYER, packed.looks),
            ("reads", READ_LAYER, packed.reads),
        ):
            loss_sum, weights = attention_loss(
                language, layer, states.hidden_states[layer], mask, packed.positions, targets
            )
            loss = loss + loss_sum / total(weights)
            figures[name] = (loss_sum / weights).detach()
    return loss, figures


def attention_loss(
    language: Any,
    layer: int,
    states: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the attention of some heads of a layer is from its targets: loss and weight, both summed.

    states: (B, L, D), the layer's input. targets: (B, L, L), for each token the others that it should attend
    to, all with the weight of that token; 0 elsewhere. The loss is minus the logarithm of the attention that
    falls on them, in nats, the mean over the heads.
    """
    attention = language.layers[layer].self_attn
    normed = language.layers[layer].input_layernorm(states)
    queries, keys = (
        project(normed).unflatten(-1, (-1, attention.head_dim))[:, :, :HEADS].transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, *language.rotary_emb(normed, positions))
    scores = (queries @ keys.transpose(2, 3) * attention.scaling).masked_fill(~mask, -torch.inf)
    weights = targets.amax(-1)  # (B, L)
    row, token = weights.nonzero(as_tuple=True)
    attended = scores[row, :, token].log_softmax(-1)  # (N, HEADS, L)
    losses = -attended.masked_fill(targets[row, token][:, None] == 0, -torch.inf).logsumexp(-1).mean(1)
    return (losses * weights[row, token]).sum(), weights.sum()
