"""What setup.cfg says about folders and packages."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="session")
def packages(setup_cfg: ConfigParser) -> dict[str, str]:
    """Package name to folder, as in `package_dir`: dualfocus_lmms.models to models."""
    lines = setup_cfg["options"]["package_dir"].split("\n")
    return dict(map(str.strip, line.split("=")) for line in lines if line.strip())
