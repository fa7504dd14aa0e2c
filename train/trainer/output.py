"""The output folder of a training run: whose it is, and how far it came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.json_text import Kind
from dualfocus_lmms.models.checkpoint.loading import family_of
from dualfocus_lmms.train.trainer.recipe import Recipe
from dualfocus_lmms.zoom import crop_pixels_done

_ADDED = {"chat_template": "auto", "regions": "union"}  # keys that older recipes do not have
_ADDED_DATA = {"box_jitter": 0.0}  # the same, of a source
_FREE = ("micro_batch_size", "evaluation")  # may change when a run is continued: they decide no weight
_RECIPE: Kind[dict[str, Any]] = Kind(dict[str, Any])


def claim(recipe: Recipe, arguments: Any) -> None:
    """Write the recipe into the output folder. UserError when the folder holds another run that has come to a
    checkpoint, or cannot be written."""
    note = Path(recipe.output) / "recipe.json"
    mine = json.loads(json.dumps(recipe.to_dict()))
    with arguments.main_process_first(local=False):
        theirs = _recipe_of(note) if _begun(note.parent) and note.exists() else mine
        differing = [key for key in mine if key not in _FREE and theirs.get(key) != mine[key]]
        if "crop_pixels" not in theirs and _enlarges(recipe):  # older runs showed crops as they are
            differing.append("crop_pixels")
        if differing:
            raise UserError(
                f"{recipe.output!r} holds a run with another {', '.join(differing)}: "
                "give another output, or the recipe it was started with (its recipe.json)."
            )
        if arguments.process_index == 0:
            try:
                note.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(note, json.dumps(mine, indent=1))
            except OSError as error:
                raise UserError(f"output: cannot write to {recipe.output!r}: {error}.") from error


def _enlarges(recipe: Recipe) -> bool:
    """Whether the model sees crops enlarged."""
    return crop_pixels_done(recipe.rules().crop_pixels, family_of(recipe.model).resolution) != "original"


def _recipe_of(note: Path) -> dict[str, Any]:
    """The recipe that a folder's run was started with."""
    recipe = _RECIPE.read(
        note,
        "Give another output. Where the checkpoints beside it are of this very recipe, delete the file: the "
        "same command resumes.",
    )
    sources = recipe.get("data")
    if isinstance(sources, list):
        recipe["data"] = [_ADDED_DATA | source if isinstance(source, dict) else source for source in sources]
    return _ADDED | recipe


def _begun(output: Path) -> bool:
    """Whether a folder's run has anything to lose or to go on with."""
    return last_checkpoint(output) is not None or (output / "model").exists()


def last_checkpoint(output: Path) -> Path | None:
    """The last complete checkpoint of a run; a kill can leave half of one behind."""
    found = [path for path in output.glob("checkpoint-*") if path.name[11:].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name[11:]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        except (OSError, ValueError):
            continue
        return path
    return None
