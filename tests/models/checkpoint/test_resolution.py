"""How many tokens a crop has before and after the zoom of eq. 3, by each family's own processor."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from dualfocus_lmms import Family, UserError
from dualfocus_lmms.models.checkpoint.image_inputs import bound_pixels, complete_processor, resolution_of
from dualfocus_lmms.models.checkpoint.image_text_inputs import reader
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.tiny.families import MAKERS, save_tiny_family
from dualfocus_lmms.plugins import FAMILIES, load_family, names
from dualfocus_lmms.zoom import DynamicResolution, zoomed

IMAGE = (1500, 1000)
SIDES = (20, 60, 200, 1000)  # of square crops
DOCS = Path(__file__).parents[3] / "docs" / "families.md"
DYNAMIC = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"}
# Folders of real processors: their family, and tokens of the whole image and of the crops before and after.
REAL = {
    "qwen2-vl-processor-new-format": ("qwen2_vl", 1944, (4, 4, 49, 1296), (1936, 1936, 1936, 1936)),
    "qwen2.5-vl-7b-instruct": ("qwen2_5_vl", 1944, (4, 4, 49, 1296), (1936, 1936, 1936, 1936)),
    "qwen3-vl-4b-instruct": ("qwen3_vl", 1457, (64, 64, 64, 961), (1444, 1444, 1444, 1444)),
    "qwen3.5-family-partial": ("qwen3_5", 1457, (64, 64, 64, 961), (1444, 1444, 1444, 1444)),
    "qwen3-vl-embedding": ("qwen3_vl", 1247, (4, 4, 36, 961), (1225, 1225, 1225, 1225)),
}
OF_ONE_SIZE = {
    "llava-1.5-7b-hf": ("llava", 576, (576, 576, 576, 576)),
    "llava-next-video-7b-hf": ("llava_next", 2144, (1176, 1176, 1176, 2928)),
    "smolvlm-256m": ("idefics3", 862, (1127, 1127, 1127, 1127)),
}


def blank(side: int) -> Image.Image:
    return Image.new("RGB", (side, side))


@pytest.mark.parametrize("name", REAL)
def test_crops_are_enlarged_by_real_processors_of_dynamic_resolution(name: str, shared_data: Path):
    family_name, whole, before, after = REAL[name]
    family = load_family(family_name)
    folder = shared_data / "checkpoints" / name
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    if name == "qwen3.5-family-partial":  # one of its two files of settings leaves out the patches' size
        complete_processor(SimpleNamespace(image_processor=images), AutoConfig.from_pretrained(folder))
    resolution = resolution_of(family, images)
    assert resolution is not None
    assert resolution == family.resolution or name == "qwen3-vl-embedding"  # which is another model's

    def tokens(image: Image.Image) -> int:
        _, rows, columns = images(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
        size = (columns * images.patch_size, rows * images.patch_size)
        assert resolution.fit(image.size) == size
        assert resolution.tokens(image.size) == rows * columns // images.merge_size**2
        return rows * columns // images.merge_size**2

    assert tokens(Image.new("RGB", IMAGE)) == whole
    assert tuple(tokens(blank(side)) for side in SIDES) == before
    crops = [zoomed(blank(side), IMAGE, "auto", resolution) for side in SIDES]
    assert tuple(tokens(crop) for crop in crops) == after
    assert [resolution.fit(crop.size) for crop in crops] == [crop.size for crop in crops]


def test_gemma_4_scales_every_image_to_its_budget_of_tokens():
    images = Gemma4ImageProcessorPil()
    sizes = [IMAGE, *((side, side) for side in SIDES)]
    counts = [
        images(images=[Image.new("RGB", size)], return_tensors="pt")["num_soft_tokens_per_image"].item()
        for size in sizes
    ]
    assert counts == list(GEMMA4)
    assert max(counts) <= images.max_soft_tokens == 280


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_real_processors_of_one_size_enlarge_by_themselves(name: str, shared_data: Path):
    family_name, whole, before = OF_ONE_SIZE[name]
    processor = AutoProcessor.from_pretrained(shared_data / "checkpoints" / name)
    assert resolution_of(load_family(family_name), processor.image_processor) is None
    counts = []
    for image in (Image.new("RGB", IMAGE), *map(blank, SIDES)):
        assert zoomed(image, IMAGE, "auto", None) is image
        made = processor(images=[image], text=["<image>"], add_special_tokens=False, return_tensors="pt")
        counts.append(made["input_ids"].shape[1])
    assert (counts[0], tuple(counts[1:])) == (whole, before)


GEMMA4 = (260, 256, 256, 256, 256)  # of the whole image, of the crops


@pytest.fixture(scope="module", params=sorted(MAKERS))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_family(tmp_path_factory.mktemp(request.param), request.param)
    return load_checkpoint(str(folder), device="cpu")


def test_the_model_gets_what_the_zoom_made(loaded: Checkpoint):
    """Tokens and size by the family's own processor, for images of many shapes."""
    _, image_reader = reader(loaded)
    resolution, token = image_reader.resolution, loaded.model.config.image_token_id
    assert (resolution is not None) == (loaded.family.name in DYNAMIC)
    whole = Image.new("RGB", (150, 100))
    for size in [(20, 20), (60, 60), (10, 90), (150, 100)]:
        crop = Image.new("RGB", size, "red")
        seen = zoomed(crop, whole.size, "auto", resolution)
        if resolution is None:
            assert seen is crop
            continue
        tokens = image_reader.ids(seen).count(token)
        assert image_reader.input_size(seen) == resolution.fit(seen.size)
        assert tokens == resolution.tokens(seen.size) >= resolution.tokens(crop.size)
        assert 0.6 < tokens / resolution.tokens(whole.size) <= 1.5  # whole tokens of a tiny image
        assert seen.size == image_reader.input_size(seen) or seen is crop


