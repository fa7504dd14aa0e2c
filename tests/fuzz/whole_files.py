"""The files that the fuzzer damages, small and whole, and how each is read."""

# ruff: noqa: E501 - tables of files

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fuzz import question_files, run_files, training_files
from fuzz.mutations import bent_text
from fuzz.small_files import SETTINGS, put

ARGUMENTS = {
    "dualfocus": "pretrained=nano,protocol=paper,select=ppl,skip_confidence=0.9,box_margin=3,count_eos=True,"
    "batch_size=auto,max_batch_size=8,box_shift=2,grounding=model,dtype=float32,device=cpu,trace=t,resume=True",
    "dualfocus_server": "base_url=http://localhost:1/v1,model=m,family=llava,concurrency=4,retries=2,timeout=3.5,"
    "guided_box=True,protocol=paper,skip_confidence=0.5",
    "dualfocus_replay": "trace=t,select=micro,skip_confidence=0.7,count_eos=False,second=u",
}


def arguments(folder: Path) -> None:
    from dualfocus_lmms.models.host.options import ModelOptions, parse_model_args
    from dualfocus_lmms.models.server.options import ServerOptions
    from dualfocus_lmms.replay import ReplayOptions

    (file,) = folder.iterdir()
    given = parse_model_args(file.read_bytes().decode("utf-8", "replace"))
    if file.name == "dualfocus_replay":
        ReplayOptions.of(given).settings(SETTINGS)
    else:
        kind = ModelOptions if file.name == "dualfocus" else ServerOptions
        kind.of(given).identity()


def readers(make: Callable[..., Any]) -> list[Any]:
    """All of them; weight is about what one reading costs."""
    return [
        *run_files.readers(make),
        *question_files.readers(make),
        *training_files.readers(make),
        *(
            make(f"model arguments of {name}", name, functools.partial(_write_arguments, {name: text}), arguments,
                   bent_text, 1.0, True)
            for name, text in ARGUMENTS.items()
        ),
    ]  # fmt: skip


def _write_arguments(given: Mapping[str, str], folder: Path) -> None:
    for name, text in given.items():
        put(folder / name, text)
