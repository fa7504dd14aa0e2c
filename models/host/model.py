"""The lmms-eval model classes `dualfocus`: a chat and a simple adapter over one core.

lmms-eval --model dualfocus --model_args pretrained=CHECKPOINT --tasks df_pope
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, NoReturn

import torch
import transformers
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from dualfocus_lmms._version import __version__
from dualfocus_lmms.calibrated import CalibratedRule
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import set_up_pillow
from dualfocus_lmms.integrity import known_fingerprint, write_data
from dualfocus_lmms.models.checkpoint.loading import (
    family_of,
    fingerprint,
    load_checkpoint,
    torch_device,
    torch_dtype,
)
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.grounding.bind import bind_grounding
from dualfocus_lmms.models.host.options import ModelOptions, parse_model_args
from dualfocus_lmms.models.host.requests import ONLY_GENERATE_UNTIL, read_request
from dualfocus_lmms.models.run.runner import Runner, open_traces
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.text_output import log_patcher
from dualfocus_lmms.trace import Trace, TraceWriter, claim_folder, record_template
from dualfocus_lmms.types import Answer
from dualfocus_lmms.zoom import crop_pixels_done


@dataclass
class SampleExtras(TokenCounts):
    """The host's token counts with what DualFocus did, so that both reach the samples file of any task."""

    dualfocus: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace) -> SampleExtras:
        extras: dict[str, Any] = {
            "pathway": trace.selection.pathway,
            "margin": trace.selection.margin,
            "fallback": trace.fallback,
            "box": trace.box,
            "crop": trace.crop,
            "crop_size": trace.crop_size,
            "ppl": trace.ppl,
            "image_hash": trace.image_hash,
        }
        if trace.crops is not None:
            extras |= {"boxes": trace.boxes, "crops": trace.crops, "crop_sizes": trace.crop_sizes}
        if trace.looks is not None:
            extras["looks"] = [
                asdict(look) | {"locate": _text(look.locate), "micro": _text(look.micro)}
                for look in trace.looks
            ]
        stages = (trace.macro, trace.locate, trace.micro)
        extras.update((answer.pathway, answer.text) for answer in stages if answer is not None)
        return cls(
            input_tokens=sum(answer.usage.tokens for answer in trace.answers),
            output_tokens=sum(len(answer.logprobs) for answer in trace.answers),
            dualfocus=extras,
        )

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "dualfocus": self.dualfocus}


def _text(answer: Answer | None) -> str | None:
    return None if answer is None else answer.text


def check_unseen(
    settings: Settings, documents: Mapping[str, Mapping[str, Any]], asked: Iterable[tuple[str, str]]
) -> None:
    """UserError where a calibrated rule was fitted on the questions that are asked.

    documents: by task and split, as the host's `task_dict`. asked: tasks and their splits.
    """
    if isinstance(settings.rule, CalibratedRule):
        questions = {(task, split): known_fingerprint(documents[task][split]) for task, split in asked}
        settings.rule.check_unseen(settings.rule_name, questions)


class GenerateOnly(lmms):
    """Refuses what is no single question with a generated answer."""

    def __init__(self) -> None:
        super().__init__()
        logger.configure(patcher=log_patcher)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        raise UserError("DualFocus answers one question at a time: multi-round tasks are not supported.")

    def generate_visual_cot(self, requests: Sequence[Any]) -> NoReturn:
        raise UserError(ONLY_GENERATE_UNTIL)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        raise UserError(ONLY_GENERATE_UNTIL)


class Answering(GenerateOnly):
    """Answers with the `Runner` that a subclass makes, and records the questions in the trace folder."""

    is_simple = False
    _runner: Runner | None
    _trace_folder: str | None

    def __init__(self) -> None:
        super().__init__()
        set_up_pillow()  # the host makes the model first, and looks at each task's first document then
        self._asked: set[tuple[str, str]] = set()  # tasks and their splits

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        if self._runner is None:
            raise RuntimeError("This model was cleaned up by the host: make a new one.")
        read = [read_request(instance, self.task_dict, chat=not self.is_simple) for instance in requests]
        asked = {(request.key["task"], request.key["split"]) for request in read}
        check_unseen(self._runner.settings, self.task_dict, asked)
        self._asked |= asked
        traces = self._runner.run(read, show_progress=self._rank == 0)
        return [GenerationResult(trace.selection.text, SampleExtras.of(trace)) for trace in traces]

    def clean(self) -> None:
        """Free the model before the host scores; its judges may need the memory. All processes have written
        their traces by then, so that one of them can say what the data were."""
        self._runner = None
        if self._trace_folder is not None and self._rank == 0:
            documents = {f"{task}/{split}": self.task_dict[task][split] for task, split in self._asked}
            write_data(self._trace_folder, documents)
        super().clean()

    def _continue(self, folder: str, resume: bool) -> tuple[TraceWriter, list[Trace]]:
        """What this process writes to and what is finished, of a trace folder that was claimed."""
        writer, finished, damaged = open_traces(folder, self._rank, resume)
        for line in damaged:
            logger.warning(f"Unreadable trace, its sample is answered again: {line}")
        if resume:
            logger.info(f"Resuming {folder}: {len(finished)} samples are finished.")
        return writer, finished


class DualFocus(Answering):
    """Chat adapter. Model arguments: see `options.ModelOptions`."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        options = ModelOptions.of(given)
        settings = options.settings()
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if options.device_map is not None and self._world_size > 1:
            raise UserError(
                f"device_map=auto spreads one model over all GPUs, and each of {self._world_size} processes "
                "holds its own: start one process, or leave device_map out."
            )
        device = options.device
        if device is None or self._world_size > 1:
            device = str(self.accelerator.device)
        writer, finished = self._open_traces(options, device)
        self._trace_folder = options.trace
        checkpoint = load_checkpoint(
            options.pretrained,
            options.revision,
            options.dtype,
            None if options.device_map else device,
            options.attn_implementation,
            options.family,
            options.device_map,
            options.chat_template,
            options.min_pixels,
            options.max_pixels,
        )
        self.device = checkpoint.device
        backend = make_engine(options.engine, checkpoint, options.cuda_graphs)
        if options.trace is not None and backend.template is not None and self._rank == 0:
            record_template(options.trace, backend.template)
        settings = bind_grounding(settings, backend)
        self._runner = Runner(backend, settings, options.batch_size, writer, finished, options.max_batch_size)
        logger.info(f"DualFocus on {self.device}: {options.identity()}")

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> DualFocus:
        """As the host's, but `--model_args` wins over the host's own options of the same name."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**(given | parse_model_args(arg_string)))

    def _open_traces(self, options: ModelOptions, device: str) -> tuple[TraceWriter | None, list[Trace]]:
        if options.trace is None:
            return None, []
        if self._rank == 0:
            detector = options.settings().grounding_checkpoint
            family = family_of(options.pretrained, options.revision, options.family)
            identity = {
                **options.identity(),
                "crop_pixels": crop_pixels_done(options.settings().crop_pixels, family.resolution),
                "dtype": str(torch_dtype(options.dtype, torch_device(device))),
                "checkpoint": fingerprint(options.pretrained),
                "detector": fingerprint(detector) if detector else None,
                "versions": _versions(),
            }
            claim_folder(options.trace, identity, options.resume)
        self.accelerator.wait_for_everyone()
        return self._continue(options.trace, options.resume)


class DualFocusSimple(DualFocus):
    """Simple adapter, for tasks without messages (`--force_simple`)."""

    is_simple = True


def _versions() -> dict[str, str]:
    return {
        "dualfocus_lmms": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lmms_eval": version("lmms_eval"),
    }
