"""Stage 1: a vision tower whose patch features tell which thing a patch shows, and the thing's box.

Linear heads on the patch features, dropped afterwards: colour, shape, the two digits of every edge of the
thing's box, and on crops the digit it carries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import CLIPVisionModel

from dualfocus_lmms.models.tiny.nano import GRID, normalize, vision_config
from dualfocus_lmms.scenes import COLORS, DIGITS, SHAPES
from dualfocus_lmms.train.nano.images import Labelled, flip
from dualfocus_lmms.train.nano.optimizer import Optimizer, restore, save

BATCH = 64
SEED = 0
EVERY = 200  # steps from one saved state to the next
_IGNORED = -100
SIZES = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "digit": len(DIGITS)}
WEIGHTS = {"color": 1.0, "shape": 1.0, "digit": 2.0}
EDGES = 4
TENS, ONES = 11, 10  # 0.00 to 1.00, in hundredths


def train_tower(
    images: Labelled, steps: int, device: str, state: Path, before: Path | None = None
) -> tuple[CLIPVisionModel, Heads]:
    """A tower and its heads, trained for `steps` batches of BATCH images; resumes from `state`.

    before: the state of an earlier run, whose weights are the start of this one.
    """
    torch.manual_seed(SEED)
    tower: Any = CLIPVisionModel(vision_config())
    tower.to(device)
    heads = Heads(tower.config.hidden_size).to(device)
    optimizer = Optimizer([tower, heads], steps, heads=[heads])
    rng = np.random.default_rng([SEED, 1 if before is None else 3])
    start = 0
    if before is not None:
        weights = torch.load(before, map_location="cpu", weights_only=True)
        tower.load_state_dict(weights["tower"])
        heads.load_state_dict(weights["heads"])
    if (saved := restore(state)) is not None:
        tower.load_state_dict(saved["tower"])
        heads.load_state_dict(saved["heads"])
        optimizer.load(saved["optimizer"])
        rng.bit_generator.state = saved["rng"]
        start = saved["step"]
    for step in trange(start, steps, initial=start, total=steps, desc="see", mininterval=5):
        pixels, things = batch(images, rng)
        targets = {name: torch.from_numpy(value).to(device) for name, value in patch_targets(things).items()}
        features = tower(pixel_values=normalize(pixels).to(device)).last_hidden_state[:, 1:]
        loss, figures = heads.loss(features, targets)
        optimizer.step(loss)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            logger.info(
                f"see {step + 1}: " + " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            )
            save(
                state,
                tower=tower.state_dict(),
                heads=heads.state_dict(),
                optimizer=optimizer.state(),
                rng=rng.bit_generator.state,
                step=step + 1,
            )
    return tower.eval(), heads.eval()


def batch(images: Labelled, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and things of BATCH images, half of them crops; half of the whole scenes are mirrored."""
    chosen = rng.choice(len(images), BATCH, replace=False)
    pairs = []
    for number in chosen:
        pair = images.pixels[number], images.things[number]
        pairs.append(flip(*pair) if images.whole[number] and rng.random() < 0.5 else pair)
    return np.stack([pixels for pixels, _ in pairs]), np.stack([things for _, things in pairs])


def patch_targets(things: np.ndarray) -> dict[str, np.ndarray]:
    """The label of each patch of each image: colour and shape (0: nothing), digit, edges in hundredths.

    things: (B, MOST, 8). Returns color, shape, digit (B, P) and edges (B, P, 4); -100 without a label.
    """
    centres = (np.arange(GRID) + 0.5) / GRID
    y, x = (grid.reshape(1, 1, -1) for grid in np.meshgrid(centres, centres, indexing="ij"))
    x0, y0, x1, y1 = (things[:, :, 3 + edge, None] for edge in range(EDGES))
    covers = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1) & (things[:, :, :1] >= 0)  # (B, MOST, P)
    owner = covers.argmax(1)  # (B, P)
    covered = covers.any(1)
    owned = np.take_along_axis(things, owner[:, :, None], axis=1)  # (B, P, 8)
    distance = np.abs(np.stack([x[0], y[0]], -1) - _digit_centres(owned)).max(-1)  # (B, P)
    near = np.less(distance, 0.75 / GRID)
    return {
        "color": np.where(covered, owned[:, :, 0] + 1, 0).astype(np.int64),
        "shape": np.where(covered, owned[:, :, 1] + 1, 0).astype(np.int64),
        "digit": np.where(covered & near & (owned[:, :, 7] > 0), owned[:, :, 2], _IGNORED).astype(np.int64),
        "edges": np.where(np.expand_dims(covered, 2), np.round(owned[:, :, 3:7] * 100), _IGNORED).astype(
            np.int64
        ),
    }


def _digit_centres(things: np.ndarray) -> np.ndarray:
    """(..., 2): about where the digits of things (..., 8) stand; on triangles below the middle."""
    x0, y0, x1, y1 = (things[..., 3 + edge] for edge in range(EDGES))
    down = np.where(things[..., 1] == SHAPES.index("triangle"), 0.625, 0.5)
    return np.stack([(x0 + x1) / 2, y0 + (y1 - y0) * down], -1)


class Heads(nn.Module):
    """Linear read-outs of patch features (B, P, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = nn.ModuleDict({name: nn.Linear(width, size) for name, size in SIZES.items()})
        self.tens = nn.Linear(width, EDGES * TENS)
        self.ones = nn.Linear(width, EDGES * ONES)

    def linears(self) -> dict[str, Any]:
        """Every head by name."""
        return {**dict(self.kinds.items()), "tens": self.tens, "ones": self.ones}

    def loss(
        self, features: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum of all heads' losses; and for the log the accuracy of each where there is a thing."""
        losses, figures = [], {}
        for name, head in self.kinds.items():
            logits = head(features).flatten(0, 1)
            labels = targets[name].flatten()
            losses.append(WEIGHTS[name] * cross_entropy(logits, labels, ignore_index=_IGNORED))
            figures[name] = _accuracy(logits, labels, 0 if name != "digit" else _IGNORED)
        edges = targets["edges"].flatten()
        labelled = edges != _IGNORED
        tens = self.tens(features).reshape(-1, TENS)[labelled]
        ones = self.ones(features).reshape(-1, ONES)[labelled]
        losses.append(2 * cross_entropy(tens, edges[labelled] // 10))
        losses.append(0.5 * cross_entropy(ones, edges[labelled] % 10))
        predicted = 10 * tens.argmax(1) + ones.argmax(1)
        figures["edge_error"] = (predicted - edges[labelled]).abs().float().mean().item() / 100
        return torch.stack(losses).sum(), figures


def _accuracy(logits: torch.Tensor, labels: torch.Tensor, least: int) -> float:
    """The share of correct predictions where the label is above `least`."""
    counted = labels > least
    return (logits[counted].argmax(1) == labels[counted]).float().mean().item()


@torch.no_grad()
def sample_features(tower: Any, images: Labelled, batches: int = 8) -> torch.Tensor:
    """(N, D) patch features of some images."""
    rng = np.random.default_rng([SEED, 2])
    device = next(tower.parameters()).device
    pixels = (normalize(batch(images, rng)[0]).to(device) for _ in range(batches))
    return torch.cat([tower(pixel_values=inputs).last_hidden_state[:, 1:] for inputs in pixels]).flatten(0, 1)
