"""The ways a run can stop. Knows nothing about how they are shown (see `cli`)."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave: shown as one message without a traceback, exit code 2.

    The message names the given value, the allowed ones and what to do next.
    """


class GenerationError(RuntimeError):
    """The model failed on a sample (NaN logits, for example). It stops the run and is never scored."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in work that can be resumed: the message tells what is done and how to resume. Exit code 130."""


def choose(what: str, given: object, allowed: Iterable[object]) -> UserError:
    """The error for a value outside a closed set: `choose("protocol", "papr", ["paper", "release"])`.

    It names the nearest of the allowed values where one is near.
    """
    names = [str(name) for name in allowed]
    return UserError(
        f"Unknown {what} {given!r}: choose one of {', '.join(names)}.{did_you_mean(given, names)}"
    )


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """ " Did you mean NAME?" for the nearest of the names, to end a message; "" where none is near."""
    near = get_close_matches(str(given), list(names), 1)
    return f" Did you mean {near[0]}?" if near else ""
