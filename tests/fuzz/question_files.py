"""The files of questions and answers that the fuzzer damages, and how each is read."""

# ruff: noqa: E501 - tables of files

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.mutations import bent_json, bent_lines
from fuzz.small_files import QUESTIONS, put

SMALL_PNG = (  # of one pixel, in base64
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
OPTIONS = {"image": "a.png", "question": "Which?", "answer": "B", "options": ["red", "blue"]}


def task(name: str, read: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Reads a task's questions as the host gets them, without images, and asks and scores the first."""

    def documents(folder: Path) -> None:
        from importlib import import_module

        from dualfocus_lmms.tasks.common.official import with_fingerprint
        from dualfocus_lmms.tasks.common.sources import build_dataset, usable, without_images

        with without_images():
            docs = with_fingerprint(build_dataset(lambda: read(folder)))
        usable(docs[0])
        getattr(import_module(f"dualfocus_lmms.tasks.{name}.docs"), "prompt", usable)(docs[0])

    return documents


def _module(name: str) -> Any:
    from importlib import import_module

    return import_module(f"dualfocus_lmms.tasks.{name}.docs")


def write_tasks(folder: Path) -> None:
    """Official files of every task, two or three questions each."""
    data = folder / "data"
    put(folder / "questions.jsonl", [*QUESTIONS, OPTIONS])
    rows = [{"question_id": n, "image": "a.png", "text": "Is there a dog?", "label": "yes"} for n in range(3)]
    put(data / "pope" / "coco_pope_random.json", rows)
    rows = [
        {"image": "a/b.jpg", "text": "Which cup?\n(A) red\n(B) blue\nAnswer.", "category": "direct_attributes",
         "question_id": str(n), "label": "A"} for n in range(3)
    ]  # fmt: skip
    put(data / "vstar" / "test_questions.jsonl", rows)
    types = {"structural": "query", "semantic": "attr", "detailed": "weather"}
    gqa = {
        str(n): {"imageId": "n1", "question": "What color is it?", "answer": ("red", "blue", "pink")[n], "types": types,
                 "groups": {"global": "color"}, "semantic": [{"operation": "select", "dependencies": [],
                 "argument": "bus (1)"}]} for n in range(3)
    }  # fmt: skip
    put(data / "gqa" / "testdev_balanced_questions.json", gqa)
    rows = [
        {"question_id": str(n), "image": "n1.jpg", "question": "What color is it?\nA. blue\nB. red\nC. pink"}
        for n in range(3)
    ]
    put(data / "gqa" / "llava_gqa_testdev_balanced_mcq.jsonl", rows)
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    seed = [
        {"question_id": str(n), "question_type_id": 5, "data_type": "image", "data_id": "100", "question": "How many?",
         "answer": "A", **choices} for n in range(3)
    ]  # fmt: skip
    put(data / "seed" / "SEED-Bench.json", {"questions": seed, "question_type": {"Scene Understanding": 1}})
    text = [
        {"question_id": n, "image_id": "a", "question": "what is it?", "answers": ["x"] * 10}
        for n in range(3)
    ]
    put(data / "textvqa" / "TextVQA_0.5.1_val.json", {"data": text})
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image"]
    cells = [
        [str(n), "Which?", "", "red", "blue", "", "", "A", "x", "logic_reasoning", "0"] for n in range(3)
    ]
    put(
        data / "mmbench" / "mmbench_dev_20230712.tsv",
        "".join("\t".join(row) + "\n" for row in [names, *cells]),
    )
    names = ["index", "question", "answer", "category", *"ABCD", "cycle_category", "image"]
    cells = [[str(n), "Which?", "A", "single", "1", "2", "3", "4", str(n % 2), "QUJD" * 9] for n in range(4)]
    put(data / "hrbench" / "hr_bench_4k.tsv", "".join("\t".join(row) + "\n" for row in [names, *cells]))
    page = {"questionId": 1, "question": "Which?", "image": "documents/a.png", "answers": ["red"]}
    put(data / "docvqa" / "val_v1.0_withQT.json", {"data": [page] * 3})
    chart = {"imgname": "a.png", "query": "How many?", "label": "14"}
    for name in ("test_human.json", "test_augmented.json"):
        put(data / "chartqa" / "test" / name, json.dumps([chart] * 3))
    sign = {
        "dataset_name": "svt",
        "image_path": "a.png",
        "question": "What?",
        "answers": ["a"],
        "type": "Doc-oriented VQA",
    }
    put(data / "ocrbench" / "OCRBench.json", json.dumps([sign] * 3))
    scene = {
        "Question_id": "1", "Image": "a.jpg", "Text": "Which?", "Answer choices": ["(A) red", "(B) blue"],
        "Ground truth": "B", "Task": "Perception", "Subtask": "Monitoring",
    }  # fmt: skip
    put(data / "mme_realworld" / "MME_RealWorld.json", json.dumps([scene] * 3))
    names = ["index", "image", "question", *"ABCD", "answer", "category", "target_instances"]
    cells = [
        [str(n), SMALL_PNG, "Which?", "1", "2", "3", "4", "A", "Perception/OCR", "[[0, 0, 1, 1]]"]
        for n in range(3)
    ]
    put(data / "treebench" / "TreeBench.tsv", "".join("\t".join(row) + "\n" for row in [names, *cells]))


def write_answers(folder: Path) -> None:
    from openpyxl import Workbook

    put(folder / "answers.jsonl", [{"question_id": n, "text": "yes"} for n in range(3)])
    book = Workbook()
    book.active.append(["index", "question", "A", "B", "answer", "prediction"])
    for n in range(3):
        book.active.append([n, "Which?", "red", "blue", "A", "B"])
    book.save(folder / "answers.xlsx")


def sheet(folder: Path) -> None:
    from dualfocus_lmms.tasks.common.score import holds_truth, read_answers

    file = folder / "answers.xlsx"
    read_answers(file)
    if holds_truth(file):
        _module("mmbench").read_submission(file)


def answers(folder: Path) -> None:
    from dualfocus_lmms.tasks.common.score import read_answers

    read_answers(folder / "answers.jsonl")


def mcq(folder: Path) -> None:
    from dualfocus_lmms.tasks.gqa.mcq import build

    build(folder / "data" / "gqa" / "testdev_balanced_questions.json", folder / "mcq.jsonl", progress=False)


def write_mcq(folder: Path) -> None:
    write_tasks(folder)
    mcq(folder)


def _official(name: str) -> Callable[[Path], Any]:
    return lambda folder: _module(name).read_questions(folder / "data")


def readers(make: Callable[..., Any]) -> list[Any]:
    """Those of tasks; weight is about what one reading costs."""
    gqa = "data/gqa/testdev_balanced_questions.json"
    return [
        make("answers", "answers.jsonl", write_answers, answers, bent_lines),
        make("Excel file of answers", "answers.xlsx", write_answers, sheet, None, 0.5),
        *(
            make(f"questions: {name}", file, write_tasks, task(module, read), mutation, 0.5)
            for name, file, module, read, mutation in (
                ("df_local", "questions.jsonl", "local",
                 lambda folder: _module("local").read_questions(folder / "questions.jsonl"), bent_lines),
                ("df_pope", "data/pope/coco_pope_random.json", "pope",
                 lambda folder: _module("pope").read_split(folder / "data", "random"), bent_lines),
                ("df_vstar", "data/vstar/test_questions.jsonl", "vstar", _official("vstar"), bent_lines),
                ("df_gqa", gqa, "gqa", _official("gqa"), bent_json),
                ("df_gqa_star", "data/gqa/llava_gqa_testdev_balanced_mcq.jsonl", "gqa_star", _official("gqa_star"),
                 bent_lines),
                ("df_gqa_star's answers", gqa, "gqa_star", _official("gqa_star"), bent_json),
                ("df_seed_image", "data/seed/SEED-Bench.json", "seed", _official("seed"), bent_json),
                ("df_textvqa_val", "data/textvqa/TextVQA_0.5.1_val.json", "textvqa", _official("textvqa"), bent_json),
                ("df_mmbench", "data/mmbench/mmbench_dev_20230712.tsv", "mmbench", _official("mmbench"), None),
                ("df_hrbench", "data/hrbench/hr_bench_4k.tsv", "hrbench",
                 lambda folder: _module("hrbench").read_questions(folder / "data", "hrbench_4k"), None),
                ("df_docvqa_val", "data/docvqa/val_v1.0_withQT.json", "docvqa",
                 lambda folder: _module("docvqa").read_documents(folder / "data"), bent_json),
                ("df_chartqa", "data/chartqa/test/test_human.json", "chartqa", _official("chartqa"), bent_json),
                ("df_ocrbench", "data/ocrbench/OCRBench.json", "ocrbench", _official("ocrbench"), bent_json),
                ("df_mme_realworld", "data/mme_realworld/MME_RealWorld.json", "mme_realworld",
                 _official("mme_realworld"), bent_json),
                ("df_treebench", "data/treebench/TreeBench.tsv", "treebench", _official("treebench"), None),
            )
        ),
        make("GQA's questions, for distractors", gqa, write_tasks, mcq, bent_json),
        make("distractors, continued", "mcq.jsonl", write_mcq, mcq, bent_lines),
    ]  # fmt: skip
