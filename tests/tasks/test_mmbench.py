"""df_mmbench_en_dev: reading replies, CircularEval, documents from the file and from the hub, prompts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.tasks.common import circular, sources
from dualfocus_lmms.tasks.common.circular import Turn
from dualfocus_lmms.tasks.mmbench import docs as mmbench_docs

Load = Callable[[str], dict[Any, Any]]
NAME = "df_mmbench_en_dev"
FILE = "mmbench/mmbench_dev_20230712.tsv"
COLUMNS = "index question hint A B C D answer category image source l2-category comment split"
HEAD = COLUMNS.split()
LETTER = "Answer with the option's letter from the given choices directly."


def image_bytes(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(content, "PNG")
    return content.getvalue()


def row(index: int, options: str, answer: str, **other: str) -> dict[str, str]:
    """A line of the official file; options: words, the rest of the four cells stay empty."""
    words = dict(zip("ABCD", options.split(), strict=False))
    image = base64.b64encode(image_bytes("red")).decode()
    base = {"question": "Which one is shown? ", "hint": "", "category": "ocr", "image": image}
    base |= {"l2-category": "finegrained_perception (instance-level)", "source": "made", "split": "dev"}
    return {"index": str(index), **base, **words, "answer": answer, **other}


LOGIC = {"l2-category": "logic_reasoning", "hint": "A rule.\nAnother rule.", "question": "Which follows?"}
# The rows of one question apart, a reference instead of an image, and a question of which a row is missing.
ROWS = [
    row(7, "cat dog cow", "B"),
    row(3, "yes no", "A", **LOGIC),
    row(1_000_007, "dog cow cat", "A"),
    row(1_000_003, "no yes", "B", **LOGIC, image="3"),
    row(2_000_007, "cow cat dog", "C", image="7"),
    row(9, "one two three four", "D", **{"l2-category": "coarse_perception"}),
    row(1_000_009, "two three four one", "C", **{"l2-category": "coarse_perception"}),
]


def write(folder: Path, rows: list[dict[str, str]]) -> Path:
    def cell(value: str) -> str:
        return f'"{value}"' if "\n" in value else value

    lines = ["\t".join(HEAD)] + ["\t".join(cell(row.get(name, "")) for name in HEAD) for row in rows]
    (folder / FILE).parent.mkdir(exist_ok=True)
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return write(tmp_path, ROWS)


DOC = {
    "question_id": 5,
    "rotation": 0,
    "options": ["a cat", "a dog", "vitamin C", "a tree"],
    "answer": "B",
    "ability": "coarse_perception",
    "questions_fingerprint": "0123",
}


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ("B", True),
        ("b", True),
        ("B.", True),
        (" (B) ", True),
        ("**B**", True),
        ("The answer is B.", True),
        ("Answer: B", True),
        ("the correct option is B", True),
        ("Option B", True),
        ("B. a dog", True),
        ("B: a dog", True),
        ("B\nbecause it barks", True),
        ("B. Because it barks.", True),
        ("a dog", True),
        ("A dog.", True),
        ("The answer is a dog.", True),
        # Another option.
        ("A", False),
        ("a cat", False),
        ("C. vitamin C", False),
        ("The answer is C.", False),
        # None, or two: nothing is guessed.
        ("", False),
        ("dog", False),
        ("a dog and a cat", False),
        ("A dog or B", False),
        ("A or B", False),
        ("A, B", False),
        ("(A)(B)", False),
        ("A. No, the answer is B.", False),
        ("Not B.", False),
        ("The answer is not B.", False),
        ("E", False),
        ("BB", False),
        ("Because it barks", False),
        ("I think it is a dog", False),
        ("All of the above", False),
    ],
)
def test_replies(reply: str, correct: bool) -> None:
    metrics = circular.mmbench_results(DOC, [reply])
    metrics = {name: value for name, value in metrics.items() if not name.endswith("_stderr")}
    turn = Turn(question=5, rotation=0, rotations=4, right=correct)
    score = 100.0 if correct else 0.0
    assert metrics == {
        "circular_accuracy": turn,
        "circular_coarse_perception": turn,
        "incomplete_questions": turn,
        "questions_fingerprint": "0123",
        "vanilla_accuracy": score,
        "vanilla_coarse_perception": score,
    }


def test_a_rotated_question_has_no_plain_accuracy() -> None:
    metrics = circular.mmbench_results({**DOC, "rotation": 2}, ["B"])
    assert not [name for name in metrics if name.startswith("vanilla")]


@pytest.mark.parametrize(
    ("questions", "share", "lacking"),
    [
        # Each question's turns in order: + right, - wrong, . absent.
        (["++++"], 100.0, 0),
        (["+++-"], 0.0, 0),
        (["-+++"], 0.0, 0),
        (["----"], 0.0, 0),
        (["++", "+-", "-+", "--"], 25.0, 0),
        (["++", "++++", "+++-"], 200 / 3, 0),
        (["+++."], 100.0, 1),
        (["+-+."], 0.0, 1),
        (["+..."], 100.0, 1),
        ([".+++"], 0.0, 1),  # no question: nothing is counted
        ([".+++", "++"], 100.0, 1),
        (["....", "++"], 100.0, 0),  # nothing of it is known
        (["+++.", "+..", "++"], 100.0, 2),
        ([], 0.0, 0),
    ],
)
def test_circular_eval(questions: list[str], share: float, lacking: int) -> None:
    turns = [
        Turn(question=number, rotation=turn, rotations=len(marks), right=mark == "+")
        for number, marks in enumerate(questions)
        for turn, mark in enumerate(marks)
        if mark != "."
    ]
    for order in (turns, turns[::-1]):
        assert circular.circular(order) == pytest.approx(share)
        assert circular.incomplete(order) == lacking


def test_documents_are_grouped_by_question(load_task: Load, folder: Path) -> None:
    task = load_task(NAME)[NAME]
    docs = list(task.test_docs())
    assert [(doc["question_id"], doc["rotation"]) for doc in docs] == [
        (3, 0), (3, 1), (7, 0), (7, 1), (7, 2), (9, 0), (9, 1),
    ]  # fmt: skip
    assert docs[0][task.config.metadata["dualfocus"]["question"]] == "Which follows?"
    assert task.doc_to_text(docs[0]) == f"A rule.\nAnother rule.\nWhich follows?\nA. yes\nB. no\n{LETTER}"
    assert task.doc_to_text(docs[3]) == f"Which one is shown? \nA. dog\nB. cow\nC. cat\n{LETTER}"
    for doc in docs:
        (image,) = task.doc_to_visual(doc)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 4), (255, 0, 0))
    assert "image" not in task.test_docs_no_media().column_names  # the host's logs stay small


def test_the_host_aggregates(load_task: Load, folder: Path) -> None:
    """Question 3 right, question 7 wrong in one rotation, question 9 right in the two rows it has of four."""
    task = load_task(NAME)[NAME]
    found: dict[str, list[Any]] = {}
    for doc in task.test_docs():
        reply = "A" if (doc["question_id"], doc["rotation"]) == (7, 2) else doc["answer"]
        for metric, value in task.process_results(doc, [reply]).items():
            found.setdefault(metric, []).append(value)
    scores = {metric: task.aggregation()[metric](values) for metric, values in found.items()}
    errors = {metric: scores.pop(metric) for metric in list(scores) if metric.endswith("_stderr")}
    assert errors.pop("circular_accuracy_stderr") == pytest.approx(100 * (2 / 27) ** 0.5, rel=0.05)
    assert set(errors.values()) == {"N/A"}  # one question of each ability
    assert scores == {
        "circular_accuracy": pytest.approx(200 / 3),
        "circular_logic_reasoning": 100.0,
        "circular_finegrained_single": 0.0,
        "circular_coarse_perception": 100.0,
        "vanilla_accuracy": 100.0,
        "vanilla_logic_reasoning": 100.0,
        "vanilla_finegrained_single": 100.0,
        "vanilla_coarse_perception": 100.0,
        "incomplete_questions": 1,
        "questions_fingerprint": questions_fingerprint(task.test_docs()),
    }


def test_each_ability_is_a_metric_and_no_name_is_part_of_another(load_task: Load, folder: Path) -> None:
    names = {name for name in load_task(NAME)[NAME].aggregation() if not name.endswith("_stderr")}
    abilities = {"accuracy", *mmbench_docs.ABILITIES.values()}
    ways = {f"{way}_{ability}" for way in ("circular", "vanilla") for ability in abilities}
    assert names == {"incomplete_questions", "questions_fingerprint"} | ways
    assert not [(name, other) for name in names for other in names if name != other and name in other]


def test_rotations_are_made_when_the_file_has_none(folder: Path) -> None:
    write(folder, [row(7, "cat dog cow", "B"), row(3, "yes no", "A")])
    docs = mmbench_docs.read_questions(folder)
    assert [(doc["question_id"], doc["rotation"], doc["options"], doc["answer"]) for doc in docs] == [
        (3, 0, ["yes", "no"], "A"),
        (3, 1, ["no", "yes"], "B"),
        (7, 0, ["cat", "dog", "cow"], "B"),
        (7, 1, ["dog", "cow", "cat"], "A"),
        (7, 2, ["cow", "cat", "dog"], "C"),
    ]


def test_a_tiny_model_answers_it(
    load_task: Load, folder: Path, run_tiny: Callable[[Any], dict[str, Any]]
) -> None:
    scores = run_tiny(load_task(NAME)[NAME])
    scores = {name: score for name, score in scores.items() if not name.endswith("_stderr")}
    assert scores.pop("incomplete_questions") == 1
    assert len(scores.pop("questions_fingerprint")) == 16
    assert set(scores) == {
        f"{way}_{part}"
        for way in ("circular", "vanilla")
        for part in ("accuracy", "logic_reasoning", "finegrained_single", "coarse_perception")
    }
    assert all(
        scores[f"circular_{part}"] <= scores[f"vanilla_{part}"] for part in ("accuracy", "logic_reasoning")
    )


@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_golden_prompts(
    load_task: Load,
    folder: Path,
    first_prompts: Callable[[Any, str], str],
    golden: Callable[[str, str], None],
    protocol: str,
) -> None:
    golden(f"{NAME}_{protocol}.txt", first_prompts(load_task(NAME)[NAME], protocol))


def test_the_hub_and_the_file_have_the_same_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from_file = mmbench_docs.read_questions(folder)
    monkeypatch.delenv("DUALFOCUS_DATA")
    assert (mmbench_docs.DATASET_PATH, mmbench_docs.DATASET_KWARGS) == ("lmms-lab-encoder/MMBench", None)
    rows = [
        {name: line.get(name) or "nan" for name in ("question", "hint", *"ABCD", "answer", "category")}
        | {"index": int(line["index"]), "L2-category": line["l2-category"], "image": Image.new("L", (6, 4))}
        for line in ROWS
    ]
    hub = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    docs = mmbench_docs.documents(hub)
    columns = [name for name in docs.column_names if name != "image"]
    assert set(columns) == set(from_file[0]) - {"image"} | {"questions_fingerprint"}
    assert set(docs["questions_fingerprint"]) == {questions_fingerprint(from_file)}
    assert [[doc[name] for name in from_file[0] if name != "image"] for doc in docs] == [
        [value for name, value in doc.items() if name != "image"] for doc in from_file
    ]
    assert docs[0]["image"].size == (6, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"index": "first"},
        {"index": "8"},  # twice
        {"question": " "},
        {"answer": "C"},  # there are two options
        {"answer": ""},
        {"B": ""},
        {"image": ""},
        {"image": "1000008"},  # its own
        {"image": "no base64!" * 5},
        {"image": base64.b64encode(b"no picture in these bytes").decode()},
        {"l2-category": "guessing"},
        {"l2-category": ""},
    ],
)
def test_an_invalid_row_raises(folder: Path, change: dict[str, str]) -> None:
    write(
        folder, [row(7, "cat dog", "B"), row(8, "cat dog", "B"), {**row(1_000_008, "dog cat", "A"), **change}]
    )
    with pytest.raises(UserError, match=r"mmbench_dev_20230712\.tsv"):
        mmbench_docs.read_questions(folder)


@pytest.mark.parametrize("content", [None, "", "index\tquestion\n", "what\n1\n", "a\tb\n1\t2\t3\t4\n"])
def test_a_file_of_another_benchmark_raises(folder: Path, content: str | None) -> None:
    (folder / FILE).unlink()
    if content is not None:
        (folder / FILE).write_text(content)
    with pytest.raises(UserError, match=r"mmbench_dev_20230712\.tsv"):
        mmbench_docs.read_questions(folder)


def test_answers_can_be_scored_without_the_images(load_task: Load, folder: Path) -> None:
    write(folder, [{name: value for name, value in line.items() if name != "image"} for line in ROWS])
    with sources.without_images():
        task = load_task(NAME)[NAME]
    assert task.test_docs_no_media()["index"] == [
        int(line["index"]) for line in sorted(ROWS, key=by_question)
    ]
    with pytest.raises(UserError):
        load_task(NAME)


def by_question(line: dict[str, str]) -> tuple[int, int]:
    return int(line["index"]) % 1_000_000, int(line["index"])
