"""The stages that train the small model: labels match images, packed conversations match inference."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.models.checkpoint.image_inputs import FixedSizeImages
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.tiny.nano import (
    GRID,
    SIDE,
    image_processor,
    nano_config,
    nano_tokenizer,
    normalize,
)
from dualfocus_lmms.scenes import COLORS, SHAPES, make_scene, make_scenes
from dualfocus_lmms.train.data.conversations import from_llava
from dualfocus_lmms.train.nano import base, images, pretrain_vision
from dualfocus_lmms.train.nano.instructions import ROUNDS, write_instructions
from dualfocus_lmms.train.nano.optimizer import Optimizer, rate
from dualfocus_lmms.train.nano.questions import KINDS, LOCATE, WHOLE_MIX, Pair, ask

THING = [0, 1, 7, 0.25, 0.25, 0.5, 0.5, 1]  # a red square with a readable 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(nano_config(nano_tokenizer())).eval()


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> images.Labelled:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "PER_FILE", 40)
        return images.labelled(folder, 80)


def test_images_are_shrunk_as_by_the_image_processor():
    scene = make_scene("train", 0, 3).image()
    for image in (scene, scene.crop((30, 40, 290, 170)), scene.crop((100, 0, 130, 400))):
        ours = normalize(images.shrink(image)[None])
        assert ours.shape == (1, 3, SIDE, SIDE)
        (theirs,) = FixedSizeImages(LLAVA, image_processor(), token=4, length=1)([image])
        assert torch.allclose(ours, theirs.inputs["pixel_values"], atol=1e-5)


def test_scenes_and_crops_alternate_and_have_their_labels(few):
    assert few.whole.tolist() == [True, False] * 80
    for number, scene in enumerate(make_scenes("train", 0, 80)):
        rows = few.things[2 * number]
        assert (rows[:, 0] >= 0).sum() == len(scene.things)
        for row, thing in zip(rows, scene.things, strict=False):
            assert (list(COLORS)[int(row[0])], SHAPES[int(row[1])], str(int(row[2]))) == (
                thing.color,
                thing.shape,
                thing.digit,
            )
            assert np.allclose(row[3:7], thing.box.xyxy, atol=1e-6)
            assert row[7] == 0  # too small to read in the whole scene
    crops = few.things[1::2]
    assert (crops[:, :, 7] > 0).any(1).mean() > 0.7
    assert crops[crops[:, :, 0] >= 0][:, 3:7].min() >= 0
    assert crops[crops[:, :, 0] >= 0][:, 3:7].max() <= 1


def test_a_square_in_a_crop_lies_where_its_colour_is(few):
    for pixels, things in zip(few.pixels[1::2], few.things[1::2], strict=True):
        for thing in things[things[:, 1] == SHAPES.index("square")]:
            x, y = (thing[3] + 3 * thing[5]) / 4, (thing[4] + 3 * thing[6]) / 4  # beside the digit
            color_found = pixels[min(int(y * SIDE), SIDE - 1), int(x * SIDE)].astype(int)
            nearest = min(COLORS.values(), key=lambda color: np.abs(color_found - np.array(color)).sum())
            assert nearest == list(COLORS.values())[int(thing[0])]


def test_images_are_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PER_FILE", 2)
    first = images.labelled(tmp_path, 2)
    monkeypatch.setattr(images, "draw_labelled", lambda scenes: pytest.fail("drawn again"))
    assert np.array_equal(images.labelled(tmp_path, 2).pixels, first.pixels)


def test_a_mirrored_image_has_its_things_on_the_other_side():
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, 0] = 255
    things = np.array([[0, 1, 7, 0.1, 0.2, 0.4, 0.5, 1], [-1] * 8], np.float32)
    mirrored, moved = images.flip(pixels, things)
    assert mirrored[0, -1, 0] == 255
    assert mirrored[0, 0, 0] == 0
    assert np.allclose(moved[0], [0, 1, 7, 0.6, 0.2, 0.9, 0.5, 0])
    assert (moved[1] == -1).all()


def test_patch_targets_are_the_labels_of_the_covering_thing():
    targets = pretrain_vision.patch_targets(np.array([[THING, [-1] * 8]], np.float32))
    color = targets["color"].reshape(GRID, GRID)
    assert (color[2:4, 2:4] == 1).all()  # red is 1, nothing is 0
    assert color.sum() == 4
    assert (targets["shape"].reshape(GRID, GRID)[2:4, 2:4] == 2).all()
    assert (targets["digit"].reshape(GRID, GRID)[2:4, 2:4] == 7).all()
    assert set(targets["digit"][targets["color"] == 0]) == {-100}
    assert targets["edges"].reshape(GRID, GRID, 4)[3, 3].tolist() == [25, 25, 50, 50]


def test_the_schedule_warms_up_stays_and_decays():
    assert [rate(step, 1000) for step in (0, 59, 300, 600)] == [1 / 60, 1, 1, 1]
    assert rate(800, 1000) == pytest.approx(0.5)
    assert rate(999, 1000) == 0.01


def test_an_interrupted_run_ends_as_one_without_interruption(few, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_vision, "BATCH", 16)
    whole, _ = pretrain_vision.train_tower(few, 2, "cpu", tmp_path / "whole")

    saved = pretrain_vision.save

    def save_and_stop(path, **state):
        saved(path, **state)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain_vision, "EVERY", 1)
    monkeypatch.setattr(pretrain_vision, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain_vision.train_tower(few, 2, "cpu", tmp_path / "killed")
    monkeypatch.setattr(pretrain_vision, "save", saved)
    continued, _ = pretrain_vision.train_tower(few, 2, "cpu", tmp_path / "killed")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


def test_a_loss_that_is_not_a_number_raises():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(GenerationError):
        Optimizer([layer], 10).step(layer(torch.ones(1, 2)).sum() * float("nan"))


def test_questions_and_answers_match_the_things():
    things = [THING, [2, 0, 3, 0.6, 0.1, 0.9, 0.4, 0]]  # and a blue circle to its right, higher up
    pairs = {kind: [choice.pair for choice in KINDS[kind](things)] for kind in WHOLE_MIX}
    for question, answer, about in pairs["locate"]:
        red = question.endswith("red square")
        assert answer == ("[0.25, 0.25, 0.50, 0.50]" if red else "[0.60, 0.10, 0.90, 0.40]")
        assert about is things[0 if red else 1]
    for question, answer, _ in pairs["relation"]:
        subject = question.split("the ", 1)[1].startswith("red")
        assert (answer == "yes") == (subject if "left" in question else not subject)
    for question, answer, about in pairs["exist"]:
        assert (about is not None) == (answer == "yes")
        assert (answer == "yes") == ("red square" in question or "blue circle" in question)
    assert {pair.answer for pair in pairs["locate_both"]} == {"[0.25, 0.10, 0.90, 0.50]"}
    assert [pair.answer for pair in pairs["list"]] == ["red square, blue circle"]
    assert [pair.answer for pair in pairs["count"]] == ["2"]
    assert [pair.answer for pair in pairs["detail"]] == ["7"]  # the one that can be read
    assert len(pairs["relation"]) == 4
    assert KINDS["locate_both"]([THING]) == []
    assert ask(random.Random(0), [], WHOLE_MIX).answer in ("no", "0")


def test_the_shares_of_a_kind_sum_to_one_and_half_of_the_named_things_exist():
    things = [THING, [2, 0, 3, 0.6, 0.1, 0.9, 0.4, 0]]
    for kind, choices in KINDS.items():
        assert sum(choice.share for choice in choices(things)) == pytest.approx(1), kind
    exist = KINDS["exist"](things)
    assert sum(share for share, pair in exist if pair.answer == "yes") == pytest.approx(0.5)
    no = [(share, pair.question) for share, pair in exist if pair.answer == "no"]
    near = sum(share for share, question in no if "red" in question or "blue" in question)
    assert near == pytest.approx(0.5 * (0.7 + 0.3 * 4 / 10))


def test_a_box_is_thirteen_tokens_and_any_text_decodes_to_itself():
    tokenizer = nano_tokenizer()
    renderer = Renderer(tokenizer, LLAVA, tokenizer.convert_tokens_to_ids("<image>"))
    for box in (Box(0, 0, 1, 1), Box(0.07, 0.5, 0.33, 1)):
        written = LLAVA.box_format.write(box, (10, 10))
        ids = renderer.reply(written)
        assert len(ids) == 13
        assert tokenizer.decode(ids).strip() == written
    for text in ("What digit is on the red circle?", "Who's there, at 5:30 pm? (A) nobody"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_packed_branches_have_the_logits_of_inference(model):
    tokenizer = nano_tokenizer()
    branches = base.Branches(tokenizer, model.config.image_token_id)
    pairs = [
        Pair("Is it red?", "yes"),
        Pair(LOCATE.format("red square"), "[0.10, 0.20, 0.30, 0.40]"),
        Pair("Why?", "3"),
    ]
    row = [branches(pair) for pair in pairs]
    packed = base.pack(
        branches.prefix, branches.first_patch, [row, row[:1]], tokenizer.pad_token_id, (1.0, 0.5, 0.1)
    )
    pixels = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        together = _packed_logits(model, packed, pixels)
        renderer = Renderer(tokenizer, LLAVA, model.config.image_token_id)
        start = len(branches.prefix)
        for pair, branch in zip(pairs, row, strict=True):
            conversation = Conversation().user(pair.question, Image.new("RGB", (4, 4)))
            prompt = renderer.render(conversation, lambda _: GRID**2).ids
            alone = torch.tensor([[*prompt, *branch.ids[-branch.reply :]]])
            logits = model(input_ids=alone, pixel_values=pixels[:1]).logits[0]
            end = start + len(branch.ids)
            assert torch.allclose(logits[len(branches.prefix) :], together[0, start:end], atol=1e-4)
            assert packed.labels[0, end - branch.reply : end].tolist() == list(branch.ids[-branch.reply :])
            assert (packed.labels[0, start : end - branch.reply] == -100).all()
            assert branch.ids[-1] == tokenizer.eos_token_id
            start = end
    box = packed.weights[0][packed.labels[0] >= 0][2:16]
    assert torch.allclose(box, torch.tensor([0.1, 1, 0.5] * 4 + [0.1, 0.1]))


def test_attention_targets_are_the_thing_and_the_words_that_name_it(model):
    tokenizer = nano_tokenizer()
    branches = base.Branches(tokenizer, model.config.image_token_id)
    branch = branches(Pair(LOCATE.format("red square"), "[0.25, 0.25, 0.50, 0.50]", THING))
    packed = base.pack(branches.prefix, branches.first_patch, [[branch]], 0, (1, 1, 1))
    start, end = len(branches.prefix), len(branches.prefix) + len(branch.ids)
    tokens = tokenizer.convert_ids_to_tokens(packed.ids[0].tolist())
    opening = end - branch.reply - 1  # the token that predicts the first of the reply
    patches = packed.looks[0, opening].nonzero().flatten() - branches.first_patch
    assert patches.tolist() == [18, 19, 26, 27]  # rows and columns 2 and 3 of 8
    assert [tokens[index] for index in packed.reads[0, opening].nonzero().flatten()] == [" red", " square"]
    assert packed.looks[0, opening].max() > packed.looks[0, end - 3].max() > 0
    assert packed.looks[0, :opening].sum() == packed.reads[0, :start].sum() == 0
    unknown = branches(Pair("How many shapes are in the image?", "3"))
    assert base.pack(branches.prefix, branches.first_patch, [[unknown]], 0, (1, 1, 1)).looks.sum() == 0


def test_attention_on_its_targets_has_no_loss(model):
    language = model.model.language_model
    states = torch.randn(1, 5, model.config.text_config.hidden_size)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    everything, single = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    everything[0, 3, :4], single[0, 3, 1] = 0.5, 1.0
    with torch.no_grad():
        for layer in (base.READ_LAYER, base.LOOK_LAYER):
            loss, weight = base.attention_loss(
                language, layer, states, mask, torch.arange(5)[None], everything
            )
            assert weight == 0.5
            assert loss == pytest.approx(0, abs=1e-6)  # all that it may attend to
            loss, weight = base.attention_loss(language, layer, states, mask, torch.arange(5)[None], single)
            assert weight == 1
            assert loss > 0.1


def _packed_logits(model, packed, pixels):
    features = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    embeddings = base.with_images(model, packed.ids, features)
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=packed.mask(), position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden)


def test_the_projector_starts_as_the_read_out_of_the_heads(few):
    torch.manual_seed(0)
    tokenizer = nano_tokenizer()
    fresh = LlavaForConditionalGeneration(nano_config(tokenizer))
    tower, heads = fresh.model.vision_tower, pretrain_vision.Heads(fresh.config.vision_config.hidden_size)
    base.start_from(fresh, tokenizer, tower, heads, pretrain_vision.sample_features(tower, few, 1))
    with torch.no_grad():
        features = tower(pixel_values=normalize(few.pixels[:8])).last_hidden_state[:, 1:]
        projector = fresh.model.multi_modal_projector
        units, logits = projector.linear_1(features), heads.kinds["color"](features)
        assert torch.equal(units[..., :5].argmax(-1), logits.argmax(-1))
        tens = heads.tens(features).unflatten(-1, (4, 11)).argmax(-1)
        assert torch.equal(units[..., 19 : 19 + 44].unflatten(-1, (4, 11)).argmax(-1), tens)
        red = fresh.model.language_model.get_input_embeddings().weight[
            tokenizer.convert_tokens_to_ids(" red")
        ]
        assert torch.equal(projector.linear_2.weight[:, 1], red / 2)
        ratio = projector(features).norm(dim=-1).mean() / red.norm()
    assert 0.3 < ratio < 6


def test_the_base_stage_keeps_its_tower_and_resumes(few, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "IMAGES", 2)
    tower, heads = pretrain_vision.train_tower(few, 1, "cpu", tmp_path / "tower")
    trained = base.train_base(few, tower, heads, 3, 0, "cpu", tmp_path / "base")
    for name, value in tower.state_dict().items():
        assert torch.equal(value, trained.model.vision_tower.state_dict()[name])
    again = base.train_base(few, tower, heads, 3, 0, "cpu", tmp_path / "base")
    assert torch.equal(again.lm_head.weight, trained.lm_head.weight)


def test_instructions_have_llavas_format(tmp_path):
    write_instructions(tmp_path, list(make_scenes("train", 0, 6)))
    records = json.loads((tmp_path / "instructions.json").read_text())
    assert len(records) == 6
    for record in records:
        example = from_llava(record, lambda name: Image.open(tmp_path / "images" / name))
        assert len(example.conversation.turns) == 2 * ROUNDS
        assert len(example.conversation.images) == 1
