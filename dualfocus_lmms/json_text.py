"""Reading JSON: our own files, checked against the types that wrote them, and any other. Knows no file.

A damaged text raises ValueError in one line, whatever is wrong: where in the value, and what
was expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dualfocus_lmms.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

# Of the types below: numbers are finite and no texts, and every field is a known one.
STRICT: dict[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

LONGEST_LINE = 1 << 26  # bytes; a trace has some thousands
_SHOWN = 80  # characters of a value in a message
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


class Kind(Generic[T]):
    """A type (a dataclass, a TypedDict, dict[str, ...]) whose JSON is read; prepared at its first use."""

    def __init__(self, type_: Any) -> None:
        self._type = type_

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        from pydantic import TypeAdapter  # not with the package: it takes a tenth of a second

        return TypeAdapter(self._type)

    def parse(self, text: str | bytes) -> T:
        """The value of a JSON text, UTF-8. ValueError in one line where it is damaged or of another type."""
        from pydantic import ValidationError

        line = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        try:
            return self._adapter.validate_json(line)
        except ValidationError as error:
            damaged = error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid"
            if not damaged or not _HALF_CHARACTER.search(line):
                raise ValueError(_first(error)) from error
        try:  # a model can generate half a character, which pydantic's parser refuses
            return self._adapter.validate_python(load_json(line), strict=False)
        except ValidationError as error:
            raise ValueError(_first(error)) from error

    def read(self, path: Path, advice: str) -> T:
        """The value in a file. UserError that names the file and the fault, then `advice`, a sentence."""
        try:
            return self.parse(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). {advice}") from error


def _first(error: ValidationError) -> str:
    """The first fault of a value: where it is and what was expected."""
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    given = "" if fault["type"] in ("missing", "json_invalid") else f", got {fault['input']!r:.{_SHOWN}}"
    return f"{where}: {fault['msg']}{given}" if where else f"{fault['msg']}{given}"


def load_json(text: str | bytes) -> Any:
    """The value of any JSON text. ValueError where it is damaged, or nested deeper than Python goes."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Every line of a file that is not blank with its number, from 1 on; None for one above LONGEST_LINE.

    Raises OSError.
    """
    for number, _, line in placed_lines(path):
        yield number, line


def placed_lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """`lines`, each with the byte that it begins at after its number."""
    with path.open("rb") as file:
        number = end = 0
        while line := file.readline(LONGEST_LINE):
            start, end = end, end + len(line)
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while rest := file.readline(LONGEST_LINE):
                    end += len(rest)
                    if rest.endswith(b"\n"):
                        break
                yield number, start, None
            elif line.strip():
                yield number, start, line
