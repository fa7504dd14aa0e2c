"""The marked blocks of the README and the reference run, in order, in one folder; the tables are complete.

A block is marked by `<!-- test -->` on the line before. It runs with a tiny model in place of the real one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dualfocus_lmms.plugins import RULES, names
from dualfocus_lmms.protocol import PROTOCOLS

pytestmark = pytest.mark.seconds(30)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
CHECKPOINT = "llava-hf/llava-1.5-7b-hf"
BLOCKS = re.findall(r"<!-- test -->\n```(bash|python)\n(.*?)```", README + REFERENCE, re.DOTALL)
FEW_TASKS = {"DUALFOCUS_ONLY_OUR_TASKS": "1", "OMP_NUM_THREADS": "1"}  # what makes the host start sooner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README takes for granted: a photo and a file of questions."""
    folder = tmp_path_factory.mktemp("readme")
    subprocess.run([sys.executable, ROOT / "examples" / "scenes.py", folder], check=True)
    shutil.copy(folder / "scene1.png", folder / "photo.jpg")
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path, tiny_checkpoint: Path) -> list[str]:
    """What each block prints."""
    outputs = []
    for language, code in BLOCKS:
        code = code.replace(CHECKPOINT, str(tiny_checkpoint))
        outputs.append(bash(code, folder) if language == "bash" else python(code, folder))
    return outputs


def bash(code: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={**os.environ, **FEW_TASKS, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(code: str, folder: Path) -> str:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue()


def test_every_block_runs(printed: list[str], folder: Path):
    assert [language for language, _ in BLOCKS] == ["bash", "bash", "python", "python", "python"]
    asked, evaluated, answered, counted, _ = printed
    assert re.search(r"^(macro|micro) \(chosen\) +\S.* +\d", asked, re.MULTILINE)
    assert (folder / "answer.png").stat().st_size > 1000
    assert "|df_local|" in evaluated
    assert re.fullmatch(r"\d of 9 answers come from the zoomed region\n", counted)
    assert re.search(r" \{'macro': \d", answered)


def test_the_evaluation_left_results_samples_and_traces(printed: list[str], folder: Path):
    """lmms-eval exits with 0 on a failure too."""
    (results,) = (folder / "results").rglob("*_results.json")
    assert 0 <= json.loads(results.read_text(encoding="utf-8"))["results"]["df_local"]["accuracy,none"] <= 100
    (samples,) = (folder / "results").rglob("*_samples_df_local.jsonl")
    assert (folder / "report" / "report.html").is_file()
    assert len(samples.read_text(encoding="utf-8").splitlines()) == 9
    assert len((folder / "traces" / "first" / "rank0.jsonl").read_text(encoding="utf-8").splitlines()) == 9


def rows(heading: str) -> dict[str, list[str]]:
    """The table below a heading: the name in the first column, without its marks, to the other columns."""
    section = REFERENCE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.strip("| \n").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_table_of_model_arguments_is_the_declaration():
    """`dualfocus arguments` prints it."""
    from dualfocus_lmms.models.host.options import ModelOptions
    from dualfocus_lmms.options_text import table

    shown = REFERENCE.partition("<!-- dualfocus arguments -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == table(ModelOptions)


def test_the_rules_and_protocols_are_named():
    table = rows("Model arguments")
    assert [rule for rule in names(RULES) if f"`{rule}`" not in table["select"][1]] == []
    section = REFERENCE.partition("\n## Protocols\n")[2].partition("\n## ")[0]
    for protocol in PROTOCOLS.values():
        assert f"`{protocol.name}`" in section
        assert f"{protocol.locate_tokens} tokens" in section
        for wording in (protocol.prompts.locate, protocol.prompts.micro):
            assert f" {wording.partition('{')[0]}... |" in section


def test_every_command_is_listed():
    from dualfocus_lmms.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    assert {name.split()[1] for name in rows("Commands")} == known


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", README)
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_image_is_what_its_script_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = str(ROOT / "examples" / "illustration.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / "ask.png")])
    runpy.run_path(script, run_name="__main__")
    shipped = ROOT / "docs" / "images" / "ask.png"
    assert shipped.stat().st_size < 150_000
    from PIL import Image, ImageChops, ImageStat

    with Image.open(tmp_path / "ask.png") as drawn, Image.open(shipped) as committed:
        difference = ImageChops.difference(drawn.convert("L"), committed.convert("L"))
    assert ImageStat.Stat(difference).mean[0] < 1  # fonts are drawn alike, not to the pixel, everywhere
