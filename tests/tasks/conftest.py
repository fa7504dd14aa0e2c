"""What the tests of the tasks share: real data where there is some, small folders, the host's tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

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
def save_picture() -> Callable[[Path], None]:
    """Writes a small picture."""
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
    tmp_path: Path, save_picture: Callable[[Path], None], write_lines: Callable[[Path, Rows], Path]
) -> Path:
    """A DUALFOCUS_DATA folder: each split asks three questions, and the third one's picture is missing."""
    images = tmp_path / "pope" / "images"
    images.mkdir(parents=True)
    save_picture(images / "red.png")
    save_picture(images / "blue.png")
    rows = [
        {"question_id": 1, "image": "red.png", "text": "Is there a dog in the image?", "label": "yes"},
        {"question_id": 2, "image": "blue.png", "text": "Is there a cat in the image?", "label": "no"},
        {"question_id": 3, "image": "gone.png", "text": "Is there a cup in the image?", "label": "no"},
    ]
    for split in ("random", "popular", "adversarial"):
        write_lines(tmp_path / "pope" / f"coco_pope_{split}.json", rows)
    return tmp_path
