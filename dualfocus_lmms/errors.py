"""The ways a run can stop. Knows nothing about how they are shown (see `cli`)."""


class UserError(Exception):
    """A mistake in what the user gave: shown as one message without a traceback, exit code 2.

    The message names the given value, the allowed ones and what to do next.
    """


class GenerationError(RuntimeError):
    """The model failed on a sample (NaN logits, for example). It stops the run and is never scored."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in work that can go on: the message says what is finished and how. Exit code 130."""


def choose(what: str, given: object, allowed: object) -> UserError:
    """The error for a value outside a closed set: `choose("protocol", "papr", ["paper", "release"])`."""
    names = ", ".join(str(name) for name in allowed)  # type: ignore[attr-defined]
    return UserError(f"Unknown {what} {given!r}: choose one of {names}.")
