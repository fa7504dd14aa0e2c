"""No call of transformers may ask whether to run a checkpoint's code: on a terminal, "y" would run it."""

from __future__ import annotations

import ast

import pytest
from rooms import modules

SAFE = ("trust_remote_code", False)


def unsafe(source: str) -> list[int]:
    """Lines where an Auto* class loads something without `trust_remote_code=False`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        and ast.unparse(node.func.value).rpartition(".")[2].startswith("Auto")
        and SAFE not in [(word.arg, getattr(word.value, "value", None)) for word in node.keywords]
    ]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("AutoModel.from_pretrained(x)", [1]),
        ("\ntransformers.AutoConfig.from_pretrained(x, trust_remote_code=True)", [2]),
        ("AutoModel.from_pretrained(x, trust_remote_code=given)", [1]),
        ("AutoModel.from_pretrained(x, trust_remote_code=False)", []),
        ("CLIPVisionConfig.from_pretrained(x)", []),
    ],
)
def test_the_rule_itself(source: str, lines: list[int]) -> None:
    assert unsafe(source) == lines


def test_every_call_says_that_no_code_of_a_checkpoint_runs() -> None:
    sources = {name: file.read_text("utf-8") for name, file in modules().items()}
    calls = sum(source.count("from_pretrained(") for source in sources.values())
    assert calls > 15
    assert {name: lines for name, source in sources.items() if (lines := unsafe(source))} == {}


def test_no_file_of_pickles_is_loaded_with_its_code() -> None:
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load"):
                given = [(word.arg, getattr(word.value, "value", None)) for word in node.keywords]
                assert ("weights_only", True) in given, (name, node.lineno)
