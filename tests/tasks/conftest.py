"""What the tests of the tasks share: real data where there is some, small folders, the host's tasks."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms.tasks.mmbench import docs as mmbench_docs
from dualfocus_lmms.tasks.textvqa import docs as textvqa_docs

ROOT = Path(__file__).resolve().parents[2]
SHARED = "DUALFOCUS_SHARED"

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data outside the project: $DUALFOCUS_SHARED, or `shared` beside the project."""
    folder = Path(os.environ.get(SHARED, ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder} holds no folder data/; set {SHARED} to the folder that does")
    return folder


@pytest.fixture(scope="session")
def host_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The host's module of tasks, with a data set cache of its own. The import takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield pytest.importorskip("lmms_eval.tasks")


@pytest.fixture(scope="session")
def load_task(host_tasks: ModuleType) -> Callable[[str], dict[Any, Any]]:
    """Loads one task or group through the host, with only our YAML indexed."""
    manager = host_tasks.TaskManager(include_defaults=False, include_path=str(ROOT / "tasks"))
    return lambda name: host_tasks.get_task_dict([name], manager)


@pytest.fixture
def save_image() -> Callable[[Path], None]:
    """Writes a small image."""
    return lambda path: Image.new("RGB", (6, 4), "red").save(path)


@pytest.fixture
def write_lines() -> Callable[[Path, Rows], Path]:
    """Writes JSON lines and returns the file."""

    def write(path: Path, rows: Rows) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pope_folder(
    tmp_path: Path, save_image: Callable[[Path], None], write_lines: Callable[[Path, Rows], Path]
) -> Path:
    """A DUALFOCUS_DATA folder: each split asks three questions, and the third one's image is missing."""
    images = tmp_path / "pope" / "images"
    images.mkdir(parents=True)
    save_image(images / "red.png")
    save_image(images / "blue.png")
    rows = [
        {"question_id": 1, "image": "red.png", "text": "Is there a dog in the image?", "label": "yes"},
        {"question_id": 2, "image": "blue.png", "text": "Is there a cat in the image?", "label": "no"},
        {"question_id": 3, "image": "gone.png", "text": "Is there a cup in the image?", "label": "no"},
    ]
    for split in ("random", "popular", "adversarial"):
        write_lines(tmp_path / "pope" / f"coco_pope_{split}.json", rows)
    return tmp_path


@pytest.fixture
def choice_folder(tmp_path: Path, write_lines: Callable[[Path, Rows], Path]) -> Path:
    """A DUALFOCUS_DATA folder with GQA*, SEED-Bench, V*Bench and HR-Bench: made-up questions, drawn images.

    Each but HR-Bench, whose file holds its images, has one question more whose image is missing.
    """
    _write_gqa_star(tmp_path / "gqa", write_lines)
    _write_seed(tmp_path / "seed")
    _write_vstar(tmp_path / "vstar", write_lines)
    _write_hrbench(tmp_path / "hrbench")
    return tmp_path


@pytest.fixture
def boxed_folder(choice_folder: Path) -> Path:
    """The same with annotations beside the images of V*Bench, which are 60 x 40 pixels."""
    boxes = {
        "direct_attributes/sa_1": [[6, 4, 12, 8]],
        "relative_position/sa_2": [[0, 0, 6, 4], [30, 20, 60, 8]],
    }
    for name, found in boxes.items():
        content = {
            "target_object": ["a thing"] * len(found),
            "bbox": found,
            "question": "?",
            "options": ["a"],
        }
        (choice_folder / "vstar" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return choice_folder


@pytest.fixture
def paper_folder(
    choice_folder: Path,
    pope_folder: Path,
    save_image: Callable[[Path], None],
    write_lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A DUALFOCUS_DATA folder for df_paper and df_zoom; TextVQA and MMBench ask one question each."""
    assert choice_folder == pope_folder
    image = choice_folder / textvqa_docs.IMAGES / "aa.jpg"
    image.parent.mkdir(parents=True)
    save_image(image)
    question = {"question_id": 1, "image_id": "aa", "question": "What?", "answers": ["stop"] * 10}
    (choice_folder / textvqa_docs.QUESTIONS).write_text(json.dumps({"data": [question]}), encoding="utf-8")
    write_lines(choice_folder / textvqa_docs.OCR_PROMPTS, [{"question_id": "aa", "text": "What?\nOCR"}])
    row = {"index": "1", "question": "Which?", "A": "cat", "B": "dog", "answer": "B"}
    row |= {"l2-category": "logic_reasoning", "image": base64.b64encode(image.read_bytes()).decode()}
    lines = ["\t".join(row), "\t".join(row.values())]
    (choice_folder / "mmbench").mkdir()
    (choice_folder / mmbench_docs.FILE).write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    return choice_folder


def _draw(path: Path, color: str, file_format: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), color).save(path, file_format)


def _write_gqa_star(folder: Path, write_lines: Callable[[Path, Rows], Path]) -> None:
    _draw(folder / "images" / "n1.jpg", "red")
    lines = [
        ("1", "n1.jpg", "What color is the bus?\nA. blue\nB. red\nC. green\nD. white"),
        ("2", "n1.jpg", "Is it overcast?\nA. Yes\nB. No"),
        ("3", "n2.jpg", "Who is wearing the dress?\nA. woman\nB. man"),
    ]
    names = ("question_id", "image", "question")
    write_lines(
        folder / "llava_gqa_testdev_balanced_mcq.jsonl",
        [dict(zip(names, line, strict=True)) for line in lines],
    )
    answers = {"1": ("red", "query", "attr"), "2": ("no", "verify", "global"), "3": ("woman", "query", "rel")}
    official = {
        number: {"answer": answer, "types": {"structural": structural, "semantic": semantic, "detailed": "x"}}
        for number, (answer, structural, semantic) in answers.items()
    }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(official), encoding="utf-8")


def _write_seed(folder: Path) -> None:
    _draw(folder / "SEED-Bench-image" / "100_200", "red")
    _draw(folder / "SEED-Bench-image" / "101_201.odd", "blue", "PNG")
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    rows = [
        (5, "image", "100_200", "How many towels are in the image?", "A"),
        (1, "image", "101_201.odd", "What is the overall mood?", "C"),
        (10, "video", "1.webm", "What is the action in the video?", "B"),
        (9, "image", "102_202", "What does the sign say?", "D"),
    ]
    questions = [
        {"question_id": str(number), "question_type_id": kind, "data_type": data_type, "data_id": data_id,
         "question": question, "answer": answer, **choices}
        for number, (kind, data_type, data_id, question, answer) in enumerate(rows)
    ]  # fmt: skip
    official = {"questions": questions, "question_type": {"Scene Understanding": 1}}
    (folder / "SEED-Bench.json").write_text(json.dumps(official), encoding="utf-8")


def _write_vstar(folder: Path, write_lines: Callable[[Path, Rows], Path]) -> None:
    _draw(folder / "direct_attributes" / "sa_1.jpg", "red")
    _draw(folder / "relative_position" / "sa_2.jpg", "green")
    letter = "Answer with the option's letter from the given choices directly."
    color = f"What is the color of the cup?\n(A) red\n(B) sand (light)\n(C) blue\n(D) white\n{letter}"
    side = f"Is the cup on the left or right side of the dog?\n(A) right\n(B) left\n{letter}"
    rows = [
        ("direct_attributes/sa_1.jpg", color, "direct_attributes"),
        ("relative_position/sa_2.jpg", side, "relative_position"),
        ("relative_position/sa_3.jpg", side, "relative_position"),
    ]
    write_lines(
        folder / "test_questions.jsonl",
        [
            {"image": image, "text": text, "category": category, "question_id": str(number), "label": "A"}
            for number, (image, text, category) in enumerate(rows)
        ],
    )


def _write_hrbench(folder: Path) -> None:
    """Two questions in two cycles, the second one's text quoted, as the official files write line breaks."""
    buffer = io.BytesIO()
    Image.new("RGB", (120, 80), "blue").save(buffer, "JPEG")
    image = base64.b64encode(buffer.getvalue()).decode()
    names = ["index", "question", "answer", "category", *"ABCD", "cycle_category", "image"]
    rows = [
        [0, "What is the number on the door?", "A", "single", "1", "2", "3", "4", 0, image],
        [1, 'Where is the "exit"\nsign?', "B", "cross", "left", "right", "", "", 0, image],
        [2, "What is the number on the door?", "D", "single", "2", "3", "4", "1", 1, image],
        [3, 'Where is the "exit"\nsign?', "A", "cross", "right", "left", "", "", 1, image],
    ]
    folder.mkdir()
    for name in ("hr_bench_4k.tsv", "hr_bench_8k.tsv"):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([names, *rows])


@pytest.fixture
def first_prompts() -> Callable[[Any, str], str]:
    """The prompts of a loaded task's first question under a protocol, as the model is asked them."""
    from dualfocus_lmms.flow import locate_prompt, micro_prompt
    from dualfocus_lmms.joint_rules import short_prompt
    from dualfocus_lmms.models.host.requests import read_request
    from dualfocus_lmms.protocol import load_protocol

    def prompts(task: Any, protocol: str) -> str:
        task.build_all_requests(limit=1)
        (instance,) = task.instances
        *_, name, split = instance.args
        question = read_request(instance, {name: {split: task.test_docs()}}, chat=False).question()
        texts = {
            "macro": question.prompt,
            "locate": locate_prompt(question, load_protocol(protocol)),
            "micro": micro_prompt(question, load_protocol(protocol)),
        }
        if protocol == "release":
            texts["short"] = short_prompt(question)
        return "\n".join(f"--- {stage}\n{text}\n" for stage, text in texts.items())

    return prompts


@pytest.fixture
def run_tiny(tiny_checkpoint: Path) -> Callable[[Any], dict[str, Any]]:
    """Asks the tiny checkpoint all questions of a loaded task; its scores, as the host aggregates them."""
    from dualfocus_lmms import Settings
    from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
    from dualfocus_lmms.models.engines.registry import make_engine
    from dualfocus_lmms.models.host.requests import read_request
    from dualfocus_lmms.models.run.runner import Runner

    def run(task: Any) -> dict[str, Any]:
        task.build_all_requests()
        *_, name, split = task.instances[0].args
        docs = {name: {split: task.test_docs()}}
        requests = [read_request(instance, docs, chat=False) for instance in task.instances]
        backend = make_engine("shared", load_checkpoint(str(tiny_checkpoint), device="cpu"))
        traces = Runner(backend, Settings.of(), batch_size=4).run(requests)
        values: dict[str, list[Any]] = {}
        for doc, trace in zip(task.test_docs_no_media(), traces, strict=True):
            assert {"macro", "locate"} <= {answer.pathway for answer in trace.answers}
            for metric, value in task.process_results(doc, [trace.selection.text]).items():
                values.setdefault(metric, []).append(value)
        return {metric: task.aggregation()[metric](values[metric]) for metric in values}

    return run
