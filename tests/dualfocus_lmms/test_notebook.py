"""Traces in a notebook, and the notebook in examples/, whose cells are carried out."""

from __future__ import annotations

import ast
import json
import re
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import DualFocusModel, Trace, notebook
from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.testing import FakeBackend, Reply

SCRIPT = {"macro": Reply("<b>red", (-0.7,)), "locate": "[0.25, 0.25, 0.50, 0.75]", "micro": "blue"}
EXAMPLE = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if in a notebook."""
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    yield
    notebook._images.clear()


def ask(color: str = "red") -> Trace:
    return DualFocusModel.on(FakeBackend(SCRIPT)).ask(Image.new("RGB", (40, 20), color), "What?")


def test_a_trace_is_its_drawing(inside: None):
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', ask()._repr_html_())
    with Image.open(BytesIO(b64decode(data))) as drawn:
        assert min(drawn.size) > 300


def test_the_attention_that_a_trace_keeps_is_on_its_drawing(inside: None):
    kept = replace(ask(), attention=AttentionMap.of(Image.new("F", (2, 2)), (0.0, 0.0, 1.0, 1.0)))
    assert "<img" in kept._repr_html_() != ask()._repr_html_()


def test_a_trace_without_its_image_is_a_table():
    shown = ask()._repr_html_()
    assert notebook._images == {}
    assert re.findall(r"<td>(.*?)</td>", shown) == [
        "macro",
        "&lt;b&gt;red",
        "2.014",
        "micro (chosen)",
        "blue",
        "1.105",
    ]


def test_the_last_images_are_kept(inside: None):
    traces = [ask(f"rgb({number}, 0, 0)") for number in range(notebook.MOST_IMAGES + 1)]
    assert len(notebook._images) == notebook.MOST_IMAGES
    assert "<table>" in traces[0]._repr_html_()
    assert "<img" in traces[1]._repr_html_()


def test_a_trace_and_a_model_are_one_short_line():
    assert repr(ask()) == "Trace('0': 'blue', micro)"
    assert (
        repr(DualFocusModel.on(FakeBackend(SCRIPT)))
        == "DualFocusModel(FakeBackend, protocol=paper, select=ppl)"
    )


def test_the_example_runs(inside: None, capsys: pytest.CaptureFixture[str]):
    """Each cell in turn; the value of its last line is what the notebook shows."""
    pytest.importorskip("torch")
    names: dict[str, Any] = {}
    shown = [value for source in cells() if (value := carry_out(source, names)) is not None]
    (trace,) = [value for value in shown if isinstance(value, Trace)]
    assert trace.micro is not None
    assert "<img" in trace._repr_html_()
    assert len(shown[-1]) == len(names["scene"].questions)
    assert "Did you mean protocol?" in capsys.readouterr().out


def cells() -> list[str]:
    document = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


def carry_out(source: str, names: dict[str, Any]) -> Any:
    """The value of the last line of a cell, None where it is no expression."""
    *body, last = ast.parse(source).body
    value = last if isinstance(last, ast.Expr) else None
    exec(compile(ast.Module([*body, *([] if value else [last])], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(value.value), "cell", "eval"), names) if value else None
