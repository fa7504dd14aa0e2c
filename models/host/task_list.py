"""Our tasks and groups, as their YAML files name them: for `dualfocus tasks` and for mistyped names.

Imports no task and no library: what a task asks is the docstring of its `docs.py`.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from textwrap import wrap

from dualfocus_lmms.models.host.manifest import task_folder

_NAME = re.compile(r"^(?:task|group): (\w+)$", re.MULTILINE)
_COLUMNS = 78


@lru_cache(maxsize=1)
def task_names() -> list[str]:
    """The names of all our tasks and groups, sorted."""
    return sorted(name for _, found in _by_folder() for name in found)


def table() -> str:
    """Our tasks, a paragraph for each benchmark: its names, a group before its members, and what it asks."""
    lines = []
    for folder, names in _by_folder():
        lines += wrap(", ".join(names), _COLUMNS, initial_indent="  ", subsequent_indent="    ")
        lines += wrap(_about(folder), _COLUMNS, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _by_folder() -> list[tuple[Path, list[str]]]:
    """Each folder with tasks and the names in it; a folder of groups alone is one entry for each file."""
    found: list[tuple[Path, list[str]]] = []
    for folder in sorted(path for path in task_folder().iterdir() if path.is_dir()):
        files = sorted(folder.glob("*.yaml"))
        names = {file: _NAME.findall(file.read_text(encoding="utf-8"))[:1] for file in files}
        if (folder / "docs.py").is_file():
            found.append((folder, [name for file in files for name in names[file]]))
        else:
            found += [(file, names[file]) for file in files]
    return [(place, names) for place, names in found if names]


def _about(place: Path) -> str:
    """What a benchmark asks: the first sentence of its module, or the comments of a group's file."""
    if place.suffix == ".yaml":
        comments = [
            line.lstrip("# ") for line in place.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
        ]
        return " ".join(comments[1:])  # the first is the command
    module = ast.parse((place / "docs.py").read_text(encoding="utf-8"))
    text = " ".join((ast.get_docstring(module) or "").split("\n\n")[0].split())
    text = re.sub(r"^(?:df_\w+\*?(?: and |, )?)+: ", "", text)
    return text[:1].upper() + text[1:]
