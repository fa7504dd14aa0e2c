"""The package as it lies in the source: every module and the file that it is, links followed."""

from __future__ import annotations

import os
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "dualfocus_lmms"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="session")
def modules() -> dict[str, Path]:
    """Dotted name to file: dualfocus_lmms.models.host.model to ROOT/dualfocus_lmms/models/host.py."""
    found = {}
    for folder, _, names in os.walk(ROOT / PACKAGE, followlinks=True):
        package = Path(folder).relative_to(ROOT).parts
        for name in names:
            if name.endswith(".py"):
                parts = package if name == "__init__.py" else (*package, name.removesuffix(".py"))
                found[".".join(parts)] = Path(folder, name)
    return found
