"""docs/quickstart.md: its marked blocks run in one shell and one folder, and print what the page shows.

The shell is a real one. Each `dualfocus` that it would start is run afterwards, in this process.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.seconds(10)

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- test -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
# Instead of the command: its arguments, and what the shell has exported for it.
RECORD = 'dualfocus() { printf "%s\\0" "${DUALFOCUS_LOCAL-}" "$@" >>commands; printf "\\1" >>commands; }\n'

NUMBER = r"(-?\d+(?:\.\d+)?)"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def printed(folder: Path, run_command: Run) -> list[str]:
    """What each command prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DUALFOCUS_ONLY_OUR_TASKS", "1")  # the host starts sooner
        return [run(command, run_command) for command in commands("\n".join(BLOCKS))]


def commands(script: str) -> list[list[str]]:
    """The commands of a script: the file of questions that it has exported by then, and the arguments."""
    subprocess.run(["bash", "-euo", "pipefail", "-c", RECORD + script], check=True)
    recorded = Path("commands").read_text(encoding="utf-8")
    Path("commands").unlink()
    return [one.removesuffix("\0").split("\0") for one in recorded.split("\1")[:-1]]


def run(command: list[str], run_command: Run) -> str:
    questions, *arguments = command
    done = run_command("dualfocus", *arguments, env={"DUALFOCUS_LOCAL": questions} if questions else {})
    assert done.returncode == 0, f"dualfocus {shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_an_image_is_answered_as_the_page_shows(printed: list[str], folder: Path):
    """To the word; perplexities differ a little from one processor to another."""
    shown, real = (re.split(NUMBER, text.strip()) for text in (SHOWN[0], printed[1]))
    assert real[::2] == shown[::2]
    assert [float(one) for one in real[1::2]] == pytest.approx([float(one) for one in shown[1::2]], rel=0.01)
    with Image.open(folder / "answer.png") as drawn:
        assert min(drawn.size) > 300


def test_own_questions_are_scored_as_the_page_shows(printed: list[str], folder: Path):
    def without_time(text: str) -> list[str]:
        return [line.rsplit(maxsplit=1)[0] for line in text.splitlines() if line.startswith(("task", "df_"))]

    assert without_time(SHOWN[1])
    assert without_time(SHOWN[1]) == without_time(printed[2])
    (samples,) = (folder / "runs" / "first").rglob("*_samples_df_local.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [row["accuracy"] for row in rows] == [100.0] * len(rows)
    assert "Next: dualfocus report runs/first --out report" in printed[2]
    assert os.path.isfile(folder / "report" / "report.html")
