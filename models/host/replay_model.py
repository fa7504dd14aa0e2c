"""The lmms-eval model `dualfocus_replay`: the answers of a finished run, chosen again. No weights are loaded.

lmms-eval --model dualfocus_replay --model_args trace=FOLDER,select=micro --tasks df_pope

It gives what the run would have given with other settings of its last step, or refuses. With two runs it
chooses between their macro answers, as the ensembles of the paper's table 8.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult
from loguru import logger

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.models.host.model import GenerateOnly, SampleExtras, check_unseen
from dualfocus_lmms.models.host.options import parse_model_args
from dualfocus_lmms.models.host.requests import read_request
from dualfocus_lmms.replay import Joined, Recorded, ReplayOptions, choose_again, find, find_second


class Replay(GenerateOnly):
    """Chat adapter. Model arguments: see `ReplayOptions`."""

    is_simple = False

    def __init__(self, **given: Any) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("A replay runs no model: start it as one process, without torchrun.")
        options = ReplayOptions.of(given)
        self._run = _recorded(options.trace)
        self._settings = options.settings(self._run.settings)
        self._second = None if options.second is None else _recorded(options.second)
        logger.info(
            f"Replay of {options.trace}{f' and {options.second}' if options.second else ''} with "
            f"select={self._settings.rule_name}, skip_confidence={self._settings.skip_confidence:g}, "
            f"count_eos={self._settings.count_eos}"
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Replay:
        """As the host's, without its batch size and device, which mean nothing here."""
        return cls(**parse_model_args(arg_string, ReplayOptions))

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        read = [read_request(instance, self.task_dict, chat=not self.is_simple) for instance in requests]
        asked = {(request.key["task"], request.key["split"]) for request in read}
        questions = {
            (task, split): questions_fingerprint(self.task_dict[task][split]) for task, split in sorted(asked)
        }
        check_unseen(self._settings, self.task_dict, asked)
        traces = find(self._run, [request.key for request in read], questions)
        if self._second is not None:
            seconds = find_second(self._second, traces, questions)
            traces = Joined(traces, seconds)
        chosen = choose_again(traces, self._settings)
        return [GenerationResult(trace.selection.text, SampleExtras.of(trace)) for trace in chosen]


class ReplaySimple(Replay):
    """Simple adapter, for tasks without messages (`--force_simple`)."""

    is_simple = True


def _recorded(folder: str) -> Recorded:
    run = Recorded.read(folder)
    for line in run.damaged:
        logger.warning(f"Unreadable trace in {folder}, its sample is missing: {line}")
    return run
