"""A checkpoint in LLaVA's original format to the Hugging Face format, shard by shard.

    dualfocus convert SRC DST

Memory: the source is mapped, and each tensor is written before the next one is read. Everything is checked
against the headers of the files before the first byte is written.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tabulate import tabulate
from tqdm import tqdm
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from dualfocus_lmms._version import __version__
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.files import atomic_write, new_folder
from dualfocus_lmms.models.checkpoint.loading import DTYPES
from dualfocus_lmms.models.convert import llava_original as original
from dualfocus_lmms.models.convert.weight_files import (
    WRITABLE,
    Spec,
    headers,
    open_weights,
    weight_files,
    write_index,
    write_safetensors,
)

REPORT = "conversion.json"
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
PARTS = {
    "vision tower": "vision_tower.",
    "projector": "multi_modal_projector.",
    "language model": "language_model.",
}
_SHOWN = 20  # names in an error
_CHUNK = 4096  # rows of an embedding summed at a time


@dataclass(frozen=True)
class Weight:
    """One tensor of the source: its name and file there, and its name and spec in the converted checkpoint.

    One that is dropped has no name there and a reason.
    """

    source: str
    file: Path
    target: str
    spec: Spec
    reason: str

    def record(self) -> dict[str, Any]:
        """Its entry in the report."""
        place = {"source": self.source, "file": self.file.name}
        if self.reason:
            return {**place, "dropped": self.reason}
        return {**place, "target": self.target, "shape": list(self.spec.shape), "dtype": self.spec.kind}


@dataclass(frozen=True, eq=False)
class Conversion:
    """A checkpoint as it will be written, or as it was.

    source: as it was given. tower: where the vision tower comes from. new_rows: rows that both embeddings
    gain after those they have.
    """

    source: str
    tower: str
    config: LlavaConfig
    tokenizer: Any
    image_processor: Any
    weights: tuple[Weight, ...]
    new_rows: int

    @property
    def kept(self) -> list[Weight]:
        return [weight for weight in self.weights if not weight.reason]

    def table(self) -> str:
        """The parts of the checkpoint and what was dropped, for the terminal."""
        rows: list[list[str]] = []
        for part, prefix in PARTS.items():
            specs = [weight.spec for weight in self.kept if weight.target.startswith(prefix)]
            numbers, size = sum(spec.numbers for spec in specs), sum(spec.bytes for spec in specs)
            kinds = ", ".join(sorted({spec.kind for spec in specs}))
            rows.append([part, str(len(specs)), f"{numbers:,}", f"{size / 1e9:.3f}", kinds])
        reasons = Counter(weight.reason for weight in self.weights if weight.reason)
        rows += [[f"dropped: {reason}", str(count), "", "", ""] for reason, count in sorted(reasons.items())]
        align = ("left", "right", "right", "right", "left")
        columns = ["part", "tensors", "parameters", "GB", "dtype"]
        return tabulate(rows, columns, disable_numparse=True, colalign=align)

    def report(self) -> str:
        """Every weight of the source with what became of it, as JSON."""
        return json.dumps(
            {
                "source": self.source,
                "vision_tower": self.tower,
                "dualfocus_lmms": __version__,
                "transformers": transformers.__version__,
                "new_embedding_rows": self.new_rows,
                "weights": [weight.record() for weight in self.weights],
            },
            indent=1,
        )


def convert(
    source: str,
    target: str | Path,
    vision_tower: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    progress: bool = True,
) -> Conversion:
    """Convert the checkpoint `source`, a folder or hub name, and write it to the new folder `target`.

    vision_tower: folder or hub name of the CLIP encoder to take; None takes the one inside the checkpoint,
    else the one that its config.json names. dtype "auto" keeps each weight's own. `target` appears only when
    it is complete; until then its content is in `target`.partial. UserError when something is missing, not
    known, or of another shape than config.json says.
    """
    target = Path(target)
    if target.exists():
        raise UserError(f"{str(target)!r} exists already: give a new folder.")
    conversion = plan(source, vision_tower, dtype, revision)
    with _partial(target, sum(weight.spec.bytes for weight in conversion.kept)) as folder:
        _write_weights(folder, conversion, progress)
        _write_companions(folder, conversion)
    return conversion


def plan(
    source: str, vision_tower: str | None = None, dtype: str = "auto", revision: str | None = None
) -> Conversion:
    """What `convert` will write, from the files' headers alone; arguments and errors as there."""
    if dtype != "auto" and dtype not in DTYPES:
        raise choose("dtype", dtype, ["auto", *DTYPES])
    folder = original.fetched(source, revision)
    settings = original.read_settings(folder)
    weights = _weights(_files(folder))
    named = vision_tower or settings["mm_vision_tower"]
    has_tower = any(weight.target.startswith(PARTS["vision tower"]) for weight in weights)
    tower = None
    if vision_tower is not None or not has_tower:
        tower = original.fetched(named)
        weights = _without_tower(weights) + _weights(_files(tower), tower=True)
    elif not original.known_tower(named):
        tower = original.fetched(named)  # for its settings
    embedding = _embedding(weights, folder)
    vocabulary = embedding.shape[0]
    tokenizer = original.read_tokenizer(folder, vocabulary)
    vision = original.vision_config(named, tower)
    kind = embedding.kind if dtype == "auto" else dtype
    config = original.model_config(settings, vision, tokenizer, vocabulary, kind)
    _check(weights, config, vocabulary)
    rows = config.get_text_config().vocab_size
    final = tuple(replace(weight, spec=_final(weight, rows, DTYPES.get(dtype))) for weight in weights)
    return Conversion(
        source,
        named,
        config,
        tokenizer,
        original.image_processor(tower, config),
        final,
        rows - vocabulary,
    )


