"""`dualfocus reproduce`: from a checkpoint in the original format to the table, and resumed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from original_llava import Original, save_original

from dualfocus_lmms.cli import reproduce

pytestmark = pytest.mark.seconds(50)
NAME = "DualFocus-LLaVA-1.5-7B"


@pytest.fixture
def command(paper_folder: Path, tmp_path: Path, run_command, monkeypatch: pytest.MonkeyPatch):
    """Runs `dualfocus reproduce` on a random checkpoint; its evaluations run in this process too."""
    checkpoint = save_original(tmp_path / NAME, Original())
    evaluations: list[list[str]] = []

    def here(command: list[str], check: bool) -> SimpleNamespace:
        assert command[:3] == [sys.executable, "-m", "dualfocus_lmms"]
        evaluations.append(command[3:])
        done = run_command("dualfocus", *command[3:])
        print(done.stdout, done.stderr)
        return SimpleNamespace(returncode=done.returncode)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=here))

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        arguments = (str(checkpoint), "--out", str(tmp_path / "out"), "--batch-size", "4", *options)
        return run_command("dualfocus", "reproduce", *arguments)

    run.evaluations = evaluations
    return run


def test_from_the_original_checkpoint_to_the_table(command, tmp_path: Path):
    done = command()
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    assert (out / "checkpoint" / "conversion.json").is_file()
    with (out / "reproduction.csv").open(encoding="utf-8") as file:
        rows = {
            (row["protocol"], row["task"], row["metric"], row["answers"]): row for row in csv.DictReader(file)
        }
    printed = {key: float(row["published"]) for key, row in rows.items() if row["published"]}
    release = {key[1]: value for key, value in printed.items() if key[0] == "release"}
    assert release == {
        "df_seed_image": 68.9, "df_mmbench_en_dev": 66.8, "df_gqa_star": 69.4, "df_textvqa_val_ocr": 62.3,
    }  # fmt: skip
    assert printed["paper", "df_seed_image", "accuracy", "macro"] == 66.7
    assert printed["paper", "df_textvqa_val_ocr", "accuracy", "micro"] == 61.3
    assert ("release", "df_pope_random", "f1", "selected") in rows
    for (protocol, task, metric, answers), row in rows.items():
        (results,) = (out / protocol).rglob("*_results.json")
        if answers == "selected":
            scored = json.loads(results.read_text())["results"][task][f"{metric},none"]
            assert float(row["value"]) == pytest.approx(scored)

    before = list(command.evaluations)
    assert [words[words.index("--output_path") + 1] for words in before] == [
        str(out / "release"),
        str(out / "paper"),
    ]
    assert command().returncode == 0
    assert command.evaluations == before  # nothing runs again
    refused = command("--limit", "1")
    assert refused.returncode == 2
    assert "limit" in refused.stderr


def test_a_name_that_is_no_published_model(run_command, tmp_path: Path):
    done = run_command("dualfocus", "reproduce", "mine", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "LLaVA-1.5-7B" in done.stderr
    assert not (tmp_path / "out").exists()
