"""The task that docs/tasks.md shows is one that the host loads and scores."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_yaml_is_a_task(
    tmp_path: Path,
    save_picture: Callable[[Path], None],
    write_lines: Callable[..., Path],
    host_tasks: ModuleType,
) -> None:
    save_picture(tmp_path / "red.png")
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
