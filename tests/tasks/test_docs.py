"""The task in docs/tasks.md is one that the host loads and scores; docs/benchmarks.md names what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from dualfocus_lmms.tasks.hrbench import docs as hrbench_docs

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    import_module(f"dualfocus_lmms.tasks.{path.parent.name}.docs")
    for path in (ROOT / "tasks").glob("*/docs.py")
]
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def test_the_documented_yaml_is_a_task(
    tmp_path: Path,
    save_image: Callable[[Path], None],
    write_lines: Callable[..., Path],
    host_tasks: ModuleType,
) -> None:
    save_image(tmp_path / "red.png")
    row = {"image": str(tmp_path / "red.png"), "question": "What colour is it?", "answers": ["red"]}
    file = write_lines(tmp_path / "mine.jsonl", [row])
    (yaml,) = re.findall(r"```yaml\n(#.*?)```", (ROOT / "docs" / "tasks.md").read_text("utf-8"), re.DOTALL)
    local = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}"
    (tmp_path / "df_mine.yaml").write_text(yaml.replace("dataset_path: someone/mine", local), "utf-8")
    manager = host_tasks.TaskManager(include_defaults=False, include_path=str(tmp_path))
    task = host_tasks.get_task_dict(["df_mine"], manager)["df_mine"]
    (doc,) = task.test_docs()
    assert task.doc_to_text(doc) == "What colour is it?\nAnswer the question using a single word or phrase."
    assert doc[task.config.metadata["dualfocus"]["question"]] == "What colour is it?"
    assert task.doc_to_visual(doc)[0].size == (6, 4)
    assert task.process_results(doc, ["Red."]) == {"accuracy": 100.0}


def test_every_task_is_documented(host_tasks: ModuleType) -> None:
    manager = host_tasks.TaskManager(include_defaults=False, include_path=str(ROOT / "tasks"))
    text = BENCHMARKS.replace("`, `_", "`, `df_pope_") + (ROOT / "docs" / "tasks.md").read_text("utf-8")
    names = [name for name in manager.all_tasks if not name.startswith("df_nano_validation_")]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_file_and_data_set_is_documented() -> None:
    constants = [item for module in MODULES for item in vars(module).items()]
    paths = {value for name, value in constants if name.isupper() and isinstance(value, str) and "/" in value}
    paths |= set(hrbench_docs.FILES.values())
    assert len(paths) > 15
    assert [path for path in paths if path not in BENCHMARKS] == []


def test_published_numbers_equal_those_of_the_leaderboard() -> None:
    paper = json.loads((ROOT / "results" / "data" / "published" / "dualfocus.json").read_text("utf-8"))
    table = next(table for table in paper["tables"] if table["table"] == "table 1")
    for number, column in enumerate(table["columns"]):
        scores = {(row["model"], row["method"]): row["values"][number] for row in table["rows"]}
        pairs = [
            f"{scores[model, 'plain']} → {scores[model, 'DualFocus']}"
            for model in ("LLaVA-1.5-7B", "LLaVA-1.5-13B")
        ]
        (row,) = re.findall(rf"^\| \[`{column['task']}`\].*", BENCHMARKS, re.MULTILINE)
        assert "; ".join(pairs) in row


@pytest.mark.parametrize("file", sorted((ROOT / "tasks").glob("*/*.yaml")), ids=lambda file: file.stem)
def test_every_task_sets_its_stop_strings(file: Path):
    """Its default is an empty line, and a reply that begins with one would be empty."""
    text = file.read_text("utf-8")
    assert text.count("generation_kwargs:") == text.count("  until: []\n")
