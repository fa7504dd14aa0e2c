"""Order, sizes, shared images and reading ahead, without a model; then with an engine."""

import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from dualfocus_lmms import GenerationError, Question, Settings, StopCriteria, flow, read_traces
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.models.host.requests import read_request
from dualfocus_lmms.models.run import batches
from dualfocus_lmms.models.run.batches import BatchSize, Reader, in_order
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.trace import TraceWriter


def random_image(seed, size=(24, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def request(number, image=None, opened=None, **about):
    key = {"task": "t", "split": "s", "doc_id": number, "context": ""}

    def question():
        if opened is not None:
            opened.append(number)
        text = "what " * (1 + number % 5)
        return Question(str(number), image or random_image(number), text, text, key)

    return Request(key, about.pop("limits", StopCriteria(6)), question, **about)


def numbers(requests):
    return [request.key["doc_id"] for request in requests]


def test_questions_about_one_image_are_side_by_side_and_the_longest_come_first():
    requests = [
        request(0, image_name="a", length=10),
        request(1, image_name="b", length=30),
        request(2, image_name="a", length=40),
        request(3, image_name="c", length=35),
        request(4, image_name="b", length=5),
        request(5, image_name="c", length=35),
        request(6, image_name="d", length=1, limits=StopCriteria(100)),
    ]
    assert numbers(in_order(requests)) == [6, 2, 0, 3, 5, 1, 4]


def test_requests_without_an_image_name_keep_their_order():
    requests = [request(number, length=length) for number, length in enumerate([3, 9, 1, 9, 4])]
    assert numbers(in_order(requests)) == [0, 1, 2, 3, 4]
    assert in_order([]) == []


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"image": "photos/1.jpg"}, "photos/1.jpg"),
        ({"image": 7, "image_id": "n161313"}, "n161313"),
        ({"image": 7}, None),
        ({"other": "photos/1.jpg"}, None),
    ],
)
def test_a_document_names_its_image_by_an_id_or_a_path(columns, name):
    instance = SimpleNamespace(args=("What?", {}, None, 0, "task", "test"), metadata={})
    read = read_request(instance, {"task": {"test": Dataset.from_list([columns])}}, chat=False)
    assert (read.image_name, read.length) == (name, 5)


def test_an_image_name_is_found_without_opening_the_image(tmp_path):
    docs = Dataset.from_list([{"image": str(tmp_path / "missing.png")}]).cast_column("image", ImageFeature())
    instance = SimpleNamespace(args=("What?", {}, None, 0, "task", "test"), metadata={})
    assert read_request(instance, {"task": {"test": docs}}, chat=False).image_name is None


def sizes(batch_size, room, batches_answered):
    """The sizes tried where `room` questions fit."""
    tried = []
    for _ in range(batches_answered):
        tried.append(batch_size.now)
        if batch_size.now > room:
            batch_size.halve(batch_size.now)
        else:
            batch_size.fitted(batch_size.now)
    return tried


@pytest.mark.parametrize(
    ("given", "largest", "room", "tried"),
    [
        ("auto", 64, 1000, [8, 16, 32, 64, 64, 64]),
        ("auto", 64, 20, [8, 16, 32, 16, 16, 16]),
        ("auto", 64, 3, [8, 4, 2, 2, 2, 2]),
        ("auto", 12, 1000, [8, 12, 12, 12, 12, 12]),
        ("auto", 5, 1000, [5, 5, 5, 5, 5, 5]),
        (6, 64, 1000, [6, 6, 6, 6, 6, 6]),
        (100, 64, 30, [100, 50, 25, 25, 25, 25]),
    ],
)
def test_how_many_questions_are_answered_together(given, largest, room, tried):
    assert sizes(BatchSize(given, largest), room, 6) == tried


def test_only_a_full_batch_makes_the_next_one_larger():
    size = BatchSize("auto")
    size.fitted(size.now - 1)
    assert size.now == 8


def test_equal_images_of_a_batch_become_one_object_and_others_never_do(monkeypatch):
    first, other, portrait = random_image(1), random_image(2), random_image(1, (16, 24))
    images = [first, other, first.copy(), portrait, first.copy()]
    requests = [request(number, image) for number, image in enumerate(images)]
    for fingerprint in (batches.image_hash, lambda image: "the same for all"):
        monkeypatch.setattr(batches, "image_hash", fingerprint)
        with ThreadPoolExecutor(2) as pool:
            items = Reader(requests, pool).take(5)
        batch_images = [question.image for _, question in items]
        assert batch_images[0] is first
        assert batch_images[2] is first
        assert batch_images[4] is first
        assert batch_images[1] is other
        assert batch_images[3] is portrait


@pytest.mark.parametrize("skip", [1.0, 0.0])
def test_each_image_is_fingerprinted_once(monkeypatch, skip):
    hashed = []

    def counted(image):
        hashed.append(image)
        return image_hash(image)

    for module in (batches, flow):
        monkeypatch.setattr(module, "image_hash", counted)
    backend = FakeBackend({"macro": "a", "locate": "[0.1, 0.2, 0.3, 0.4]", "micro": "b"})
    traces = Runner(backend, Settings.of(skip_confidence=skip), 2).run([request(n) for n in range(5)])
    assert len(hashed) == 5
    assert sorted(trace.image_hash for trace in traces) == sorted(
        image_hash(random_image(n)) for n in range(5)
    )


def test_the_next_batch_is_opened_while_the_model_answers_this_one():
    opened = []
    with ThreadPoolExecutor(3) as pool:
        reader = Reader([request(number, opened=opened) for number in range(10)], pool)
        assert numbers(request for request, _ in reader.take(3)) == [0, 1, 2]
    assert sorted(opened) == [0, 1, 2, 3, 4, 5]


