"""From sources of examples to batches of tensors: mixing, order, padding. Knows nothing about training.

The order of a run is a function of the recipe and its seed alone: not of the number of processes, not of
where a run was interrupted.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from PIL import Image

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, open_image, unreadable
from dualfocus_lmms.json_text import load_json
from dualfocus_lmms.models.checkpoint.image_inputs import ImageReader, ImageRefusedError, joined
from dualfocus_lmms.protocol import Protocol
from dualfocus_lmms.train.data.conversations import (
    IGNORED,
    Encoded,
    Encoder,
    Example,
    InputSize,
    blank_replies,
    check_llava,
    from_llava,
    from_sample,
    jittered,
    rounds,
)
from dualfocus_lmms.train.data.samples import TrainingSample, read_samples
from dualfocus_lmms.zoom import DynamicResolution


@dataclass(frozen=True, eq=False)
class Source:
    """Examples by number. share: its part of the mixture, None for all of it once an epoch."""

    name: str
    length: int
    example: Callable[[int], Example]
    share: float | None = None


def sample_source(
    path: str,
    protocol: Protocol,
    box_format: BoxFormat,
    instruction: str,
    share: float | None = None,
    macro_only: bool = False,
    input_size: InputSize | None = None,
    resolution: DynamicResolution | None = None,
    box_jitter: float = 0.0,
    separate: bool = False,
) -> Source:
    """The DualFocus samples of a Parquet file or folder; with macro_only, without the zoom. box_jitter: see
    `jittered`. The others: see `from_sample`."""
    samples = read_samples(path, separate and not macro_only)
    example = partial(
        _sample_example,
        samples,
        protocol,
        box_format,
        instruction,
        macro_only,
        input_size,
        resolution,
        box_jitter,
        separate,
    )
    return Source(Path(path).name, len(samples), example, share)


def _sample_example(
    samples: Sequence[TrainingSample],
    protocol: Protocol,
    box_format: BoxFormat,
    instruction: str,
    macro_only: bool,
    input_size: InputSize | None,
    resolution: DynamicResolution | None,
    box_jitter: float,
    separate: bool,
    number: int,
) -> Example:
    sample = samples[number] if macro_only else jittered(samples[number], box_jitter, protocol)
    return from_sample(
        sample, protocol, box_format, instruction, macro_only, input_size, resolution, separate
    )


def llava_source(path: str, images: str | None, share: float | None = None) -> Source:
    """LLaVA's instruction data: a JSON list, or JSON Lines (.jsonl), with images relative to `images`.

    Read and checked as a whole at the start, whether its images are there as well; they are opened when
    they are needed.
    """
    records = _read_json(Path(path))
    try:
        check_llava(records)
    except UserError as error:
        raise UserError(f"{path!r}: {error}") from error
    _warn_of_blank_replies(path, records)
    if images is None and any(record.get("image") for record in records):
        raise UserError(f"{path!r} names images: give their folder as `images`.")
    folder = Path(images or ".")
    _find_images(records, folder)
    example = partial(_llava_example, records, folder)
    return Source(Path(path).name, len(records), example, share)


def _warn_of_blank_replies(path: str, records: Sequence[Mapping[str, Any]], listed: int = 3) -> None:
    blank = blank_replies(records)
    if blank:
        logger.warning(
            f"{path!r} has {len(blank)} records with an empty reply, from which the model learns to say "
            f"nothing: {', '.join(blank[:listed])}."
        )


def _find_images(records: Sequence[Mapping[str, Any]], folder: Path, listed: int = 3) -> None:
    """UserError that names the first missing images, so that a long run does not stop at one of them."""
    names: set[str] = set()
    for record in records:
        image = record.get("image") or ()
        names.update([image] if isinstance(image, str) else image)
    missing = sorted(name for name in names if not os.path.isfile(folder / name))
    if missing:
        shown = ", ".join(missing[:listed])
        raise UserError(
            f"{len(missing)} of {len(names)} images are not in {str(folder)!r}: {shown}. Put them there "
            "or leave out the records that name them."
        )


def _llava_example(records: Sequence[Mapping[str, Any]], folder: Path, number: int) -> Example:
    return from_llava(records[number], lambda name: _open_image(folder / name))


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
        records = _json_lines(text) if path.suffix == ".jsonl" else load_json(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON: {error}.") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{str(path)!r} is no list of records.")
    return records  # type: ignore[return-value]


def _json_lines(text: str) -> list[Any]:
    """The value of each line that is not blank. ValueError that names the line."""
    values = []
    # Not splitlines(): a JSON string may hold other line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            values += [load_json(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return values


def _open_image(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except UNREADABLE as error:
        advice = "replace it or leave out its record."
        raise unreadable(f"The image {str(path)!r}", error, advice) from error


def epoch_counts(sources: Sequence[Source]) -> list[int]:
    """How many examples each source gives an epoch.

    Without shares, all it has. With shares, as many as fit until a source would have to repeat itself.
    """
    if not any(source.share is not None for source in sources):
        return [source.length for source in sources]
    if not all(source.share for source in sources):
        raise UserError("Give a share above 0 to every source of data, or to none.")
    whole = sum(source.share or 0 for source in sources)
    shares = [(source.share or 0) / whole for source in sources]
    total = min(source.length / share for source, share in zip(sources, shares, strict=True))
    return [min(round(total * share), source.length) for source, share in zip(sources, shares, strict=True)]


def epoch_order(lengths: Sequence[int], counts: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """(N, 2) integers: the source and the example of every row of an epoch, shuffled.

    A source of which an epoch takes a part continues with the rest of it in the next one, and is shuffled
    again when all of it has been taken.
    """
    rows = []
    for source, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        taken = np.arange(epoch * count, (epoch + 1) * count)
        numbers = np.empty(count, dtype=np.int64)
        for lap in np.unique(taken // length):
            there = taken // length == lap
            shuffled = np.random.default_rng([seed, source, int(lap)]).permutation(length)
            numbers[there] = shuffled[taken[there] % length]
        rows.append(np.stack([np.full(count, source, dtype=np.int64), numbers], axis=1))
    return np.random.default_rng([seed, len(lengths), epoch]).permutation(np.concatenate(rows))


# Rows that lost their last rounds, that were too long for one, and that show what the processor refuses.
MISFITS = ("shortened", "left_out", "refused")


class Mixture(torch.utils.data.Dataset):
    """The rows of a whole run, in order; every item is an encoded example, or None where not one round fits.

    length: rows of the run, over as many epochs as that takes. multiple: filled up to one of it with None, so
    that processes share the last step without repeating a row. Counts what did not fit, over all workers of
    this process.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        seed: int,
        length: int | None = None,
        multiple: int = 1,
    ) -> None:
        self.sources = tuple(sources)
        self.counts = epoch_counts(sources)
        self.epoch_length = sum(self.counts)
        if self.epoch_length == 0:
            raise UserError("The sources of data hold no example.")
        self.encoder, self._seed = encoder, seed
        self.rows = self.epoch_length if length is None else length
        self._length = self.rows + -self.rows % multiple
        self._misfits = {name: multiprocessing.Value("q") for name in MISFITS}
        self._order: tuple[int, np.ndarray] | None = None  # an epoch, its rows

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Encoded | None:
        if index >= self.rows:
            return None
        try:
            example = self.example(index)
            encoded = self.encoder.encode(example)
        except ImageRefusedError as error:  # one sample, not the run
            source, number = self._place(index)
            logger.warning(f"Example {number} of {source.name!r} is left out. {error}")
            _add_one(self._misfits["refused"])
            return None
        if encoded is None:
            _add_one(self._misfits["left_out"])
        elif encoded.rounds < rounds(example):
            _add_one(self._misfits["shortened"])
        return encoded

    def example(self, index: int) -> Example:
        """Row `index` of the run before it becomes tokens."""
        source, number = self._place(index)
        return source.example(number)

    def _place(self, index: int) -> tuple[Source, int]:
        """The source of row `index`, and which of its examples it is."""
        epoch, row = divmod(index, self.epoch_length)
        if self._order is None or self._order[0] != epoch:
            lengths = [source.length for source in self.sources]
            self._order = (epoch, epoch_order(lengths, self.counts, self._seed, epoch))
        source, number = self._order[1][row]
        return self.sources[source], int(number)

    @property
    def misfits(self) -> dict[str, int]:
        """How many rows of each of MISFITS there were since this process began."""
        return {name: counter.value for name, counter in self._misfits.items()}


