"""What lmms-eval loads at start-up: our model classes by path, and our tasks in its index.

Imports nothing heavy: one exception here would make the host drop every plugin with only a warning.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Set to 0 to leave the host's task index alone; our tasks are then found with --include_path only.
REGISTER_TASKS = "DUALFOCUS_REGISTER_TASKS"
# Set to 1 to index our tasks alone: start-up without reading the host's own 1,900 task files.
ONLY_OUR_TASKS = "DUALFOCUS_ONLY_OUR_TASKS"


def manifests() -> list[Any]:
    """The payload of the entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    if os.environ.get(REGISTER_TASKS, "1") != "0":
        add_tasks_to_index()
    return [
        ModelManifest(
            model_id="dualfocus",
            simple_class_path="dualfocus_lmms.models.host.model.DualFocusSimple",
            chat_class_path="dualfocus_lmms.models.host.model.DualFocus",
        ),
        ModelManifest(
            model_id="dualfocus_server",
            simple_class_path="dualfocus_lmms.models.server.host.ServerSimple",
            chat_class_path="dualfocus_lmms.models.server.host.Server",
        ),
        ModelManifest(
            model_id="dualfocus_replay",
            simple_class_path="dualfocus_lmms.models.host.replay_model.ReplaySimple",
            chat_class_path="dualfocus_lmms.models.host.replay_model.Replay",
        ),
    ]


def task_folder() -> Path:
    """The folder of our task YAML files."""
    spec = find_spec("dualfocus_lmms.tasks")  # a folder of data to this room: nothing is imported from it
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def add_tasks_to_index() -> None:
    """Make the host's TaskManager index our folder too. The host itself offers no hook for that: plugin
    tasks named in LMMS_EVAL_PLUGINS are added after its index is built."""
    from lmms_eval.tasks import TaskManager

    original = TaskManager.initialize_tasks
    if getattr(original, "includes_dualfocus", False):
        return

    def initialize_tasks(self: Any, include_path: Any = None, include_defaults: bool = True) -> Any:
        given = [include_path] if isinstance(include_path, str) else list(include_path or [])
        only_ours = os.environ.get(ONLY_OUR_TASKS) == "1"
        folders = dict.fromkeys([*given, str(task_folder())])  # each is read once
        return original(self, list(folders), include_defaults and not only_ours)

    initialize_tasks.includes_dualfocus = True  # type: ignore[attr-defined]
    TaskManager.initialize_tasks = initialize_tasks
