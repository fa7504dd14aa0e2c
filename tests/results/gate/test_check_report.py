"""What the gate reports: JUnit, the summary, exit codes, and the workflow in the documentation."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from gate_runs import GOOD, WORSE, WriteRun
from markdown_it import MarkdownIt
from typer.main import get_command

from dualfocus_lmms import cli
from dualfocus_lmms.results.baseline import Baseline
from dualfocus_lmms.results.gate.check import FLIPS_SHOWN, Check, check
from dualfocus_lmms.results.gate.report import junit, markdown
from dualfocus_lmms.results.runs import load_run


def test_junit_counts(checked: Callable[..., Check]) -> None:
    result = checked(WORSE[:999], max_drop=1.0)
    root = ElementTree.fromstring(junit(result))
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["run", "df_local"]
    for suite in root:
        assert int(suite.get("tests", "")) == len(suite.findall("testcase"))
        assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure"))
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    failed = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed == ["samples and data", "accuracy"]


def test_the_summary_has_every_comparison_and_flip(
    checked: Callable[..., Check], tmp_path: Path, baseline: Baseline
) -> None:
    text = markdown(checked(WORSE))
    (row,) = [line for line in text.splitlines() if line.startswith("| df_local")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["df_local", "accuracy", "60.00", "57.00", "-3.00"]
    assert cells[6:] == ["1.9e-09", "McNemar", "**fails**: significant"]
    assert "below 0.05" in text
    assert "--max-drop" not in text
    bound = markdown(check(load_run(tmp_path / "new"), baseline, 1.0, 0.0))
    assert "**fails**: above --max-drop" in bound
    assert "corrected p" not in bound
    flips = [line for line in text.splitlines() if "no \\| maybe" in line]  # the bar would end the cell
    assert len(flips) == FLIPS_SHOWN


def test_hostile_answers_are_text_in_the_summary_and_in_junit(checked: Callable[..., Check]) -> None:
    texts = [
        "<script>alert(1)</script> ![x](http://e.x/a.png)",
        "a | b\n\n# c",
        "[x](http://e.x) \x1b[31m `y",
    ]
    result = checked(WORSE)
    (task,) = result.tasks
    named = replace(task, task="<b>task|`", failures=(f"lacks {texts[0]}", "1. \n- item"))
    flips = (replace(task.flips[0], question=texts[0], target=texts[1], answer=texts[2]),)
    result = replace(result, run="<img src=x> ![y](z)", tasks=(replace(named, flips=flips),), new=("<b>",))
    page = MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(markdown(result))
    children = [child for block in page for child in block.children or []]
    own = {"text", "text_special", "softbreak", "strong_open", "strong_close"}
    assert {child.type for child in children} <= own
    assert not {block.type for block in page} & {"html_block", "fence", "code_block", "hr"}
    seen = ["".join(child.content for child in block.children or []) for block in page]
    assert [text.replace("\u2060", "") for text in seen if "alert" in text][-1] == texts[0]
    assert sum(block.type == "tr_open" for block in page) == 2 * 2
    root = ElementTree.fromstring(junit(result).encode())
    assert "<script>" in "".join(str(element.get("message")) for element in root.iter("failure"))


def test_exit_codes(tmp_path: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object) -> object:
        monkeypatch.setattr(sys, "argv", ["dualfocus", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0

    good, worse = write_run(tmp_path / "good", GOOD), write_run(tmp_path / "worse", WORSE)
    base = tmp_path / "kept" / "baseline.json"
    assert run(good, "--baseline", base) == 2  # there is none yet
    assert run(good, "--baseline", base, "--update") == 0
    assert run(good, "--baseline", base) == 0
    assert run(worse, "--baseline", base, "--junit", tmp_path / "j.xml", "--summary", tmp_path / "s.md") == 1
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    assert (tmp_path / "s.md").read_text().count("\n") > 10
    assert run(worse, "--baseline", base, "--max-drop", 5, "--alpha", 0) == 0
    assert run(tmp_path / "nowhere", "--baseline", base) == 2


def test_the_workflow_in_the_documentation_runs_what_there_is() -> None:
    """Its YAML is whole, actions are pinned by major version, and the commands take the options they get."""
    text = (Path(__file__).parents[3] / "docs" / "ci.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    steps = workflow["jobs"]["check"]["steps"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    (command,) = [step["run"] for step in steps if "dualfocus check" in step.get("run", "")]
    known = {option for item in get_command(cli.app).commands["check"].params for option in item.opts}
    assert {word for word in command.split() if word.startswith("--")} <= known
    (command,) = [step["run"] for step in steps if "dualfocus eval" in step.get("run", "")]
    assert {"--log_samples", "--output_path"} <= set(command.split())
