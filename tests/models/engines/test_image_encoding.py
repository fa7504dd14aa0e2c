"""What a release of transformers may lack: the engines raise instead of answering otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from random_models import SHARING

from dualfocus_lmms import Conversation, StopCriteria, UserError
from dualfocus_lmms.models.checkpoint.image_text_inputs import token_types
from dualfocus_lmms.models.checkpoint.loading import Checkpoint, load_checkpoint
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.engines.image_encoding import ImageEncoder, check_release
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.tiny.families import save_tiny_family
from dualfocus_lmms.types import Prompt

FAST = ("shared", "template", "tree")


@pytest.fixture(scope="module", params=SHARING)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_family(tmp_path_factory.mktemp(request.param), request.param)
    return load_checkpoint(str(folder), device="cpu")


def generate(backend: Any) -> Any:
    conversation = Conversation().user("What is it?", Image.new("RGB", (90, 60), "red"))
    return backend.generate(Prompt.batch("macro", [conversation], [StopCriteria(1)]))


def uses_mrope(loaded: Checkpoint) -> bool:
    return "mrope_section" in loaded.model.config.get_text_config().rope_parameters


def test_every_encoder_input_of_the_families_reaches_the_encoder(loaded: Checkpoint):
    backend = ModelBackend(loaded)
    inputs = backend.encoder_input(backend.image_reader([Image.new("RGB", (90, 60))]))
    assert set(ImageEncoder(backend).arguments(inputs)) == set(inputs)


def test_pixels_that_the_encoder_does_not_take_are_not_dropped(checkpoint: Checkpoint):
    backend = make_engine("shared", checkpoint)
    encoder_input = backend.encoder_input
    counts = {"tile_counts": torch.ones(1, dtype=torch.long)}
    backend.encoder_input = lambda images: encoder_input(images) | counts  # type: ignore[method-assign]
    assert generate(backend)
    backend.forget()
    more = {"more_pixel_values": torch.ones(1)}
    backend.encoder_input = lambda images: encoder_input(images) | more  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"does not take more_pixel_values.*docs/compatibility\.md"):
        generate(backend)


@pytest.mark.parametrize("name", FAST)
def test_mrope_without_positions_for_images_is_refused(
    loaded: Checkpoint, name: str, monkeypatch: pytest.MonkeyPatch
):
    make_engine(name, loaded)
    if not uses_mrope(loaded):
        pytest.skip("no M-RoPE")
    monkeypatch.delattr(type(loaded.model.model), "get_rope_index")
    with pytest.raises(UserError, match=r"mrope_section.*engine=batched.*docs/compatibility\.md"):
        make_engine(name, loaded)
    make_engine("naive", loaded)


@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_mrope_is_found_under_both_names_and_by_type_of_layer(field: str, by_layer: bool):
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    text = SimpleNamespace(**{field: {"full_attention": rope} if by_layer else rope})
    config = SimpleNamespace(get_text_config=lambda: text)
    check_release(SimpleNamespace(model=SimpleNamespace(get_rope_index=None), config=config))
    with pytest.raises(UserError, match="mrope_section"):
        check_release(SimpleNamespace(model=SimpleNamespace(), config=config))
    del rope["mrope_section"]
    check_release(SimpleNamespace(model=SimpleNamespace(), config=config))


def test_deepstack_features_that_the_encoder_does_not_return_are_missed(
    loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    backend = make_engine("shared", loaded)
    model = loaded.model.model
    get_image_features = type(model).get_image_features

    def without_deepstack(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = get_image_features(self, *args, **kwargs)
        return SimpleNamespace(pooler_output=output.pooler_output)

    monkeypatch.setattr(type(model), "get_image_features", without_deepstack)
    if not getattr(loaded.model.config.vision_config, "deepstack_visual_indexes", None):
        assert generate(backend)
        return
    with pytest.raises(UserError, match=r"deepstack_features.*engine=batched.*docs/compatibility\.md"):
        generate(backend)


def test_positions_of_images_need_the_mask_of_image_tokens(
    loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    model = loaded.model
    assert token_types(model) == (["mm_token_type_ids"] if uses_mrope(loaded) else [])

    def forward(self: Any, input_ids: Any = None, pixel_values: Any = None) -> None: ...

    monkeypatch.setattr(type(model), "forward", forward)
    if not uses_mrope(loaded):
        assert token_types(model) == []
        return
    with pytest.raises(UserError, match=r"token_type_ids.*docs/compatibility\.md"):
        token_types(model)
