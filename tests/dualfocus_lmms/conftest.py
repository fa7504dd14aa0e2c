"""The command line inside this process, with a scripted model in place of one that loads weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import api, cli
from dualfocus_lmms.testing import FakeBackend, Reply

SCRIPT = {"macro": Reply("red", (-0.7,)), "locate": "[0.25, 0.25, 0.50, 0.75]", "micro": "blue"}
RealModel = api.DualFocusModel


class Done:
    """A finished command: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["dualfocus", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return Done(int(stopped.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Put a scripted model in the place of the one that loads weights; what it was made with."""

    def install(script: Any = SCRIPT) -> list[dict[str, Any]]:
        made = []

        def model(
            pretrained: str,
            device: str | None,
            dtype: str,
            family: str | None,
            chat_template: str,
            min_pixels: int | None,
            max_pixels: int | None,
            **settings: Any,
        ) -> api.DualFocusModel:
            loaded = {"pretrained": pretrained, "device": device, "dtype": dtype}
            made.append({**loaded, "chat_template": chat_template, **settings})
            return RealModel.on(FakeBackend(script), **settings)

        monkeypatch.setattr(api, "DualFocusModel", model)
        return made

    return install


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 20), "red").save(path)
    return path
