"""What the commands print: text that a terminal shows and does not obey (`text_output.terminal`)."""

from __future__ import annotations

import sys

from dualfocus_lmms.text_output import log_patcher, terminal


def show(text: object, end: str = "\n", error: bool = False) -> None:
    """Print a text, to standard error where `error` is true."""
    print(terminal(str(text)), end=end, file=sys.stderr if error else sys.stdout, flush=True)


def progress(text: str) -> None:
    """Say on a terminal what is being done; nothing where standard error goes elsewhere."""
    if sys.stderr.isatty():
        show(text, error=True)


def warnings_only() -> None:
    """Log warnings and errors alone, to standard error; the host's own command line does the same."""
    from loguru import logger

    logger.remove()
    logger.configure(patcher=log_patcher)
    logger.add(sys.stderr, level="WARNING")
