"""What is built holds every module and data file where it lies in the source, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest

LINKS = ("models", "tasks", "train", "results")
SHIPPED = {".py", ".yaml"}
RESULTS = {".json", ".csv", ".md", ".html", ".css", ".js"}
WEIGHTS = {".json", ".jinja", ".safetensors", ".md"}
SCRATCH = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")


@pytest.fixture(scope="session")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: a build writes next to its sources, and picks up what an earlier one left there."""
    copy = tmp_path_factory.mktemp("source")
    for folder in ["dualfocus_lmms", *LINKS, "tests"]:
        shutil.copytree(root / folder, copy / folder, symlinks=True, ignore=SCRATCH)
    for name in ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(root / name, copy / name)
    return copy


def run(command: list[str | Path], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(source: Path, out: Path) -> zipfile.ZipFile:
    """The wheel of a folder or of a source archive."""
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", out]
    run([*pip_wheel, "--no-index", "--no-deps", "--no-build-isolation", source], out)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(source, tmp_path_factory.mktemp("wheel"))


def dist_info(wheel: zipfile.ZipFile) -> str:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    return folder


def test_files_are_where_they_lie_in_the_source(root: Path, wheel: zipfile.ZipFile):
    expected = set()
    for folder, _, names in os.walk(root / "dualfocus_lmms", followlinks=True):
        place = Path(folder).relative_to(root)
        weights = place.parts[1:3] == ("models", "weights")
        more = RESULTS if "results" in place.parts else WEIGHTS if weights else set()
        expected |= {(place / name).as_posix() for name in names if Path(name).suffix in SHIPPED | more}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in shipped if PurePosixPath(name).suffix in SHIPPED | RESULTS | WEIGHTS} == expected
    assert shipped - expected <= {"dualfocus_lmms/py.typed"}
    assert len(expected) > 200


def test_a_source_archive_makes_the_same_wheel(
    source: Path, wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory
):
    out = tmp_path_factory.mktemp("archive")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    run([sys.executable, "-c", code], source)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        assert [member.name for member in members if member.issym() or member.islnk()] == []
    again = build(archive, out)
    assert sorted(again.namelist()) == sorted(wheel.namelist())
    assert [
        name
        for name in wheel.namelist()
        if ".dist-info/" not in name and wheel.read(name) != again.read(name)
    ] == []


def test_an_editable_install_brings_the_package_alone(source: Path, tmp_path: Path):
    """Not `models`, `tasks`, `train` and `results` at the top level, where other packages' would clash."""
    target = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    run([*pip, "--target", target, "--editable", source], tmp_path)
    code = (
        f"import site; from importlib.util import find_spec as find; site.addsitedir({str(target)!r}); "
        f"print(find('dualfocus_lmms').origin, [name for name in {LINKS!r} if find(name)])"
    )
    command = [sys.executable, "-S", "-c", code]  # what is installed here already would be found first
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{source / 'dualfocus_lmms/__init__.py'} []"


def test_a_checkout_without_links_says_what_to_do(source: Path, tmp_path: Path):
    """What git makes where it makes no links: files that hold the path."""
    shutil.copytree(source / "dualfocus_lmms", tmp_path / "dualfocus_lmms", symlinks=True)
    for name in LINKS:
        link = tmp_path / "dualfocus_lmms" / name
        link.unlink()
        link.write_text(f"../{name}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "dualfocus_lmms"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "core.symlinks true" in done.stderr.splitlines()[-1]


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
    paths = {target: target.replace(".", "/") for target in targets}
    assert [
        target for target, path in paths.items() if not {f"{path}.py", f"{path}/__init__.py"} & files
    ] == []
