"""Who may import whom, read from the files. The rules are in tests/rooms.py."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from PIL import Image
from rooms import MAY_IMPORT, PACKAGE, Import, arrows, circle, fault, imports, loaded, project, room, table


@pytest.fixture(scope="module")
def items() -> list[Import]:
    found = project()
    assert len({item.importer for item in found}) > 100
    return found


def test_every_import_goes_down(items: list[Import]):
    assert [(why, item) for item in items if (why := fault(item))] == []


def test_no_circle_of_modules_and_none_of_rooms(items: list[Import]):
    assert circle(loaded(items)) == []
    assert circle(arrows(items)) == []


def test_every_room_is_there_and_every_permission_is_used(items: list[Import]):
    """A permission that nothing uses any more is taken back."""
    graph = arrows(items)
    assert {room(item.importer) for item in items} - {"top"} <= set(MAY_IMPORT)
    unused = {name: set(allowed) - graph[name] for name, allowed in MAY_IMPORT.items()}
    assert {name: rooms for name, rooms in unused.items() if rooms} == {}


def test_the_command_prints_every_room():
    printed = re.findall(r"^\| ([\w.]+) ", table(), re.MULTILINE)
    assert set(MAY_IMPORT) - set(printed) == set()


APP = f"{PACKAGE}.cli.app"  # the one module of the extra [app]


def test_every_library_is_declared(items: list[Import], setup_cfg: ConfigParser):
    """What only comes along with another library today may be gone with its next release."""
    declared = distributions(setup_cfg["options"]["install_requires"])
    extra = distributions(setup_cfg["options.extras_require"]["app"])  # not installed for most tests
    items = [item for item in items if not (item.importer == APP and item.target.split(".")[0] in extra)]
    makers = packages_distributions()
    imported = {item.target.split(".")[0]: item for item in items if room(item.target) is None}
    foreign = {name: item for name, item in imported.items() if name not in sys.stdlib_module_names}
    assert {"torch", "yaml", "PIL"} <= set(foreign)
    assert [
        item for name, item in foreign.items() if declared.isdisjoint(map(normalized, makers.get(name, [])))
    ] == []


def distributions(requirements: str) -> set[str]:
    lines = [line for line in requirements.splitlines() if not line.startswith("#")]
    return {normalized(re.split(r"[<>=!~ ;\[]", line)[0]) for line in lines}


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


KNOWN = {PACKAGE, *(f"{PACKAGE}.{name}" for name in ("models", "tasks", "train", "boxes", "cli"))} | {
    f"{PACKAGE}.models.engines.tree",
    f"{PACKAGE}.models.host.model",
}


@pytest.mark.parametrize(
    ("importer", "source", "expected"),
    [
        ("flow", "import json, PIL\nfrom dualfocus_lmms.boxes import Box", []),
        ("flow", "import torch", ["library"]),
        ("flow", "def run():\n    import torch", ["library"]),
        ("flow", "import typer", ["library"]),
        ("flow", "from dualfocus_lmms import boxes", []),
        ("flow", "from dualfocus_lmms import cli", ["top layer"]),
        ("flow", "from . import boxes", ["relative"]),
        ("flow", "from dualfocus_lmms.models import host", ["room"]),
        ("flow", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", ["library"]),
        ("cli", "import typer", []),
        ("cli.ask", "def run():\n    import torch", []),
        ("cli", "from dualfocus_lmms.train.data.samples import x", ["room"]),
        ("cli", "def run():\n    from dualfocus_lmms.train.data.samples import x", []),
        ("models.tiny.llava", "import torch\nfrom dualfocus_lmms import Box", []),
        ("models.tiny.llava", "from dualfocus_lmms import train", ["room"]),
        ("models.tiny.llava", "import models.tiny", ["bare"]),
        ("models.tiny.llava", "from tokenizers import models", []),
        ("models.engines.tree", "from dualfocus_lmms.models.host.model import DualFocus", ["room"]),
        ("models.host.model", "from dualfocus_lmms.models.engines.tree import TreeBackend", []),
        ("models.run.runner", "from dualfocus_lmms.models.host import model", ["room"]),
        ("tasks.pope.docs", "from dualfocus_lmms.boxes import Box", []),
        ("tasks.pope.docs", "from dualfocus_lmms.tasks.gqa.docs import x", ["room"]),
        ("tasks.pope.docs", "def read():\n    from dualfocus_lmms.models.tiny.llava import x", ["room"]),
        ("train.data.samples", "from dualfocus_lmms import tasks, models", ["room", "room"]),
        ("train.data.samples", "try:\n    import tasks\nfinally:\n    pass", ["bare"]),
    ],
)
def test_the_rules_themselves(importer: str, source: str, expected: list[str]):
    found = imports(f"{PACKAGE}.{importer}", source, KNOWN)
    assert [why for item in found if (why := fault(item))] == expected


@pytest.mark.parametrize(
    ("third", "circular"),
    [
        ("import dualfocus_lmms.a", True),
        ("from dualfocus_lmms import a", True),
        ("from dualfocus_lmms.a import x", True),
        ("def run():\n    import dualfocus_lmms.a", False),
        ("if TYPE_CHECKING:\n    import dualfocus_lmms.a", False),
        ("import json", False),
    ],
)
def test_a_circle_is_named(third: str, circular: bool):
    a, b, c = known = [f"{PACKAGE}.{name}" for name in "abc"]
    sources = {a: f"from {b} import x", b: f"import {c}", c: third}
    found = circle(
        loaded([item for name, source in sources.items() for item in imports(name, source, known)])
    )
    start = found.index(a) if circular else 0
    assert found[start:-1] + found[:start] == ([a, b, c] if circular else [])


# Imported where they are used: none of them answers a question.
UNUSED = (
    "pandas", "pyarrow", "datasets", "matplotlib", "sklearn", "lmms_eval", "openai", "peft", "evaluate",
    "transformers.pipelines", "librosa",
)  # fmt: skip
# What no command loads that only prints or compares numbers.
HEAVY = ("torch", "torchvision", "transformers", "accelerate", "sympy", "scipy", *UNUSED)


@pytest.mark.parametrize("module", ["dualfocus_lmms", "dualfocus_lmms.models.host.manifest"])
def test_loading_the_plugin_is_light(module: str, tmp_path: Path):
    """lmms-eval loads these before it knows what it is asked for."""
    assert loaded_after(f"import {module}", (*HEAVY, "tabulate"), tmp_path) == []


def test_a_command_without_a_model_loads_no_library_of_models(tmp_path: Path):
    """One process runs them all, so that what one has loaded stays for those after it."""
    run = (
        "import contextlib, io\n"
        "from dualfocus_lmms import cli\n"
        "def run(arguments):\n"
        "    sys.argv = ['dualfocus', *arguments.split()]\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        try: cli.main()\n"
        "        except SystemExit as stopped: assert not stopped.code, arguments\n"
    )
    light = ["--help", "ask --help", "tasks", "families", "arguments", "arguments --model dualfocus_replay"]
    code = run + "".join(f"run({arguments!r})\n" for arguments in light)
    assert loaded_after(code, HEAVY, tmp_path) == []
    code = run + "import dualfocus_lmms.results.gate.check, dualfocus_lmms.results.gate.report\n"
    code += "run('leaderboard')\nrun('arguments --model dualfocus_server')\n"
    assert loaded_after(code, HEAVY, tmp_path) == ["pandas", "pyarrow", "openai"]


@pytest.mark.seconds(8)
def test_a_question_loads_only_what_answers_it(tmp_path: Path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo.png")
    ask = (
        "from dualfocus_lmms import cli\n"
        "sys.argv = 'dualfocus ask photo.png What? --pretrained dualfocus-nano --device cpu'.split()\n"
        "try: cli.main()\n"
        "except SystemExit as stopped: assert not stopped.code"
    )
    assert loaded_after(ask, ("torch", *UNUSED), tmp_path) == ["torch"]


def loaded_after(code: str, names: tuple[str, ...], folder: Path) -> list[str]:
    """Which of the modules `names` a new process has loaded when `code` is done."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint([n for n in {names} if n in sys.modules])"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])