def test_bounds_hold_for_every_image(tmp_path: Path):
    folder = save_tiny_family(tmp_path, "qwen2_5_vl")
    checkpoint = load_checkpoint(str(folder), device="cpu", min_pixels=8000, max_pixels=50_000)
    _, image_reader = reader(checkpoint)
    assert image_reader.resolution == DynamicResolution(28, 8000, 50_000)
    for size in [(20, 20), (60, 60), (700, 400)]:
        image = Image.new("RGB", size)
        assert image_reader.input_size(image) == image_reader.resolution.fit(size)
        width, height = image_reader.input_size(image)
        assert 8000 <= width * height <= 50_000
    with pytest.raises(UserError, match="60000"):
        load_checkpoint(str(folder), device="cpu", min_pixels=60_000, max_pixels=50_000)


@pytest.mark.parametrize("family", sorted(set(names(FAMILIES)) - DYNAMIC - {"example"}))
def test_bounds_are_refused_where_images_have_one_size(family: str):
    with pytest.raises(UserError, match="max_pixels=50000"):
        bound_pixels(load_family(family), None, None, 50_000)


def test_a_processor_of_another_kind_is_as_its_family_says():
    class Lengths:  # as Pixtral's: the edge is a length
        size = {"longest_edge": 1540}  # noqa: RUF012
        patch_size = 14

    family = load_family("qwen2_vl")
    assert resolution_of(family, Lengths()) == family.resolution
    with pytest.raises(UserError, match="min_pixels=5000"):
        bound_pixels(family, Lengths(), 5000, None)


def documented(family: Family) -> tuple[int, list[int], list[int]]:
    """Tokens of the whole image, of the crops as they are, and enlarged, by what a family documents."""
    resolution: Any = family.resolution
    crops = [(side, side) for side in SIDES]
    seen = [zoomed(blank(side), IMAGE, "auto", resolution).size for side in SIDES]
    return (
        resolution.tokens(IMAGE),
        [resolution.tokens(size) for size in crops],
        [resolution.tokens(size) for size in seen],
    )


def test_the_docs_have_these_numbers():
    rows = re.findall(r"^\| `(\w+)` \|((?: [\d, →]+ \|){5})$", DOCS.read_text("utf-8"), re.MULTILINE)
    shown = {name: [cell.strip().replace(",", "") for cell in cells.split("|")[:-1]] for name, cells in rows}
    assert sorted(shown) == sorted(set(names(FAMILIES)) - {"generic", "example"})
    for name in DYNAMIC:
        whole, before, after = documented(load_family(name))
        assert shown[name] == [*(f"{a} → {b}" for a, b in zip(before, after, strict=True)), str(whole)]
    for name, whole, crops in OF_ONE_SIZE.values():
        assert shown[name] == [*map(str, crops), str(whole)]
    assert shown["gemma4"] == [*map(str, GEMMA4[1:]), str(GEMMA4[0])]
