"""Small libraries: pydantic that checks recipes and records, typer, loguru, tenacity."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Annotated, Any, Literal

import pytest

LookUp = Callable[[str], Any]


# --- pydantic ----------------------------------------------------------------------------------------------


def section(foreign: LookUp) -> Any:
    """A part of a recipe, as ours are written: a frozen dataclass with slots that forbids other keys."""
    fields: list[Any] = [
        ("path", str),
        ("every", Annotated[int, foreign("pydantic:Field")(ge=1)], 1),
        ("parts", tuple[str, ...], ()),
        ("kind", Literal["samples", "llava"], "samples"),
    ]
    forbid = foreign("pydantic:ConfigDict")(extra="forbid", arbitrary_types_allowed=True)
    return make_dataclass(
        "Section", fields, frozen=True, slots=True, namespace={"__pydantic_config__": forbid}
    )


def test_a_dataclass_is_made_of_plain_values(foreign: LookUp) -> None:
    """The recipes: lists of YAML become tuples, and the class itself comes out."""
    kind = section(foreign)
    made = foreign("pydantic:TypeAdapter")(kind).validate_python({"path": "p", "parts": ["a"]})
    assert made == kind("p", 1, ("a",), "samples"), "TypeAdapter(dataclass)"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"path": "p", "pth": 1}, "unexpected_keyword_argument"),
        ({}, "missing"),
        ({"path": "p", "kind": True}, "literal_error"),
    ],
)
def test_faults_have_these_names(foreign: LookUp, given: dict[str, Any], fault: str) -> None:
    """The recipes say of each fault what to do; under another name, the words would fit less, or a key that
    is misspelt would be taken."""
    with pytest.raises(foreign("pydantic:ValidationError")) as caught:
        foreign("pydantic:TypeAdapter")(section(foreign)).validate_python(given)
    (found,) = caught.value.errors()
    assert found["type"] == fault, "__pydantic_config__, the types of pydantic's errors"
    assert {"loc", "msg", "input"} <= found.keys(), "ValidationError.errors"
    assert isinstance(found["loc"], tuple), "ValidationError.errors"


def test_a_fault_says_where_it_is(foreign: LookUp) -> None:
    """The recipes: `data.0.every`, counted through lists."""
    with pytest.raises(foreign("pydantic:ValidationError")) as caught:
        foreign("pydantic:TypeAdapter")(tuple[section(foreign), ...]).validate_python(
            [{"path": "p", "every": 0}]
        )
    (found,) = caught.value.errors()
    assert found["loc"] == (0, "every"), "ValidationError.errors"


def test_numbers_that_are_none_are_refused(foreign: LookUp) -> None:
    """The records of the leaderboard: a score is never infinite, and nothing unknown is kept."""
    strict = foreign("pydantic:create_model")(
        "Strict", value=(float, ...), __config__={"extra": "forbid", "frozen": True, "allow_inf_nan": False}
    )
    for given in ({"value": float("inf")}, {"value": 1.0, "other": 2}):
        with pytest.raises(foreign("pydantic:ValidationError")):
            strict.model_validate(given)


# --- typer -------------------------------------------------------------------------------------------------


def test_a_command_can_pass_everything_on(foreign: LookUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dualfocus eval` reads nothing: options of the host, --help among them, come through in order."""
    app = foreign("typer:Typer")(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
    given: list[list[str]] = []
    passing = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    def evaluate(context: Any) -> None:
        given.append(context.args)
        raise foreign("typer:Exit")(3)

    evaluate.__annotations__["context"] = foreign("typer:Context")
    app.command("eval", context_settings=passing)(evaluate)
    app.command("other")(lambda: None)
    monkeypatch.setattr(sys, "argv", ["x", "eval", "--help", "--tasks", "t", "-n=2", "name=value"])
    with pytest.raises(SystemExit) as caught:
        app(prog_name="x")
    assert caught.value.code == 3, "typer.Exit"
    assert given == [["--help", "--tasks", "t", "-n=2", "name=value"]], "context_settings"


def test_an_error_of_our_own_leaves_the_command(foreign: LookUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line turns its own errors into exit codes and messages; typer must not show them."""

    class MistakeError(Exception):
        pass

    def fail() -> None:
        raise MistakeError

    app = foreign("typer:Typer")(pretty_exceptions_enable=False)
    assert app.command()(fail) is fail, "Typer.command gives the function itself back"
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(MistakeError):
        app(prog_name="x")


# --- loguru and tenacity -----------------------------------------------------------------------------------


def test_a_sink_gets_the_records_of_one_module(foreign: LookUp) -> None:
    """`dualfocus eval` listens to the host's writer of results, and to nothing else."""
    logger = foreign("loguru:logger")
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]), filter=__name__)
    other = logger.add(lambda message: said.append("other"), filter=f"{__name__}.other")
    try:
        logger.info("heard {}", 1)
    finally:
        logger.remove(sink)
        logger.remove(other)
    assert said == ["heard 1"], "logger.add(filter=<module>)"


def test_a_retry_that_gives_up_holds_its_last_attempt(foreign: LookUp) -> None:
    """`dualfocus eval` and `dualfocus score` find the user's mistake beneath the host's five tries."""

    @foreign("tenacity:retry")(stop=foreign("tenacity:stop_after_attempt")(1))
    def fail() -> None:
        raise KeyError("why")

    with pytest.raises(foreign("tenacity:RetryError")) as caught:
        fail()
    assert isinstance(caught.value.last_attempt.exception(), KeyError), "RetryError.last_attempt"
