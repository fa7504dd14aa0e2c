"""The lmms-eval model classes `dualfocus_server`: DualFocus on a model behind an OpenAI-compatible server.

lmms-eval --model dualfocus_server --model_args base_url=http://host:8000/v1,model=NAME,family=llava ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import openai
from loguru import logger

from dualfocus_lmms._version import __version__
from dualfocus_lmms.errors import GenerationError, UserError, choose
from dualfocus_lmms.family import Family
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.models.checkpoint.loading import fingerprint
from dualfocus_lmms.models.grounding.bind import bind_grounding
from dualfocus_lmms.models.host.model import Answering
from dualfocus_lmms.models.host.options import FlowOptions, known_values, parse_model_args
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.models.server.client import ServerBackend, answer_each, server_errors
from dualfocus_lmms.models.server.images import InputSize, load_input_size, load_resolution
from dualfocus_lmms.plugins import FAMILIES, load_family, names
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace, TraceWriter, claim_folder
from dualfocus_lmms.zoom import (
    DynamicResolution,
    crop_pixels_done,
    given_bounds,
    needs_dynamic_resolution,
)

KEY = "OPENAI_API_KEY"
# Questions that the runner hands over at a time, for each that is under way. Only at the end of a batch are
# fewer under way than may be.
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(FlowOptions):
    """Everything a user can set with `--model_args`. None is the default of the protocol.

    base_url: of the server, with /v1. model: its name there. family: of that model, which decides how a box
    is written and how images are sent. api_key: None is $OPENAI_API_KEY, where it is set. concurrency:
    questions, and requests, under way at once. retries: of a request that was refused (429), failed (5xx) or
    got no reply, with growing pauses. timeout: seconds to wait for a reply. guided_box: the server forces the
    box's notation. processor: folder or hub name of the checkpoint, for its image processor alone: where the
    family's boxes refer to the resized image, and where crops are enlarged by how large it is.
    """

    base_url: str
    model: str
    family: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    retries: int = 6
    timeout: float = 600.0
    guided_box: bool = False
    processor: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ServerOptions:
        """Options from what the user gave. UserError for an unknown name or an impossible value."""
        values = known_values(cls, given, "model argument of dualfocus_server")
        for name in ("base_url", "model", "family"):
            if not given.get(name):
                raise UserError(
                    f"No {name}: give --model_args base_url=http://HOST:PORT/v1,model=NAME,family=FAMILY. "
                    f"NAME is what the server calls its model and FAMILY one of {', '.join(names(FAMILIES))}."
                )
        options = cls(**values)
        options._check()
        return options

    def _check(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise UserError(f"base_url is {self.base_url!r}: give a URL such as http://localhost:8000/v1.")
        for name, least in (("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"{name} is a whole number, {least} or more, got {value!r}.")
        if type(self.timeout) not in (int, float) or not self.timeout > 0:
            raise UserError(f"timeout is a number of seconds above 0, got {self.timeout!r}.")
        if self.guided_box not in (True, False):
            raise UserError(f"guided_box is True or False, got {self.guided_box!r}.")
        self.check_traces()

    def settings(self) -> Settings:
        """How DualFocus answers, checked. UserError for a rule that needs what no server gives."""
        settings = FlowOptions.settings(self)
        if isinstance(settings.rule, JointRule):
            raise UserError(
                f"select={settings.rule_name} scores texts that the model has not generated, and a server "
                "scores only what it generates itself. Choose another rule, or use --model dualfocus."
            )
        return settings


class Server(Answering):
    """Chat adapter. Model arguments: see `ServerOptions`."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("One process keeps a server busy: give concurrency=..., and leave torchrun out.")
        options = ServerOptions.of(given)
        settings = options.settings()
        client = openai.OpenAI(
            base_url=options.base_url,
            api_key=options.api_key or os.environ.get(KEY) or "none",  # the client insists on one
            max_retries=options.retries,
            timeout=options.timeout,
        )
        family = load_family(options.family)
        resolution = _resolution(options, family)
        backend = ServerBackend(
            client,
            options.model,
            family,
            options.guided_box,
            settings.count_eos,
            _input_size(options.processor, family),
            resolution,
            resizes=options.min_pixels is not None or options.max_pixels is not None,
        )
        settings = bind_grounding(settings, backend)
        detector = settings.grounding_checkpoint
        identity = options.identity() | {
            "crop_pixels": crop_pixels_done(settings.crop_pixels, resolution),
            "checkpoint": served(client, options.model),
            "detector": fingerprint(detector) if detector else None,
            "image_processor": fingerprint(options.processor) if options.processor else None,
            "versions": _versions(),
        }
        writer: TraceWriter | None = None
        finished: list[Trace] = []
        self._trace_folder = options.trace
        if options.trace is not None:
            claim_folder(options.trace, identity, options.resume)
            writer, finished = self._continue(options.trace, options.resume)
        self._runner = Runner(
            backend,
            settings,
            _BATCH * options.concurrency,
            writer,
            finished,
            answerer=partial(answer_each, concurrency=options.concurrency),
        )
        logger.info(f"DualFocus on {options.base_url}: {identity}")

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Server:
        """As the host's, without its device; UserError for a batch size, which means nothing here."""
        size = (additional_config or {}).get("batch_size")
        if size not in (None, 1, "1"):
            raise UserError(f"--batch_size {size} means nothing to a server: give concurrency={size}.")
        return cls(**parse_model_args(arg_string))


class ServerSimple(Server):
    """Simple adapter, for tasks without messages (`--force_simple`)."""

    is_simple = True


def served(client: openai.OpenAI, model: str) -> str | None:
    """Which weights the server says `model` has; None where it does not say. UserError where there is no
    such server or model."""
    try:
        with server_errors(str(client.base_url)):
            listed = {entry.id: entry for entry in client.models.list()}
    except GenerationError as error:
        raise UserError(f"No server that answers at base_url={client.base_url}: {error}") from error
    if model not in listed:
        raise choose("model on the server", model, sorted(listed))
    return (listed[model].model_extra or {}).get("root")


def _input_size(processor: str | None, family: Family) -> InputSize | None:
    """How large the model sees an image, where its boxes refer to that and the user says by which processor.
    UserError where nothing would use it."""
    if processor is None or (family.box_format.frame != "resized" and family.resolution is not None):
        return None
    if family.box_format.frame != "resized":
        raise UserError(
            f"processor={processor!r} tells to which size images are resized, and neither boxes nor crops "
            f"of the family {family.name!r} depend on that: leave it out."
        )
    return load_input_size(processor)


def _resolution(options: ServerOptions, family: Family) -> DynamicResolution | None:
    """How images are resized: by the processor that the user names, else as the family's authors document it,
    within the user's bounds."""
    given = given_bounds(options.min_pixels, options.max_pixels)
    if family.resolution is None:
        if given:
            raise needs_dynamic_resolution(given)
        return None
    own = load_resolution(options.processor, family) if options.processor else family.resolution
    assert own is not None
    return own.within(options.min_pixels, options.max_pixels)


def _versions() -> dict[str, str]:
    return {"dualfocus_lmms": __version__, "lmms_eval": version("lmms_eval"), "openai": openai.__version__}
