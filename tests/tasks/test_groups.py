"""df_paper and df_zoom through the host: what is in them, and that no mean is made of different scores.

test_choice_host.py has a run of df_zoom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Load = Callable[[str], dict[Any, Any]]
ROOT = Path(__file__).resolve().parents[2]
POPE = {f"df_pope_{split}" for split in ("random", "popular", "adversarial")}
TASKS = {
    "df_paper": {"df_seed_image", "df_mmbench_en_dev", "df_gqa_star", "df_textvqa_val_ocr", *POPE},
    "df_zoom": {"df_vstar", "df_hrbench_4k", "df_hrbench_8k"},
}


def leaves(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from leaves(task)
        else:
            yield name, task


@pytest.mark.parametrize("group", TASKS)
def test_the_host_loads_them(load_task: Load, paper_folder: Path, group: str) -> None:
    found = dict(leaves(load_task(group)))
    assert set(found) == TASKS[group]
    for task in found.values():
        doc = task.test_docs()[0]
        assert task.doc_to_text(doc)
        assert task.doc_to_visual(doc)[0].mode == "RGB"


def test_every_task_of_every_group_exists(host_tasks: ModuleType) -> None:
    manager = host_tasks.TaskManager(include_defaults=False, include_path=str(ROOT / "tasks"))
    assert {"df_paper", "df_zoom", "df_documents", "df_pope", "df_hrbench", "df_nano"} <= set(
        manager.all_groups
    )
    for group in manager.all_groups:
        named = manager._get_config(group)["task"]
        assert [name for name in named if name not in manager.all_tasks] == []


@pytest.mark.parametrize(("group", "inner"), [("df_paper", "df_pope"), ("df_zoom", "df_hrbench")])
def test_only_the_inner_group_has_a_mean(load_task: Load, paper_folder: Path, group: str, inner: str) -> None:
    utils = pytest.importorskip("lmms_eval.evaluator_utils")
    tasks = load_task(group)
    results: dict[str, Any] = {group: {}, inner: {}}
    for name, task in leaves(tasks):
        metrics = [metric for metric in task.aggregation() if not metric.endswith("_stderr")]
        numbers = {f"{metric},none": 10.0 for metric in metrics} | {"questions_fingerprint,none": "0123"}
        errors = {f"{metric}_stderr,none": "N/A" for metric in metrics}
        results[name] = {**numbers, **errors, "samples": 5, "alias": name}
    utils.consolidate_group_results(results, {}, tasks)
    task_rows, grouped = utils.prepare_print_tasks(tasks, results)
    assert results[group] == {" ": " "}
    assert set(task_rows) == {group, inner} | TASKS[group]
    assert set(grouped) == {inner}
    assert grouped[inner]["accuracy,none"] == 10.0
    assert "questions_fingerprint,none" not in grouped[inner]
