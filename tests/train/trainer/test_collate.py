"""Batches by value, the order of a run, and sources of data."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from loguru import logger
from PIL import Image

from dualfocus_lmms import Box, Conversation, UserError
from dualfocus_lmms.models.checkpoint.image_inputs import image_tokens
from dualfocus_lmms.models.checkpoint.image_text_inputs import reader
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.protocol import load_protocol
from dualfocus_lmms.train.data.conversations import IGNORED, Encoded, Encoder, Example
from dualfocus_lmms.train.data.samples import read_samples
from dualfocus_lmms.train.trainer.collate import (
    Collator,
    Mixture,
    Source,
    blank_row,
    epoch_counts,
    epoch_order,
    llava_source,
    sample_source,
)

PAD = 3


@pytest.fixture(scope="module")
def checkpoint(untrained):
    return load_checkpoint(str(untrained), device="cpu")


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return make_encoder(checkpoint, 2048)


def make_encoder(checkpoint, max_length: int) -> Encoder:
    config = checkpoint.model.config
    renderer = Renderer(checkpoint.tokenizer, checkpoint.family, config.image_token_id)
    return Encoder(renderer, lambda _: image_tokens(config), checkpoint.tokenizer.eos_token_id, max_length)


def collator(checkpoint, encoder, **options) -> Collator:
    _, image_reader = reader(checkpoint)
    return Collator(image_reader, PAD, blank_row(encoder), **options)


def row(*ids: int, color: str | None = None, learned: int = 1) -> Encoded:
    """A row whose last `learned` tokens are learned, each weighing 2."""
    split = len(ids) - learned
    images = (Image.new("RGB", (20, 10), color),) if color else ()
    return Encoded(ids, (IGNORED,) * split + ids[split:], (0.0,) * split + (2.0,) * learned, images)


def test_rows_are_padded_on_the_right_with_all_images_in_order(checkpoint, encoder):
    rows = [row(7, 8, 9, color="red"), None, row(5, 6, color="blue", learned=2), row(1)]
    batch = collator(checkpoint, encoder, weighted=True)(rows)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [5, 6, PAD], [1, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 9],
        [5, 6, IGNORED],
        [1, IGNORED, IGNORED],
    ]
    assert batch["weights"].tolist() == [[0, 0, 2], [2, 2, 0], [2, 0, 0]]
    images = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    assert torch.equal(batch["pixel_values"], ModelBackend(checkpoint).pixels(images))
    assert batch["pixel_values"].shape == (2, 3, 56, 56)
    assert "weights" not in collator(checkpoint, encoder)(rows)


@pytest.mark.parametrize("rows", [[row(7, 8)], [None], []])
def test_a_batch_without_an_image_shows_a_blank_one_and_learns_nothing_from_it(checkpoint, encoder, rows):
    batch = collator(checkpoint, encoder)(rows)
    kept = [row for row in rows if row]
    assert len(batch["input_ids"]) == len(kept) + 1
    assert batch["pixel_values"].shape[0] == 1
    image = checkpoint.model.config.image_token_id
    assert (batch["input_ids"][-1] == image).sum() == 16
    assert (batch["labels"][-1] == IGNORED).all()
    with torch.no_grad():
        loss = checkpoint.model(**batch, num_items_in_batch=1).loss
        alone = checkpoint.model(input_ids=batch["input_ids"][:1, :2], labels=batch["labels"][:1, :2])
    assert torch.isclose(loss, alone.loss if kept else torch.tensor(0.0), atol=1e-5)


def sources(*given: tuple[int, float | None]) -> list[Source]:
    return [
        Source(f"s{place}", length, lambda number: number, share)
        for place, (length, share) in enumerate(given)
    ]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ([(7, None)], [7]),
        ([(7, None), (100, None)], [7, 100]),
        ([(100, 0.5), (40, 0.5)], [40, 40]),
        ([(100, 1), (40, 3)], [13, 40]),
        ([(144, 0.2), (665, 0.8)], [144, 576]),
        ([(10, 0.1), (10, 0.1), (10, 0.8)], [1, 1, 10]),
        ([(5, 2.0)], [5]),
    ],
)
def test_shares_are_kept_until_the_first_source_is_used_up(given, counts):
    assert epoch_counts(sources(*given)) == counts


@pytest.mark.parametrize("given", [[(5, 0.5), (5, None)], [(5, 0.0), (5, 1.0)]])
def test_shares_of_some_sources_are_refused(given):
    with pytest.raises(UserError):
        epoch_counts(sources(*given))


def test_an_epoch_goes_on_with_what_the_last_one_left():
    lengths, counts = [10, 30], [10, 12]
    epochs = [epoch_order(lengths, counts, seed=3, epoch=epoch) for epoch in range(5)]
    for order in epochs:
        assert Counter(order[:, 0].tolist()) == {0: 10, 1: 12}
    # 5 epochs x 12 are the second source twice over, as 5 x 10 are the first source five times.
    first_two = [tuple(place) for order in epochs[:2] for place in order.tolist() if place[0] == 1]
    assert len(set(first_two)) == 24
    seen = Counter(tuple(place) for order in epochs for place in order.tolist())
    assert {seen[0, number] for number in range(10)} == {5}
    assert {seen[1, number] for number in range(30)} == {2}
    assert all((epoch_order(lengths, counts, 3, epoch) == epochs[epoch]).all() for epoch in range(5))
    assert (epoch_order(lengths, counts, 4, 0) != epochs[0]).any()
    assert (epochs[0] != epochs[1]).any()


def test_the_order_is_well_mixed():
    order = epoch_order([500, 500], [500, 500], seed=0, epoch=0)
    assert 0.4 < order[:500, 0].mean() < 0.6
    assert abs(np.corrcoef(order[:, 1], np.arange(1000))[0, 1]) < 0.1


def test_a_run_of_several_epochs_is_one_sequence(encoder):
    mixture = Mixture(sources((3, None), (2, None)), encoder, seed=1, length=12)
    rows = [mixture.example(index) for index in range(12)]
    assert Counter(rows[:5]) == Counter(rows[5:10]) == Counter([0, 1, 2, 0, 1])
    assert (len(mixture), mixture.epoch_length) == (12, 5)
    with pytest.raises(UserError):
        Mixture(sources((0, None)), encoder, seed=1)


def talk(rounds: int) -> Example:
    conversation = Conversation()
    for _ in range(rounds):
        conversation = conversation.user("abcdefghij").assistant("yes")
    return Example("1", conversation)


def test_a_run_is_filled_up_without_repeating_a_row():
    mixture = Mixture(sources((3, None), (2, None)), None, seed=1, length=5, multiple=4)
    assert (mixture.rows, len(mixture)) == (5, 8)
    assert [mixture[index] for index in range(5, 8)] == [None] * 3
    assert mixture.misfits == {"shortened": 0, "left_out": 0, "refused": 0}


def test_what_does_not_fit_is_counted_over_all_workers(checkpoint):
    one = len(make_encoder(checkpoint, 2048).encode(talk(1)).ids)
    narrow = make_encoder(checkpoint, one)
    wide = Conversation().user("a" * one).assistant("b")
    examples = [talk(1), talk(3), Example("2", wide), talk(2)]
    mixture = Mixture([Source("talk", 4, examples.__getitem__)], narrow, seed=0)
    loader = torch.utils.data.DataLoader(
        mixture, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    rows = [row for batch in loader for row in batch]
    assert Counter(row and row.rounds for row in rows) == {None: 1, 1: 3}
    assert mixture.misfits == {"shortened": 2, "left_out": 1, "refused": 0}


def test_samples_become_examples_with_the_words_of_the_protocol(sample_folders, checkpoint):
    folder, _ = sample_folders
    source = sample_source(str(folder), load_protocol("paper"), checkpoint.family.box_format, "Be short.")
    samples = read_samples(folder)
    assert (source.length, source.name) == (80, "train")
    first, fifth = source.example(0).conversation, source.example(4).conversation
    assert [len(turn.images) for turn in first.turns] == [1, 0, 1, 0]
    assert (
        Box(*map(float, first.turns[1].text.strip("[]").split(", "))).iou(samples[0].box) > 0.99
    )  # two decimals
    assert [turn.text for turn in fifth.turns] == [f"{samples[4].question}\nBe short.", samples[4].answer]
    copied = pickle.loads(pickle.dumps(source))
    assert copied.example(4).conversation.turns[1].text == samples[4].answer


def test_instruction_data_is_read_with_its_images(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    records = [{"id": "1", "image": "a/red.png", "conversations": turns}]
    (tmp_path / "a").mkdir()
    Image.new("RGBA", (4, 2), "red").save(tmp_path / "a" / "red.png")
    as_list, as_lines = tmp_path / "data.json", tmp_path / "data.jsonl"
    as_list.write_text(json.dumps(records))
    as_lines.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    for path in (as_list, as_lines):
        source = llava_source(str(path), str(tmp_path))
        (image,) = source.example(0).conversation.images
        assert (source.length, image.mode, image.getpixel((0, 0))) == (1, "RGB", (255, 0, 0))
    with pytest.raises(UserError):
        llava_source(str(as_list), None)
    (tmp_path / "a" / "red.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"red\.png"):
        llava_source(str(as_list), str(tmp_path)).example(0)
    (tmp_path / "a" / "red.png").unlink()
    with pytest.raises(UserError, match=r"1 of 1 .*red\.png"):
        llava_source(str(as_list), str(tmp_path))


def instruction(name: str, *replies: object) -> dict[str, object]:
    turns = [
        turn for reply in replies for turn in ({"from": "human", "value": "Why?"}, {"from": "gpt", **reply})
    ]
    return {"id": name, "conversations": turns}


SEPARATORS = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1eseven"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n \n\n"])
def test_lines_of_instruction_data_end_where_json_lines_do(tmp_path, mark, newline):
    records = [instruction("a", {"value": SEPARATORS}), instruction("b", {"value": "no"})]
    text = newline.join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "data.jsonl").write_bytes((mark + text + newline).encode())
    (tmp_path / "data.json").write_bytes((mark + json.dumps(records)).encode())
    for name in ("data.jsonl", "data.json"):
        source = llava_source(str(tmp_path / name), None)
        said = [source.example(number).conversation.turns[1].text for number in range(source.length)]
        assert said == [SEPARATORS, "no"]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(instruction("a", {"value": "b"})) + "\n\n{\n")
    with pytest.raises(UserError, match="line 3"):
        llava_source(str(tmp_path / "data.jsonl"), None)


@pytest.mark.parametrize("missing", [{}, {"value": None}, {"value": 5}])
def test_a_missing_reply_is_not_an_empty_one(tmp_path, missing):
    records = [instruction("fine", {"value": "x"}), instruction("odd one", {"value": "y"}, missing)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match="'odd one' has no reply in turn 4"):
        llava_source(str(tmp_path / "data.json"), None)


def test_empty_replies_are_learned_with_a_warning(tmp_path):
    records = [instruction("fine", {"value": "x"}), instruction("mute", {"value": " "})]
    (tmp_path / "data.json").write_text(json.dumps(records))
    told: list[str] = []
    sink = logger.add(told.append, level="WARNING", format="{message}")
    try:
        assert llava_source(str(tmp_path / "data.json"), None).length == 2
    finally:
        logger.remove(sink)
    assert len(told) == 1
    assert "1 records with an empty reply" in told[0]
    assert "mute" in told[0]


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '[{"id": "7"}]'])
def test_a_file_that_holds_no_instruction_data_is_refused(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError):
        llava_source(str(tmp_path / "data.json"), None)


def test_an_image_that_cannot_fit_is_refused_before_training(checkpoint):
    with pytest.raises(UserError):
        blank_row(make_encoder(checkpoint, 16))