def _add_one(counter: Any) -> None:
    with counter.get_lock():
        counter.value += 1


class Collator:
    """Rows padded on the right, with the images of all of them in order.

    A batch without any image gets one more row, a blank image with nothing to learn: every process then
    runs every part of the model at every step, which sharded and averaged gradients need.
    """

    def __init__(
        self,
        image_reader: ImageReader,
        pad: int,
        blank: Encoded,
        weighted: bool = False,
        image: int = -1,
        types: Sequence[str] = (),
    ) -> None:
        """image: the id of an image's tokens. types: what the model calls a mask of them, if it has one."""
        self._image_reader = image_reader
        self._pad = pad
        self._blank = blank
        self._weighted = weighted
        self._image = image
        self._types = types

    def __call__(self, rows: Sequence[Encoded | None]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels (and weights) (B, L); what the encoder reads of N images."""
        kept = [row for row in rows if row is not None]
        if not any(row.images for row in kept):
            kept.append(self._blank)
        batch = {
            "input_ids": _padded([row.ids for row in kept], self._pad),
            "attention_mask": _padded([[1] * len(row.ids) for row in kept], 0),
            "labels": _padded([row.labels for row in kept], IGNORED),
            **joined(self._image_reader([image for row in kept for image in row.images])),
        }
        for name in self._types:
            batch[name] = batch["input_ids"].eq(self._image).long()
        if self._weighted:
            batch["weights"] = _padded([row.weights for row in kept], 0.0)
        return batch


def blank_row(encoder: Encoder) -> Encoded:
    """A row that shows an image and has nothing to learn. UserError when it does not fit into max_length."""
    image = Image.new("RGB", (1, 1))
    encoded = encoder.encode(Example("blank", Conversation().user("", image).assistant("")))
    if encoded is None:
        raise UserError("max_length is too short for one image: give a larger one.")
    nothing = (IGNORED,) * len(encoded.ids)
    return Encoded(encoded.ids, nothing, (0.0,) * len(encoded.ids), encoded.images)


def _padded(rows: Sequence[Sequence[float]], fill: float) -> torch.Tensor:
    """Ragged rows as a (B, L) tensor, filled up on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
