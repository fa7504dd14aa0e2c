"""The wheel holds every module and data file at its mapped place, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest

SHIPPED = {".py", ".yaml"}
RESULTS = {".json", ".csv", ".md", ".html", ".css", ".js"}
WEIGHTS = {".json", ".jinja", ".safetensors", ".md"}
SCRATCH = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")


@pytest.fixture(scope="session")
def rooms(packages: dict[str, str]) -> dict[str, str]:
    """The top-level folders alone: folder to package path inside the wheel."""
    return {folder: package.replace(".", "/") for package, folder in packages.items() if "/" not in folder}


@pytest.fixture(scope="session")
def wheel(root: Path, rooms: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: a build writes next to its sources, and picks up what an earlier one left there."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in [*rooms, "tests"]:
        shutil.copytree(root / folder, source / folder, ignore=SCRATCH)
    for name in ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(root / name, source / name)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", out]
    command = [*pip_wheel, "--no-index", "--no-deps", "--no-build-isolation", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def dist_info(wheel: zipfile.ZipFile) -> str:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    return folder


def test_files_are_at_their_mapped_places(root: Path, rooms: dict[str, str], wheel: zipfile.ZipFile):
    expected = set()
    for folder, package in rooms.items():
        for file in (root / folder).rglob("*"):
            weights = file.relative_to(root).parts[:2] == ("models", "weights")
            more = RESULTS if folder == "results" else WEIGHTS if weights else set()
            if file.suffix in SHIPPED | more:
                expected.add(f"{package}/{file.relative_to(root / folder).as_posix()}")
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in shipped if PurePosixPath(name).suffix in SHIPPED | RESULTS | WEIGHTS} == expected
    assert shipped - expected <= {"dualfocus_lmms/py.typed"}


def test_license_and_metadata(wheel: zipfile.ZipFile, root: Path):
    info = dist_info(wheel)
    assert wheel.read(f"{info}/licenses/LICENSE") == (root / "LICENSE").read_bytes()
    metadata = wheel.read(f"{info}/METADATA").decode().splitlines()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_entry_points(wheel: zipfile.ZipFile):
    points = ConfigParser()
    points.read_string(wheel.read(f"{dist_info(wheel)}/entry_points.txt").decode())
    assert set(points.sections()) == {
        "console_scripts",
        "lmms_eval.models",
        "dualfocus_lmms.families",
        "dualfocus_lmms.rules",
    }
    assert dict(points["console_scripts"]) == {"dualfocus": "dualfocus_lmms.cli:main"}
    assert list(points["lmms_eval.models"]) == ["dualfocus"]
    assert "llava" in points["dualfocus_lmms.families"]
    assert {"ppl", "macro", "micro"} <= set(points["dualfocus_lmms.rules"])
    targets = {value.split(":")[0] for group in points.sections() for value in points[group].values()}
    files = set(wheel.namelist())
    assert [target for target in sorted(targets) if f"{target.replace('.', '/')}.py" not in files] == []


def test_every_folder_with_modules_is_a_listed_package(
    root: Path, rooms: dict[str, str], packages: dict[str, str], setup_cfg: ConfigParser
):
    assert sorted(setup_cfg["options"]["packages"].split()) == sorted(packages)
    assert [folder for folder in packages.values() if not (root / folder).is_dir()] == []
    holding_modules = {
        file.parent.relative_to(root).as_posix() for folder in rooms for file in (root / folder).rglob("*.py")
    }
    assert holding_modules == set(packages.values())
