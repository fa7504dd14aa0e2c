"""DualFocus for lmms-eval: two looks at an image, the answer with the lower perplexity.

The public interface. Nothing here imports torch; models live in `dualfocus_lmms.models`.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from dualfocus_lmms._version import __version__
from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.conversation import Conversation, Turn
from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.family import Family
from dualfocus_lmms.flow import answer_batch
from dualfocus_lmms.prompts import bare_question
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer, Backend, Prompt, Question, Selection, StopCriteria, Usage
from dualfocus_lmms.zoom import DynamicResolution

__all__ = [
    "Answer",
    "Backend",
    "Box",
    "BoxFormat",
    "Conversation",
    "DualFocusModel",
    "DynamicResolution",
    "Family",
    "GenerationError",
    "Prompt",
    "Question",
    "Selection",
    "Settings",
    "StopCriteria",
    "Trace",
    "Turn",
    "Usage",
    "UserError",
    "__version__",
    "answer_batch",
    "bare_question",
    "read_traces",
]

if not Path(__file__).with_name("models").is_dir():
    raise ImportError(
        f"{Path(__file__).with_name('models')} is not a folder. It, tasks, train and results are symbolic "
        "links to the folders beside dualfocus_lmms/, which git did not make. Switch links on (Windows: with "
        "developer mode), check out and install again: git config core.symlinks true && "
        "git checkout -- dualfocus_lmms."
    )


# Loaded on first use: the top layer, which nothing below imports, and what needs NumPy.
_LATER = {"DualFocusModel": "dualfocus_lmms.api", "read_traces": "dualfocus_lmms.trace_folder"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
