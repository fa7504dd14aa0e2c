"""The base stage within a given time: its packs equal those of `base.pack`, its run ends in time."""

from __future__ import annotations

import random
from dataclasses import fields

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from dualfocus_lmms.models.tiny.nano import nano_config, nano_tokenizer, normalize
from dualfocus_lmms.train.nano import base, packs, probe, table, timed
from dualfocus_lmms.train.nano.heads import fit_heads
from dualfocus_lmms.train.nano.pretrain_vision import patch_targets
from dualfocus_lmms.train.nano.questions import CROP_MIX, KINDS, WHOLE_MIX, ask

WEIGHTS = (1.0, 0.5, 0.1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(nano_config(nano_tokenizer())).eval()


@pytest.fixture(scope="module")
def drawn() -> table.Table:
    return table.draw_table("train", range(6))


@pytest.fixture
def filled(model, drawn) -> packs.Packs:
    made = packs.Packs(table.branch_maker(), nano_tokenizer().pad_token_id, 3 * 8, "cpu", 0)
    made.add(drawn, model.model.vision_tower)
    return made


def _things(drawn: table.Table, image: int) -> list[list[float]]:
    return [list(map(float, row)) for row in drawn.things[image] if row[0] >= 0]


def _questions(drawn: table.Table, image: int) -> list[base.Branch]:
    """All branches about an image, in the order of the table."""
    things = _things(drawn, image)
    return [table.branch_maker()(choice.pair) for kind in KINDS for choice in KINDS[kind](things)]


def test_the_table_holds_every_question(drawn):
    assert len(drawn) == 18
    for image in range(len(drawn)):
        branches = _questions(drawn, image)
        assert (drawn.share[image] > 0).sum() == len(branches)
        for index, branch in enumerate(branches):
            assert drawn.ids[image, index, : len(branch.ids)].tolist() == list(branch.ids)
    together = table.joined([drawn, drawn])
    assert all(len(getattr(together, field.name)) == 36 for field in fields(table.Table))


def test_packs_and_their_loss_equal_those_of_base_pack(model, drawn, filled):
    pack = filled.draw(8, 6, WHOLE_MIX, CROP_MIX, WEIGHTS)
    rows = []
    for row, image in enumerate(pack.images.tolist()):
        branches, ids = _questions(drawn, image), pack.packed.ids[row].tolist()
        chosen, start = [], len(table.branch_maker().prefix)
        while start < packs.LENGTH and pack.packed.branch[row, start] > 0:
            chosen.append(next(b for b in branches if tuple(ids[start : start + len(b.ids)]) == b.ids))
            start += len(chosen[-1].ids)
        assert len(chosen) == pack.fits[row].sum()
        rows.append(chosen)
    maker = table.branch_maker()
    theirs = base.pack(maker.prefix, maker.first_patch, rows, nano_tokenizer().pad_token_id, WEIGHTS)
    width = theirs.ids.shape[1]
    for name in ("ids", "positions", "branch", "labels", "weights", "looks", "reads"):
        ours, other = getattr(pack.packed, name), getattr(theirs, name)
        cut = (slice(None),) + (slice(width),) * (ours.ndim - 1)
        assert torch.allclose(ours[cut].float(), other.float()), name
        assert (
            ours[:, width:]
            == {"ids": nano_tokenizer().pad_token_id, "branch": -1, "labels": -100}.get(name, 0)
        ).all()
    features = model.model.vision_tower(
        pixel_values=normalize(drawn.pixels[pack.images.numpy()])
    ).last_hidden_state[:, 1:]
    assert torch.allclose(filled.features[pack.images], features, atol=1e-5)
    with torch.no_grad():
        ours, _ = base.packed_loss(model, pack.packed, filled.features[pack.images])
        other, _ = base.packed_loss(model, theirs, features)
    assert ours.item() == pytest.approx(other.item(), rel=1e-5)


def test_packs_draw_each_kind_as_often_as_ask_does(drawn, filled):
    """Over all images, by kind; 6,000 questions from each."""
    rng, expected_counts = random.Random(0), dict.fromkeys(KINDS, 0)
    for _ in range(6000):
        view = rng.choices(range(3), packs.VIEW_SHARES)[0]
        image = 3 * rng.randrange(6) + view
        things = _things(drawn, image)
        question = ask(rng, things, CROP_MIX if view == 2 else WHOLE_MIX).question
        kind = next(k for k in KINDS if question in {choice.pair.question for choice in KINDS[k](things)})
        expected_counts[kind] += 1
    kinds = filled.draw(1000, 6, WHOLE_MIX, CROP_MIX, WEIGHTS).kind.flatten().bincount(minlength=len(KINDS))
    for count, expected in zip(kinds.tolist(), expected_counts.values(), strict=True):
        assert count == pytest.approx(expected, abs=150)


def test_a_branch_that_does_not_fit_is_left_out(filled, monkeypatch):
    monkeypatch.setattr(packs, "LENGTH", 135)
    pack = filled.draw(8, 6, {"locate": 1}, {"exist": 1}, WEIGHTS)
    whole = pack.kind[:, 0] == table.KIND_NAMES.index("locate")
    assert whole.any()
    assert pack.fits[whole].sum(1).tolist() == [2] * int(whole.sum())
    assert (pack.packed.branch[whole].amax(1) == 2).all()
    assert (pack.packed.labels[whole, 134] == -100).all()


def test_probe_counts_correct_replies_and_repeats_its_questions(model, filled, monkeypatch):
    monkeypatch.setattr(probe, "ROWS", 8)
    monkeypatch.setattr(probe, "BATCHES", 1)
    monkeypatch.setattr(probe, "_replies", lambda model, packs, pack: (_labels(pack), _labels(pack)))
    figures = probe.probe(model, filled, 6)
    assert figures["locate"] == pytest.approx(1)
    assert set(figures.values()) == {1} or min(figures.values()) > 0.999
    monkeypatch.undo()
    monkeypatch.setattr(probe, "ROWS", 8)
    monkeypatch.setattr(probe, "BATCHES", 1)
    assert probe.probe(model, filled, 6) == probe.probe(model, filled, 6)
    assert max(probe.probe(model, filled, 6).values()) < 0.9


def _labels(pack):
    positions = (pack.begin[:, :, None] + torch.arange(14)).clamp(max=packs.LENGTH - 1)
    return pack.packed.ids.gather(1, positions.flatten(1)).view_as(positions)


def test_boxes_are_decoded_from_their_tokens():
    ids = torch.tensor(
        table.branch_maker()(KINDS["locate"]([[0, 1, 7, 0.25, 0.3, 0.5, 1, 1]])[0].pair).ids[-14:]
    )
    assert torch.allclose(probe.boxes(ids), torch.tensor([0.25, 0.3, 0.5, 1.0]))
    half = torch.tensor([0.25, 0.3, 0.5, 0.65])
    assert probe.iou(probe.boxes(ids), half).item() == pytest.approx(0.5)
    assert probe.iou(half, torch.zeros(4)).item() == 0


def test_fitted_heads_read_the_labels_in_features():
    rng = np.random.default_rng(0)
    things = np.full((64, 4, 8), -1, np.float32)
    things[:, 0] = [
        [c, s, 7, x, 0.25, x + 0.25, 0.5, 1]
        for c, s, x in zip(
            rng.integers(0, 4, 64), rng.integers(0, 3, 64), rng.uniform(0, 0.7, 64), strict=True
        )
    ]
    targets = patch_targets(things)
    code = np.eye(5)[targets["color"]]
    features = torch.from_numpy(np.concatenate([100 + 50 * code, rng.normal(size=(64, 64, 3))], 2)).float()
    heads = fit_heads(features, things, steps=200)
    predicted = heads.kinds["color"](features).argmax(-1).numpy()
    assert (predicted == targets["color"]).mean() > 0.99


@pytest.mark.parametrize("go_on", [False, True])
def test_a_timed_run_ends_in_time_and_keeps_its_tower(model, go_on):
    kept = []
    plan = timed.Plan(0.1, images=2, branches=2, scenes=64, first=32, held_out=8, workers=1, log=0.5, probe=2)
    weights = {name: value.clone() for name, value in model.model.vision_tower.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "ROWS", 4)
        patch.setattr(probe, "BATCHES", 1)
        trained = timed.train_timed(plan, model, go_on, "cpu", kept.append)
    assert kept
    for name, value in trained.model.vision_tower.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert (trained is model) == go_on


def test_workers_draw_in_order_and_end(monkeypatch):
    monkeypatch.setattr(table, "CHUNK", 2)
    todo = [*table.tasks("validation", 2), *table.tasks("train", 5)]
    with table.Drawing(todo, 2) as tables:
        drawn = [*tables]
        assert not tables.ready
    assert [len(part) for part in drawn] == [6, 6, 6, 3]
    assert np.array_equal(drawn[2].pixels, table.draw_table("train", [2, 3]).pixels)
    with table.Drawing(table.tasks("train", 400), 2) as tables:
        next(tables)
    for process in tables._workers:
        process.join(5)
        assert not process.is_alive()