def _files(folder: Path) -> list[Path]:
    found = weight_files(folder)
    if not found:
        projector = " It has a projector alone, which belongs to another checkpoint." * bool(
            list(folder.glob("mm_projector*"))
        )
        raise UserError(
            f"{str(folder)!r} has no weights (model.safetensors or pytorch_model.bin, in one file or several "
            f"with an index).{projector} Give the folder of a whole checkpoint."
        )
    return found


def _weights(files: Sequence[Path], tower: bool = False) -> list[Weight]:
    """All tensors of `files` under their new names. UserError lists those that are not known."""
    weights, unknown = [], []
    for file in files:
        for name, spec in headers(file).items():
            reason, target = original.dropped(name, tower), original.renamed(name, tower)
            if reason is None and target is None:
                unknown.append(name)
            weights.append(Weight(name, file, target or "", spec, reason or ""))
    if unknown:
        raise UserError(
            f"{len(unknown)} weights in {str(files[0].parent)!r} are not known: {_listed(unknown)}.\n"
            "Only checkpoints built like LLaVA-1.5 can be converted."
        )
    return weights


def _without_tower(weights: Sequence[Weight]) -> list[Weight]:
    """`weights`, those of a vision tower dropped."""
    prefix = PARTS["vision tower"]
    return [
        replace(weight, target="", reason="another vision tower was given")
        if weight.target.startswith(prefix)
        else weight
        for weight in weights
    ]


def _embedding(weights: Sequence[Weight], folder: Path) -> Spec:
    for weight in weights:
        if weight.target == EMBEDDING:
            return weight.spec
    raise UserError(f"{str(folder)!r} lacks model.embed_tokens.weight: give a whole checkpoint.")


