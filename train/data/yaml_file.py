"""Reading the YAML files of a user: recipes and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dualfocus_lmms.errors import UserError


def read_yaml(path: Path, what: str) -> Any:
    """The value of a YAML file. UserError where it cannot be read; what: names it, "The recipe"."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # a date that no calendar has is a ValueError
        raise UserError(f"{what} {str(path)!r} cannot be read: {error}.") from error
    except (
        RecursionError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
    ) as error:  # of the library's readers
        why = "it is nested too deep" if isinstance(error, RecursionError) else repr(error)
        raise UserError(f"{what} {str(path)!r} cannot be read: {why}.") from error
