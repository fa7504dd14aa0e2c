"""Every foreign name that our source names exists. Read from the source, so that none can be forgotten."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import dualfocus_lmms

OURS = "dualfocus_lmms"
ROOT = Path(dualfocus_lmms.__file__).parent
# Of these we use what their documentation promises.
DOCUMENTED = {
    "PIL", "jinja2", "markupsafe", "matplotlib", "numpy", "pandas", "pyarrow", "tabulate", "tqdm", "yaml",
}  # fmt: skip

APP = "cli/app.py"  # the only one with libraries of its own

LookUp = Callable[[str], Any]


def sources() -> Iterator[Path]:
    for folder, _, files in os.walk(ROOT, followlinks=True):
        yield from (Path(folder, file) for file in files if file.endswith(".py"))


def is_foreign(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    return top not in {"", OURS, *DOCUMENTED, *sys.stdlib_module_names}


def names_in(text: str) -> set[str]:
    """ "module:name" of everything foreign that a source imports, and of what it reads from that by a dot.

    What stands in a `try` that catches the import error has another form beside it and does not count.
    """
    nodes = list(ast.walk(ast.parse(text)))
    excused = {inner for node in nodes if _catches(node) for inner in ast.walk(node)}
    known: dict[str, str] = {}
    for node in nodes:
        if node in excused:
            continue
        if isinstance(node, ast.ImportFrom) and is_foreign(node.module):
            known |= {one.asname or one.name: f"{node.module}:{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            for one in node.names:
                if is_foreign(one.name):
                    known[one.asname or one.name.partition(".")[0]] = _imported(one)
    read = (node for node in nodes if isinstance(node, ast.Attribute) and node not in excused)
    return {*known.values(), *(full for node in read if (full := _dotted(node, known)))}


def _catches(node: ast.AST) -> bool:
    if not isinstance(node, ast.Try):
        return False
    return any(
        "ImportError" in text or "ModuleNotFoundError" in text for text in map(ast.dump, node.handlers)
    )


def _imported(one: ast.alias) -> str:
    return one.name if one.asname else one.name.partition(".")[0]


def _dotted(node: ast.AST, known: dict[str, str]) -> str | None:
    """The foreign name of `a.b.c` where `a` is imported; None for all else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not parts or not isinstance(node, ast.Name) or node.id not in known:
        return None
    start = known[node.id]
    return f"{start}{'.' if ':' in start else ':'}{'.'.join(reversed(parts))}"


def all_names() -> dict[str, set[str]]:
    """By name the files that lean on it."""
    users: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        for name in names_in(path.read_text(encoding="utf-8")):
            users[name].add(path.relative_to(ROOT).as_posix())
    return users


USERS = all_names()


@pytest.mark.parametrize("name", sorted(USERS))
def test_a_name_of_our_source_exists(foreign: LookUp, name: str) -> None:
    """Every module: where the name is gone, importing the module fails, or the first call that reads it."""
    if USERS[name] == {APP} and find_spec(re.split("[.:]", name)[0]) is None:
        pytest.skip("the extra [app] is not installed")
    try:
        foreign(name)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{', '.join(sorted(USERS[name]))} lean on it") from error


def test_the_source_was_read() -> None:
    """This file: a scan that finds nothing would pass for ever."""
    assert {"torch", "transformers:Trainer", "lmms_eval.api.model:lmms"} <= USERS.keys()


def test_names_are_found_in_a_source() -> None:
    """This file: imports, what is read from them by a dot, and not what a `try` has another form of."""
    text = """
import torch
import lmms_eval.__main__ as host
from transformers import AutoConfig
try:
    from transformers import Gone
except ImportError:
    Gone = None
torch.nn.functional.pad(AutoConfig.register, host.cli_evaluate, os.path.join)
"""
    assert names_in(text) == {
        "torch", "torch:nn", "torch:nn.functional", "torch:nn.functional.pad", "transformers:AutoConfig",
        "transformers:AutoConfig.register", "lmms_eval.__main__", "lmms_eval.__main__:cli_evaluate",
    }  # fmt: skip


PLANTED = [
    "transformers:Trainer._load_from_checkpoint",
    "transformers.cache_utils:DynamicLayer",
    "transformers.masking_utils:sdpa_mask",
    "transformers.utils.output_capturing:capture_outputs",
    "transformers:PreTrainedConfig.get_config_dict",
    "lmms_eval.__main__:cli_evaluate_single",
    "lmms_eval.tasks:TaskManager.initialize_tasks",
    "lmms_eval.evaluator_utils:TaskOutput.calculate_aggregate_metric",
    "accelerate.utils.memory:clear_device_cache",
    "openai:APIStatusError",
    "peft:LoraConfig",
    "torch.utils.flop_counter:FlopCounterMode",
]


@pytest.mark.parametrize("name", PLANTED)
def test_a_name_that_is_gone_is_told_by_name(
    foreign: LookUp, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """This folder: what a release renames must be read in the failure."""
    holder, attribute = name.replace(":", ".").rsplit(".", 1)
    monkeypatch.delattr(foreign(":".join(_split(holder, name))), attribute)
    with pytest.raises(AssertionError, match=attribute):
        foreign(name)


def _split(holder: str, name: str) -> tuple[str, ...]:
    module = name.partition(":")[0]
    rest = holder[len(module) + 1 :]
    return (module, rest) if rest else (module,)