def test_fewer_large_images_are_opened_at_a_time(monkeypatch):
    monkeypatch.setattr(batches, "_PIXELS", 6 * 100 * 100)
    monkeypatch.setattr(batches, "_LIKELY_PIXELS", 100 * 100)
    opened = []
    sides = [100, 100, 100, 170, 10, 10, 300, 10, 10, 10, 10, 10, 10]
    requests = [request(n, random_image(n, (side, side)), opened) for n, side in enumerate(sides)]
    counts = []
    with ThreadPoolExecutor(1) as pool:
        reader = Reader(requests, pool)
        while batch := reader.take(8):
            pool.submit(int).result()  # all that was to be opened is open
            counts.append((len(batch), len(opened)))
    assert [count for count, _ in counts] == [3, 3, 1, 1, 5]
    assert [ahead for _, ahead in counts] == [6, 7, 8, 13, 13]


class Memory:
    """Has room for so many open images."""

    def __init__(self, room):
        self.room, self.tried = room, 0
        self.open = set()
        self.lock = Lock()

    def request(self, number):
        plain = request(number)

        def question():
            with self.lock:
                self.tried += 1
                opened = plain.question()
                if len(self.open) >= self.room:
                    raise MemoryError("no room")
                self.open.add(self.tried)
                weakref.finalize(opened.image, self.open.discard, self.tried)
                return opened

        return replace(plain, question=question)


class Forgetful(FakeBackend):
    """Keeps no image."""

    def generate(self, prompts):
        answers = super().generate(prompts)
        self.calls.clear()
        return answers


ANSWERS = {"macro": "a", "locate": "[0.1, 0.2, 0.3, 0.4]", "micro": "b"}


@pytest.mark.parametrize(("room", "most"), [(100, 20), (12, 40), (5, 50), (2, 60), (1, 60)])
def test_where_memory_runs_out_while_images_are_opened_fewer_are_open(tmp_path, room, most):
    memory = Memory(room)
    some = Runner(Forgetful(ANSWERS), Settings.of(), 8, TraceWriter(tmp_path))
    traces = some.run([memory.request(number) for number in range(20)])
    assert [trace.key["doc_id"] for trace in traces] == list(range(20))
    assert len(read_traces(tmp_path)[0]) == 20
    assert 20 <= memory.tried <= most


def test_an_image_that_memory_has_no_room_for_ends_the_run_and_keeps_answers(tmp_path):
    memory = Memory(3)
    requests = [memory.request(number) for number in range(6)]

    def too_large():
        raise MemoryError("no room")

    requests[4] = replace(requests[4], question=too_large)
    with pytest.raises(GenerationError, match=re.escape(requests[4].name)):
        Runner(Forgetful(ANSWERS), Settings.of(), 4, TraceWriter(tmp_path)).run(requests)
    assert [trace.key["doc_id"] for trace in read_traces(tmp_path)[0]] == [0, 1, 2, 3]


LIMITED = """
import resource, sys
from pathlib import Path
import torch  # whose libraries are loaded before the limit is set
from PIL import Image
from dualfocus_lmms import Question, Settings, StopCriteria
from dualfocus_lmms.models.run import memory, runner
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.trace import TraceWriter

opened = []
memory.release()
runner._READERS = 1

def request(number):
    key = {"task": "t", "split": "test", "doc_id": number}
    def question():
        opened.append(number)
        return Question("q", Image.new("RGB", (2048, 2048), (number, 0, 0)), "q", "q", key)
    return Request(key, StopCriteria(6), question)

class Forgetful(FakeBackend):
    def generate(self, prompts):
        answers = super().generate(prompts)
        self.calls.clear()
        return answers

kilobytes = Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]
limit = 1024 * int(kilobytes) + (180 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
some = runner.Runner(Forgetful({"macro": "a"}), Settings.of(pathway="macro"), 12, TraceWriter(sys.argv[1]))
traces = some.run([request(number) for number in range(24)])
print(len({trace.image_hash for trace in traces}), len(opened))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_a_run_within_a_memory_limit(tmp_path):
    """24 images of 16 MiB where there is room for about ten, on one thread."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answered, opened = map(int, done.stdout.split())
    assert answered == 24
    assert opened > 24  # memory ran out


def test_each_request_is_taken_once():
    with ThreadPoolExecutor(2) as pool:
        reader = Reader([request(number) for number in range(7)], pool)
        batches = [numbers(request for request, _ in reader.take(size)) for size in (2, 4, 1, 5)]
    assert batches == [[0, 1], [2, 3, 4, 5], [6], []]


def test_an_engine_encodes_an_image_of_several_questions_once_and_answers_are_the_same(engine):
    images = [random_image(seed, (64, 48)) for seed in range(3)]
    requests = [
        request(number, images[number % 3].copy(), image_name=str(number % 3), length=number)
        for number in range(12)
    ]
    macro = Settings.of(pathway="macro")
    together, alone = engine("shared"), engine("shared")
    Runner(together, macro, 4).run(requests)
    Runner(alone, macro, 1).run(requests)
    assert (together.counts.encodes, alone.counts.encodes) == (3, 12)
    traces = [Runner(engine("shared"), Settings.of(), size).run(requests) for size in (4, 1)]
    for first, other in zip(*traces, strict=True):
        assert first.key == other.key
        assert first.selection.text == other.selection.text
        assert first.image_hash == other.image_hash
        for answer, same in zip(first.answers, other.answers, strict=True):
            assert answer.tokens == same.tokens
            assert answer.logprobs == pytest.approx(same.logprobs, abs=1e-5)
