"""What tests of every room use."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from loguru import logger
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models this small, threads only wait for each other
for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # read once, when the libraries are imported
    os.environ.setdefault(variable, "1")

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the files in tests/golden anew instead of comparing",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Processes take files in the order below; pytest-xdist's own is by number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that at the end no process waits for another."""
    items.sort(key=seconds, reverse=True)


def seconds(item: pytest.Item) -> int:
    """What a file says of itself: `pytestmark = pytest.mark.seconds(80)`."""
    mark = item.get_closest_marker("seconds")
    return mark.args[0] if mark else 0


def pytest_collection_finish() -> None:
    """What is loaded by now stays: host and engines often search for garbage, and need not go through it."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries that look for leaks at the end would find all of it


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: $DUALFOCUS_SHARED/data, or ../shared/data beside the project."""
    shared = Path(os.environ.get("DUALFOCUS_SHARED", HERE.parent.parent / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"no real data in {shared}: set DUALFOCUS_SHARED to the folder that holds data/")
    return shared / "data"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with a file of tests/golden; `pytest --update-golden` writes the file instead."""

    def check(name: str, text: str) -> None:
        path = HERE / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        assert path.read_text(encoding="utf-8") == text

    return check


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], Image.Image]:
    """Makes an image (width, height) of random pixels, always the same ones for a size."""

    def make(width: int, height: int) -> Image.Image:
        rng = np.random.default_rng([width, height])
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint with random weights that has learned the form of the replies (12 s of work).

    The first of all test processes that needs it makes it for the others.
    """
    from dualfocus_lmms.models.tiny.llava import save_tiny

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # where the folders of all processes of this run are
    folder, partial = root / "tiny", root / "tiny.partial"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            save_tiny(partial, steps=150).rename(folder)
    return folder


# --- commands ----------------------------------------------------------------------------------------------

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_command() -> Run:
    """Runs `dualfocus ARGUMENT...` or `lmms-eval ARGUMENT...` in this process, where torch is loaded already.

    env: environment variables on top. Where the process itself is what is tested, start one.
    """
    return run_here


def run_here(
    command: str, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a process of this command would return and print."""
    (script,) = entry_points(group="console_scripts", name=command)
    out, err = io.StringIO(), io.StringIO()
    with as_before(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        os.environ.update(env or {})
        sys.argv = [command, *arguments]
        logger.remove()
        logger.add(sys.stderr)  # as loguru itself begins
        try:
            code = script.load()()
        except SystemExit as stopped:
            code = stopped.code
        except Exception:
            traceback.print_exc()
            code = 1
    code = code if isinstance(code, int) else int(code is not None)
    return subprocess.CompletedProcess([command, *arguments], code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Takes back what the host changes in its process: environment, arguments, logs and devices."""
    environment, arguments, handlers = dict(os.environ), sys.argv, logging.root.handlers[:]
    forget_devices()
    gc.freeze()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, logging.root.handlers[:] = arguments, handlers
        logger.remove()
        logger.add(sys.stderr)
        forget_devices()


def forget_devices() -> None:
    """Make accelerate look again at devices and processes, as the environment names them."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
