"""Image processors and processors of transformers: what they make of an image, and by which names."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

LookUp = Callable[[str], Any]
Make = Callable[..., Any]
Same = Callable[[Any, Any, str], None]

CLIP = "transformers:CLIPImageProcessorPil"
SQUARE = {"height": 56, "width": 56}
QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# What the images leave out of a processor's output; all else goes to the encoder.
NOT_FOR_THE_ENCODER = {
    "input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "batch_num_images",
}  # fmt: skip


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (56, 112, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_clips_processor_normalises_a_square(same: Same, foreign: LookUp, image: Image.Image) -> None:
    """The shipped model computes the very same from numbers in training; pads with `image_mean`."""
    square = image.crop((0, 0, 56, 56))
    processor = foreign(CLIP)(size={"shortest_edge": 56}, crop_size=SQUARE)
    pixels = processor(images=[square], return_tensors="pt")["pixel_values"]
    means, deviations = (
        torch.tensor(foreign(f"transformers.image_utils:OPENAI_CLIP_{name}")).view(3, 1, 1)
        for name in ("MEAN", "STD")
    )
    expected = (torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255 - means) / deviations
    same(pixels, expected[None].float(), "CLIPImageProcessorPil")
    assert [int(value * 255) for value in processor.image_mean] == [122, 116, 104], "image_mean"


def test_clips_processor_cuts_the_middle_out(same: Same, foreign: LookUp, image: Image.Image) -> None:
    """The loader refuses that for families that do not pad to a square, by these three attributes."""
    processor = foreign(CLIP)(size={"shortest_edge": 56}, crop_size=SQUARE)
    assert processor.do_center_crop is True, "do_center_crop"
    assert dict(processor.crop_size) == SQUARE, "crop_size"
    assert dict(processor.size) == {"shortest_edge": 56}, "size"
    cut = processor(images=[image, image.crop((28, 0, 84, 56))], return_tensors="pt")["pixel_values"]
    same(cut[0], cut[1], "do_center_crop")


def test_clips_processor_stretches_where_it_is_told(same: Same, foreign: LookUp, image: Image.Image) -> None:
    """Qwen-VL of 2023 stretches images; a crop would lose their sides and move every box."""
    processor = foreign(CLIP)(size=SQUARE, do_center_crop=False)
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
    squeezed = image.resize((56, 56), Image.Resampling.BICUBIC)
    expected = processor(images=[squeezed], return_tensors="pt")["pixel_values"]
    same(pixels, expected, "CLIPImageProcessorPil(do_center_crop=False)")


def test_an_image_processor_is_loaded_with_pillow(foreign: LookUp, tmp_path: Path) -> None:
    """The loader: images are resized by Pillow, as the models were trained; else answers would differ."""
    foreign(CLIP)(size={"shortest_edge": 56}, crop_size=SQUARE).save_pretrained(tmp_path)
    load = foreign("transformers:AutoImageProcessor.from_pretrained")
    assert type(load(tmp_path, revision=None, backend="pil")) is foreign(CLIP), 'backend="pil"'


def test_no_image_processor_is_an_os_error(foreign: LookUp, llava_folder: Path) -> None:
    """Qwen-VL of 2023 was published without one: it is made up for where this error comes."""
    with pytest.raises(OSError, match="preprocessor_config"):
        foreign("transformers:AutoImageProcessor.from_pretrained")(llava_folder, backend="pil")


def test_a_folder_with_words_and_images_alone_has_no_processor_of_its_own(
    foreign: LookUp, llava_folder: Path, make_words: Make, tmp_path: Path
) -> None:
    """The training completes what AutoProcessor makes of such a folder, and writes it beside the weights."""
    for file in llava_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    make_words().save_pretrained(tmp_path)
    foreign(CLIP)(size={"shortest_edge": 56}, crop_size=SQUARE).save_pretrained(tmp_path)
    processor = foreign("transformers:AutoProcessor.from_pretrained")(tmp_path)
    if isinstance(processor, foreign("transformers:ProcessorMixin")):
        for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
            assert hasattr(processor, name), f"LlavaProcessor.{name}"


def test_llavas_processor_gives_an_image_its_tokens(
    foreign: LookUp, make_words: Make, image: Image.Image
) -> None:
    """The conversion and the training write it for plain transformers: 16 tokens for 56 pixels in patches of
    14, the class token left out."""
    images = foreign(CLIP)(size={"shortest_edge": 56}, crop_size=SQUARE)
    processor = foreign("transformers:LlavaProcessor")(
        image_processor=images, tokenizer=make_words(), patch_size=14, num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    made = processor(images=[image], text=["<image>a"], add_special_tokens=False, return_tensors="pt")
    assert made["input_ids"][0].tolist().count(4) == 16, "LlavaProcessor"
    assert len(made["input_ids"][0]) == 17, "LlavaProcessor(add_special_tokens=False)"


def qwen(foreign: LookUp, make_words: Make) -> Any:
    images = foreign("transformers.models.qwen2_vl.image_processing_qwen2_vl:Qwen2VLImageProcessor")(
        patch_size=14, merge_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    )
    words = make_words(specials=QWEN, eos_token="<|im_end|>")
    videos = foreign("transformers:Qwen2VLVideoProcessor")()
    return foreign("transformers:Qwen2_5_VLProcessor")(images, words, videos)


def test_a_processor_has_its_parts_and_its_words(foreign: LookUp, make_words: Make) -> None:
    """The loader and the reader: tokenizer and image processor, and what stands for an image in a text."""
    processor = qwen(foreign, make_words)
    assert processor.image_token == "<|image_pad|>", "Qwen2_5_VLProcessor.image_token"
    assert processor.tokenizer.convert_tokens_to_ids("<|image_pad|>") > 4, "ProcessorMixin.tokenizer"
    assert processor.image_processor.patch_size == 14, "ProcessorMixin.image_processor.patch_size"
    assert processor.chat_template is None, "ProcessorMixin.chat_template"


@pytest.mark.parametrize("layout", ["chat_template.jinja", "chat_template.json", "processor_config.json"])
def test_a_processors_template_is_found_without_its_class(
    foreign: LookUp, tmp_path: Path, layout: str
) -> None:
    """Whose template is used depends on what a checkpoint brings, in whichever of its files."""
    text = "{{ messages }}"
    written = text if layout.endswith("jinja") else json.dumps({"chat_template": text})
    (tmp_path / layout).write_text(written, encoding="utf-8")
    read, _ = foreign("transformers:ProcessorMixin.get_processor_dict")(str(tmp_path), revision=None)
    assert read["chat_template"] == text, f"ProcessorMixin.get_processor_dict, {layout}"


def test_a_tokenizers_settings_are_found_without_its_class(foreign: LookUp, tmp_path: Path) -> None:
    read = foreign("transformers.models.auto.tokenization_auto:get_tokenizer_config")
    assert read(str(tmp_path), revision=None) == {}, "get_tokenizer_config without a file"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "a"}')
    assert read(str(tmp_path), revision=None)["chat_template"] == "a", "get_tokenizer_config"


def test_what_a_processor_makes_is_for_the_encoder_or_known(
    foreign: LookUp, make_words: Make, image: Image.Image
) -> None:
    """The images give all but a few outputs to the encoder: a new one would be an unknown argument."""
    made = qwen(foreign, make_words)(
        images=[image], text=["<|image_pad|>"], add_special_tokens=False, return_tensors="pt"
    )
    takes = inspect.signature(foreign("transformers:Qwen2_5_VLModel.get_image_features")).parameters
    assert set(made) - NOT_FOR_THE_ENCODER <= set(takes), f"Qwen2_5_VLProcessor gives {sorted(made)}"
    assert {"pixel_values", "image_grid_thw"} <= set(made), f"Qwen2_5_VLProcessor gives {sorted(made)}"


def test_a_grid_tells_how_large_an_image_was_seen(
    foreign: LookUp, make_words: Make, image: Image.Image
) -> None:
    """Boxes in pixels of the resized image are read by it: patches in time, height and width."""
    processor = qwen(foreign, make_words)
    made = processor(images=[image], text=["<|image_pad|>"], add_special_tokens=False, return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 4, 8]], "image_grid_thw"
    assert made["input_ids"].shape == (1, 8), "Qwen2_5_VLProcessor: a token for two by two patches"
    alone = processor.image_processor(images=[image], return_tensors="pt")
    assert alone["image_grid_thw"].tolist() == [[1, 4, 8]], "Qwen2VLImageProcessor: image_grid_thw"


def test_an_image_that_is_too_long_is_a_value_error(foreign: LookUp, make_words: Make) -> None:
    """The images turn it into a message that says which image it was."""
    with pytest.raises(ValueError, match="200"):
        qwen(foreign, make_words)(
            images=[Image.new("RGB", (9000, 30))], text=["<|image_pad|>"], return_tensors="pt"
        )


def test_a_detectors_boxes_are_corners_in_fractions(same: Same, foreign: LookUp) -> None:
    """The grounding by GroundingDINO takes what is above the processor's own thresholds: left, top, right and
    bottom as fractions, where no size of the image is given."""
    output = foreign(
        "transformers.models.grounding_dino.modeling_grounding_dino:GroundingDinoObjectDetectionOutput"
    )
    logits = torch.full((1, 2, 8), -10.0)
    logits[0, 1, 3] = 10.0
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.6, 0.2, 0.4]]])  # centre and sides
    post = foreign("transformers:GroundingDinoProcessor.post_process_grounded_object_detection")
    (found,) = post(_Decoding(), output(logits=logits, pred_boxes=boxes), torch.ones(1, 8).long())
    same(found["boxes"], torch.tensor([[0.4, 0.4, 0.6, 0.8]]), "post_process_grounded_object_detection")


class _Decoding:
    """The part of a processor that names what was found."""

    tokenizer: Any = None

    def batch_decode(self, ids: Any, *args: Any, **kwargs: Any) -> list[str]:
        return ["thing"] * len(ids)

    def decode(self, ids: Any, *args: Any, **kwargs: Any) -> str:
        return "thing"

    def __init__(self) -> None:
        self.tokenizer = self
