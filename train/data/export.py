"""DualFocus samples as the conversation files that other training code reads.

Two forms, with the images in folders next to the file: `llava`, the JSON of LLaVA's instruction data (turns
with <image> placeholders, two images a record), and `messages`, JSON Lines of chat messages and their images,
which LLaMA-Factory, ms-swift and others read. Turns are worded as at inference, by the protocol.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.errors import Interrupted, UserError, choose
from dualfocus_lmms.files import atomic_write, replacing
from dualfocus_lmms.flow import locate_prompt, micro_prompt
from dualfocus_lmms.protocol import Protocol, load_protocol
from dualfocus_lmms.train.data.conversations import enlarged_crop, question_of
from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample, are_separate
from dualfocus_lmms.zoom import DynamicResolution

IMAGES, CROPS = "images", "crops"
PLACEHOLDER = "<image>"
_BLANK = Image.new("RGB", (1, 1))  # prompts do not use the image

Turns = list[tuple[str, str, tuple[str, ...]]]  # role (user, assistant), text, images that open the turn


def export(
    samples: Iterable[TrainingSample],
    folder: str | Path,
    form: str = "llava",
    protocol: str = "release",
    box_format: BoxFormat | None = None,
    instruction: str = "",
    resolution: DynamicResolution | None = None,
    regions: str = "union",
) -> Path:
    """Write `samples` to `folder` in a form ("llava" or "messages") and return the conversation file.

    box_format: how the box is written; by default as LLaVA-1.5 does. instruction: how to answer, on a line of
    its own after the question ("" for none). resolution: of the family; the protocol then says to how many
    pixels crops are enlarged, by the bounds that the family documents. regions: "separate" for a box and a
    crop of each region. The file appears only when all samples are written. UserError for a box format of the
    resized image, and when the folder holds another export's images.
    """
    if form not in _FORMS:
        raise choose("form", form, sorted(_FORMS))
    if box_format is not None and box_format.frame == "resized":
        raise UserError(
            "This family writes boxes in pixels of the image as the training code resizes it, which an "
            "export cannot know: train it with `dualfocus train`, or export for another family."
        )
    name, record = _FORMS[form]
    folder, separate = Path(folder), are_separate(regions, protocol)
    try:
        for part in (IMAGES, CROPS):
            (folder / part).mkdir(parents=True, exist_ok=True)
        with replacing(folder / name) as temporary, temporary.open("w", encoding="utf-8") as file:
            rules = load_protocol(protocol)
            rows = _conversations(samples, folder, rules, box_format, instruction, resolution, separate)
            lines = (json.dumps(record(sample.id, turns), ensure_ascii=False) for sample, turns in rows)
            if form == "llava":
                file.write("[\n")
                for number, line in enumerate(lines):
                    file.write(",\n" * bool(number) + line)
                file.write("\n]\n")
            else:
                file.writelines(line + "\n" for line in lines)
        return folder / name
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"images are in {str(folder)!r}, the conversations are not. Run the same command to start again."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot write to {str(folder)!r}: {error}.") from error


def turns_of(
    sample: TrainingSample,
    image: str,
    crops: Sequence[str],
    protocol: Protocol,
    box_format: BoxFormat | None = None,
    instruction: str = "",
    separate: bool = False,
) -> Turns:
    """The turns of a sample (section 3.2, format 1); image and crops are the names of its images."""
    box_format = box_format or BoxFormat()
    question = question_of(sample, instruction, _BLANK)
    boxes, _ = sample.regions(separate)
    if not boxes:
        return [("user", question.prompt, (image,)), ("assistant", sample.answer, ())]
    size = (1, 1) if box_format.frame == "original" else sample.image.decode().size
    return [
        ("user", locate_prompt(question, protocol), (image,)),
        ("assistant", box_format.write_all(boxes, size), ()),
        ("user", micro_prompt(question, protocol, len(boxes)), tuple(crops)),
        ("assistant", sample.answer, ()),
    ]


def _conversations(
    samples: Iterable[TrainingSample],
    folder: Path,
    protocol: Protocol,
    box_format: BoxFormat | None,
    instruction: str,
    resolution: DynamicResolution | None,
    separate: bool,
) -> Iterator[tuple[TrainingSample, Turns]]:
    """Each sample with its turns; its images are written, each image once."""
    written: dict[str, int] = {}
    for sample in samples:
        original = sample.image.plain()
        name = _file_name(original, sample.source or sample.id)
        image = _save(original, f"{IMAGES}/{name}", folder, written)
        crops = []
        for crop in sample.regions(separate)[1]:
            part = _crop_file(sample, crop, protocol, resolution)
            crops.append(_save(part, f"{CROPS}/{_file_name(part, sample.id)}", folder, written))
        yield sample, turns_of(sample, image, crops, protocol, box_format, instruction, separate)


def _crop_file(
    sample: TrainingSample, crop: SampleImage, protocol: Protocol, resolution: DynamicResolution | None
) -> SampleImage:
    """The crop as it is, or enlarged, and then as a PNG."""
    part = crop.plain()
    if resolution is None:
        return part
    enlarged = enlarged_crop(crop, sample.image.decode().size, protocol, resolution)
    if enlarged.size == part.decode().size:
        return part
    file = io.BytesIO()
    enlarged.save(file, "PNG")
    name = PurePosixPath(_file_name(crop, sample.id)).with_suffix(".png")
    return SampleImage(file.getvalue(), str(name))


def _file_name(image: SampleImage, fallback: str) -> str:
    """The last part of an image's name, or a name made of `fallback`."""
    name = PurePosixPath(image.name.replace("\\", "/")).name
    return name if name not in ("", ".", "..") else re.sub(r"[^\w.-]", "_", fallback) + ".jpg"


def _save(image: SampleImage, name: str, folder: Path, written: dict[str, int]) -> str:
    """Write an image once and return its name; another image of the same name gets a number."""
    stem, dot, ending = name.rpartition(".")
    key, number = hash(image.data), 1
    while written.get(name, key) != key:
        number += 1
        name = f"{stem}-{number}{dot}{ending}"
    if name not in written:
        path = folder / name
        finished = any((folder / file).exists() for file, _ in _FORMS.values())
        if finished and path.exists() and path.read_bytes() != image.data:
            raise UserError(f"{str(folder)!r} holds another export ({name} differs): give a new folder.")
        atomic_write(path, image.data)
        written[name] = key
    return name


def _llava(name: str, turns: Turns) -> dict[str, Any]:
    """LLaVA's form: one image is a name, several are a list in the order of their placeholders."""
    images = _images(turns)
    return {
        "id": name,
        "image": images[0] if len(images) == 1 else images,
        "conversations": [
            {"from": "human" if role == "user" else "gpt", "value": f"{PLACEHOLDER}\n" * len(images) + text}
            for role, text, images in turns
        ],
    }


def _messages(name: str, turns: Turns) -> dict[str, Any]:
    """Chat messages with placeholders in the text, and the images in their order."""
    return {
        "id": name,
        "messages": [
            {"role": role, "content": f"{PLACEHOLDER}\n" * len(images) + text} for role, text, images in turns
        ],
        "images": _images(turns),
    }


def _images(turns: Turns) -> list[str]:
    return [image for _, _, images in turns for image in images]


_FORMS: dict[str, tuple[str, Callable[[str, Turns], dict[str, Any]]]] = {
    "llava": ("dualfocus_llava.json", _llava),
    "messages": ("dualfocus_messages.jsonl", _messages),
}