def _check(weights: Sequence[Weight], config: LlavaConfig, vocabulary: int) -> None:
    """UserError unless `weights` are the model's, once each, in its shapes, of 16 or 32 bits."""
    shapes = on_disk(config)
    for name in (EMBEDDING, HEAD):
        shapes[name] = (vocabulary, *shapes[name][1:])
    found = Counter(weight.target for weight in weights if not weight.reason)
    faults = {
        "are missing": [name for name in shapes if name not in found],
        "are duplicated": [name for name, count in found.items() if count > 1],
        "do not belong to the model that config.json describes": [n for n in found if n not in shapes],
        "have another shape than config.json says": [
            f"{weight.source} {list(weight.spec.shape)} instead of {list(shapes[weight.target])}"
            for weight in weights
            if weight.target in shapes and weight.spec.shape != shapes[weight.target]
        ],
        "are no floating-point numbers of 16 or 32 bits": [
            f"{weight.source} {weight.spec.kind}"
            for weight in weights
            if not weight.reason and weight.spec.dtype not in WRITABLE
        ],
    }
    found_faults = [
        f"{len(names)} weights {fault}: {_listed(names)}" for fault, names in faults.items() if names
    ]
    if found_faults:
        raise UserError(
            "The checkpoint cannot be converted.\n" + "\n".join(found_faults) + "\nIs it complete?"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def on_disk(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight as transformers writes them."""
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    names = {name: name.removeprefix("model.") for name in state}
    for name in names:
        if name.startswith("lm_head."):
            names[name] = f"language_model.{name}"
        elif name.startswith("model.language_model."):
            names[name] = name.replace("model.language_model.", "language_model.model.", 1)
    return {names[name]: tuple(tensor.shape) for name, tensor in state.items()}


def _final(weight: Weight, rows: int, dtype: torch.dtype | None) -> Spec:
    """The shape and dtype that a weight gets: embeddings of `rows` rows; dtype None keeps its own."""
    shape = weight.spec.shape
    if weight.target in (EMBEDDING, HEAD):
        shape = (rows, *shape[1:])
    return Spec(shape, dtype or weight.spec.dtype)


@contextmanager
def _partial(target: Path, size: int) -> Iterator[Path]:
    """The folder to write to, which becomes `target` at the end of the block, or vanishes when it fails."""
    try:
        with new_folder(target) as partial:
            free = shutil.disk_usage(partial).free
            if free < size:
                raise UserError(
                    f"{str(target)!r} needs {size / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left."
                )
            yield partial
    except OSError as error:
        raise UserError(f"Cannot write {str(target)!r}: {error}.") from error


def _write_weights(folder: Path, conversion: Conversion, progress: bool) -> None:
    """One file for each file of the source that keeps a weight, and their index."""
    shards: dict[Path, list[Weight]] = {}
    for weight in sorted(conversion.kept, key=lambda weight: -weight.spec.dtype.itemsize):
        shards.setdefault(weight.file, []).append(weight)
    written = {}
    total = sum(weight.spec.bytes for weight in conversion.kept)
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not progress) as bar:
        for number, (file, weights) in enumerate(sorted(shards.items()), 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            specs = {weight.target: weight.spec for weight in weights}
            write_safetensors(folder / name, specs, _reader(file, weights, bar))
            written[name] = specs
    write_index(folder, written)


def _reader(file: Path, weights: Sequence[Weight], bar: tqdm) -> Callable[[str], torch.Tensor]:
    """What gives the converted tensors of a source file by their new names."""
    source = open_weights(file)
    by_target = {weight.target: weight for weight in weights}

    def read(target: str) -> torch.Tensor:
        weight = by_target[target]
        bar.update(weight.spec.bytes)
        return _cast(_rows(source.tensor(weight.source), weight.spec), weight)

    return read


def _rows(tensor: torch.Tensor, spec: Spec) -> torch.Tensor:
    """An embedding (V, D) with its mean as the rows that it lacks, any other tensor as it is.

    The logit of a mean row is the mean of the others: it never is the greatest.
    """
    if tuple(tensor.shape) == spec.shape:
        return tensor
    mean = sum(part.double().sum(0) for part in tensor.split(_CHUNK)) / len(tensor)
    return torch.cat([tensor, mean.to(tensor.dtype).expand(spec.shape[0] - len(tensor), -1)])


def _cast(tensor: torch.Tensor, weight: Weight) -> torch.Tensor:
    if tensor.dtype == weight.spec.dtype:
        return tensor
    cast = tensor.to(weight.spec.dtype)
    if cast.dtype == torch.float16 and not torch.isfinite(cast).all():
        raise UserError(f"{weight.source} has values outside of float16: give --dtype bfloat16 or float32.")
    return cast


def _write_companions(folder: Path, conversion: Conversion) -> None:
    """All that a checkpoint needs beside its weights, config.json last."""
    config, tokenizer = conversion.config, conversion.tokenizer
    tokenizer.save_pretrained(folder)
    original.processor(tokenizer, conversion.image_processor, config).save_pretrained(folder)
    conversion.image_processor.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    atomic_write(folder / REPORT, conversion.report() + "\n")
    config.save_pretrained(folder)
