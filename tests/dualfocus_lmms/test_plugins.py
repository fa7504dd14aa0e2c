"""Families and rules by name: ours, and those of a package that pip installed beside us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dualfocus_lmms import Family, Settings, UserError, plugins
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.plugins import FAMILIES, RULES, family_for, load_family, load_rule, names

PACKAGE = Path(__file__).resolve().parents[1] / "plugin_package"

# Runs where the example package is on the path; prints what the public interface makes of it.
SCRIPT = """
import json
from PIL import Image
from dualfocus_lmms import StopCriteria, Question, Settings, UserError, answer_batch
from dualfocus_lmms.plugins import FAMILIES, RULES, family_for, load_family, load_rule, names
from dualfocus_lmms.testing import FakeBackend, Reply

family = family_for("example_llava")
script = {
    "macro": Reply("a long and sure answer", (-0.01,)),
    "locate": "<box>(500,250),(1000,750)</box>",
    "micro": Reply("short", (-0.001,)),
}
question = Question("q", Image.new("RGB", (40, 20)), "What?", "What?")
backend = FakeBackend(script, family.box_format)
(trace,) = answer_batch(backend, [question], [StopCriteria(16)], Settings.of(select="longest"))
try:
    load_rule("shortest")
except UserError as error:
    unknown = str(error)
print(json.dumps({
    "families": names(FAMILIES),
    "rules": names(RULES),
    "same": load_family("example") is family,
    "ours": family_for("llava").name,
    "settings": Settings.of(select="longest").to_dict()["select"],
    "chosen": [trace.selection.pathway, trace.selection.text, trace.selection.rule],
    "box": trace.box,
    "crop": trace.crop,
    "unknown": unknown,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the example package into, without the network."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source")  # setuptools builds inside the source tree
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run(
        [*command, "--target", folder / "site", source], check=True, capture_output=True, timeout=300
    )
    return folder / "site"


def test_a_package_brings_a_family_and_a_rule(installed: Path) -> None:
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        cwd=installed,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"example", "llava"} <= set(found["families"])
    assert {"longest", "ppl", "ppl_tie_macro", "macro", "micro"} <= set(found["rules"])
    assert found["same"]
    assert found["ours"] == "llava"
    assert found["settings"] == "longest"
    assert found["chosen"] == ["macro", "a long and sure answer", "longest"]
    assert found["box"] == [0.5, 0.25, 1, 0.75]
    assert found["crop"] == [20, 5, 40, 15]
    assert "longest" in found["unknown"]


def test_without_the_package_its_names_are_unknown() -> None:
    assert "longest" not in names(RULES)
    with pytest.raises(UserError, match="longest"):
        Settings.of(select="longest")


def test_our_own() -> None:
    assert {"ppl", "ppl_tie_macro", "macro", "micro", "release", "micro_context"} <= set(names(RULES))
    assert isinstance(load_family("llava"), Family)
    assert family_for("llava") is load_family("llava")
    rules = [load_rule(name) for name in names(RULES)]
    assert all(isinstance(rule, JointRule) or callable(rule) for rule in rules)
    assert all(load_family(name).name == name for name in names(FAMILIES))


@pytest.mark.parametrize(
    ("load", "given", "named"),
    [
        (load_rule, "pppl", ["'pppl'", "macro", "micro", "ppl", "ppl_tie_macro"]),
        (load_rule, "", ["''", "ppl"]),
        (load_family, "lava", ["'lava'", "llava"]),
        (family_for, "gpt2", ["'gpt2'", "llava", FAMILIES]),
    ],
)
def test_unknown_names(load, given: str, named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(given)
    assert all(word in str(caught.value) for word in named)


BROKEN = {
    "a module that is not there": "no_such_module:rule",
    "a name that is not there": "broken_plugin:no_such_rule",
    "an error at import": "broken_plugin_with_error:rule",
}


def register(folder: Path, package: str, **rules: str) -> None:
    """Write what pip writes for an installed package with these entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in rules.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{RULES}]", *lines]) + "\n")


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    (tmp_path / "broken_plugin.py").write_text("")
    (tmp_path / "broken_plugin_with_error.py").write_text("1 / 0")
    register(tmp_path, "brittle", broken=value)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        load_rule("broken")
    assert all(word in str(caught.value) for word in ("broken", "brittle", value))
    assert load_rule("ppl").__name__ == "ppl"


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, "intruder", ppl="somewhere:else")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        Settings.of(select="ppl")
    assert all(word in str(caught.value) for word in ("ppl", "intruder", "dualfocus-lmms"))


def test_the_installed_packages_are_read_once_to_find_a_family(monkeypatch: pytest.MonkeyPatch):
    read = []
    find = plugins.entry_points
    monkeypatch.setattr(plugins, "entry_points", lambda **given: read.append(given) or find(**given))
    assert family_for("llava").name == "llava"
    assert read == [{"group": FAMILIES}]
