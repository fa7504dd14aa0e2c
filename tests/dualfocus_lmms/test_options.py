"""One declaration of every option: what Python, the command line and the model arguments make of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, NoReturn, get_type_hints

import pytest
import typer

from dualfocus_lmms import DualFocusModel, Settings, UserError
from dualfocus_lmms.cli import app
from dualfocus_lmms.errors import choose
from dualfocus_lmms.options import Keywords, Options, SettingOptions, unset
from dualfocus_lmms.options_text import plain, table
from dualfocus_lmms.testing import FakeBackend

OTHERS = {
    "protocol": "release",
    "pathway": "macro",
    "select": "micro",
    "skip_confidence": 0.5,
    "box_margin": 3,
    "count_eos": False,
    "grounding": "center",
    "box_shift": 7,
    "prompts": "figure8",
    "subimage": "patch",
    "crop_pixels": "auto",
}


def defaults(options: type[Options]) -> dict[str, Any]:
    """Every option with its default; a required one has none."""
    return {
        name: Parameter.empty if field.is_required() else field.default
        for name, field in options.model_fields.items()
    }


@pytest.mark.parametrize(
    ("function", "options", "besides"),
    [
        (DualFocusModel.__init__, Keywords, {"self"}),
        (DualFocusModel.on, SettingOptions, {"backend"}),
        (Settings.of, SettingOptions, set()),
    ],
)
def test_the_keywords_are_the_options(
    function: Callable[..., Any], options: type[Options], besides: set[str]
) -> None:
    parameters = signature(function).parameters
    found = {name: item.default for name, item in parameters.items() if name not in besides | {"unknown"}}
    assert found == defaults(options)
    assert (parameters["unknown"].kind, get_type_hints(function)["unknown"]) == (
        Parameter.VAR_KEYWORD,
        NoReturn,  # a type checker refuses any other keyword
    )


def test_every_keyword_arrives() -> None:
    others = {"grounding_checkpoint", "regions", "looks", "keep_maps"}
    assert set(SettingOptions.model_fields) - set(OTHERS) == others
    model = DualFocusModel.on(FakeBackend({}), **OTHERS)  # type: ignore[arg-type]
    assert model.settings.to_dict() == OTHERS | {"grounding_checkpoint": None, "regions": "union", "looks": 1}
    assert DualFocusModel.on(FakeBackend({}), regions="separate").settings.separate
    assert DualFocusModel.on(FakeBackend({}), looks=3).settings.looks == 3
    kept = Settings.of(grounding="attention", keep_maps=True)
    assert (kept.keep_maps, kept.to_dict()) == (True, Settings.of(grounding="attention").to_dict())
    detector = Settings.of(grounding="dino", grounding_checkpoint="some/detector")
    assert (detector.grounding, detector.grounding_checkpoint) == ("dino", "some/detector")


@pytest.mark.parametrize(
    "make",
    [
        lambda **given: DualFocusModel("none", **given),
        lambda **given: DualFocusModel.on(FakeBackend({}), **given),
        Settings.of,
    ],
)
def test_a_misspelt_keyword_is_a_users_mistake_with_the_nearest_name(make: Callable[..., Any]) -> None:
    with pytest.raises(UserError) as caught:
        make(skip_confidences=0.5)
    assert "'skip_confidences'" in str(caught.value)
    assert str(caught.value).endswith("Did you mean skip_confidence?")


@pytest.mark.parametrize("command", ["ask", "bench"])
def test_the_flags_are_the_options(command: str) -> None:
    parameters = {item.name: item for item in typer.main.get_command(app).commands[command].params}
    shared = set(parameters) & set(Keywords.model_fields)
    if command == "bench":  # its defaults are random weights of a size
        shared -= {"pretrained", "family", "engine", "cuda_graphs"}
    assert shared >= {"device", "dtype"}
    for name in shared:
        field, flag = Keywords.model_fields[name], parameters[name]
        assert flag.help == plain(field.description)
        assert flag.required is field.is_required()
        if not flag.required:
            assert flag.default == field.default
        if not flag.required and field.default is None:
            assert flag.show_default == unset(field)


def test_all_mistakes_of_a_call_are_named() -> None:
    with pytest.raises(UserError) as caught:
        SettingOptions.of({"box_margin": -1, "protocol": "papr", "colour": "red", "count_eos": 1})
    named = ("'papr'", "box_margin", "count_eos", "'colour'")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert [word for word in named if not any(word in line for line in lines)] == []


def test_a_required_option_that_is_empty_is_missing() -> None:
    for given in ({}, {"pretrained": ""}, {"pretrained": None}):
        with pytest.raises(UserError, match="pretrained is missing"):
            Keywords.of(given)


def test_options_are_frozen_and_a_text_stays_a_text() -> None:
    made = Keywords.of({"pretrained": 7, "revision": 1e3, "cuda_graphs": 1})
    assert (made.pretrained, made.revision, made.cuda_graphs) == ("7", "1000.0", True)
    with pytest.raises(ValueError, match="frozen"):
        made.pretrained = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("`paper` or `release`: [what](#it) is. More.", "paper or release: what is."),
        ("folder of [it](docs/a.md)", "Folder of it."),
        ("`eager`, `sdpa`, ...", "eager, sdpa, ..."),
    ],
)
def test_a_description_on_the_command_line(description: str, expected: str) -> None:
    assert plain(description) == expected


def test_every_option_is_described_and_has_a_row() -> None:
    assert [name for name, field in Keywords.model_fields.items() if not field.description] == []
    rows = table(Keywords, without=["dtype"]).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [name for name in Keywords.model_fields if name != "dtype"]


def test_the_nearest_name_is_offered_where_one_is_near() -> None:
    assert str(choose("size", "tiney", ["tiny", "7b"])) == (
        "Unknown size 'tiney': choose one of tiny, 7b. Did you mean tiny?"
    )
    assert "Did you mean" not in str(choose("size", "huge", ["tiny", "7b"]))


def test_the_package_is_loaded_without_pydantic_and_without_numpy() -> None:
    """Both are slow to load, and the package is loaded before lmms-eval knows what it is asked for."""
    code = (
        "import sys, dualfocus_lmms; print([m for m in ('pydantic', 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
