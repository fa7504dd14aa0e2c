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
from dualfocus_lmms.chat_client import (
    KEY,
    check_url,
    connect,
    has_password,
    public,
    read_json,
    server_errors,
)
from dualfocus_lmms.errors import GenerationError, UserError, choose
from dualfocus_lmms.family import Family
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.models.checkpoint.loading import fingerprint
from dualfocus_lmms.models.grounding.bind import bind_grounding
from dualfocus_lmms.models.host.model import Answering
from dualfocus_lmms.models.host.options import FlowOptions, known_values, parse_model_args
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.models.server.client import ServerBackend, answer_each
from dualfocus_lmms.models.server.images import InputSize, load_input_size
from dualfocus_lmms.plugins import FAMILIES, load_family, names
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.text_output import excerpt
from dualfocus_lmms.trace import Trace, TraceWriter, claim_folder

URL = "OPENAI_BASE_URL"
# Questions that the runner hands over at a time, for each that is under way. Only at the end of a batch are
# fewer under way than may be.
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(FlowOptions):
    """Everything a user can set with `--model_args`. None is the default of the protocol.

    base_url: of the server, with /v1; one with a password stands in $OPENAI_BASE_URL instead. model: its name
    there. family: of that model, which decides how a box is written and how images are sent. api_key: None is
    $OPENAI_API_KEY, where it is set. concurrency: questions, and requests, under way at once. retries: of a
    request that was refused (429), failed (5xx) or got no reply, with growing pauses. timeout: seconds from a
    request to the end of its reply. guided_box: the server forces the box's notation. processor: folder or
    hub name of the checkpoint, for its image processor alone, where the family's boxes refer to the resized
    image.
    """

    base_url: str = field(repr=False)
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
        if values.get("base_url"):
            values["base_url"] = str(values["base_url"])
            check_url(values["base_url"], "base_url")
            if has_password(values["base_url"]):
                raise UserError(
                    "base_url holds a user or a password, and lmms-eval writes model arguments into its "
                    f"results: export {URL}=http://USER:PASSWORD@HOST:PORT/v1 and leave base_url out."
                )
        elif os.environ.get(URL):
            values["base_url"] = os.environ[URL]
        for name in ("base_url", "model", "family"):
            if not values.get(name):
                raise UserError(
                    f"No {name}: give --model_args base_url=http://HOST:PORT/v1,model=NAME,family=FAMILY. "
                    f"NAME is what the server calls its model and FAMILY one of {', '.join(names(FAMILIES))}."
                )
        options = cls(**values)
        options._check()
        return options

    def _check(self) -> None:
        check_url(self.base_url, "base_url")
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
        client = connect(
            options.base_url,
            options.api_key or os.environ.get(KEY),
            options.retries,
            options.timeout,
        )
        family = load_family(options.family)
        backend = ServerBackend(
            client,
            options.model,
            family,
            options.guided_box,
            settings.count_eos,
            _input_size(options.processor, family),
        )
        settings = bind_grounding(settings, backend)
        detector = settings.grounding_checkpoint
        identity = options.identity() | {
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
        logger.info(f"DualFocus on {public(options.base_url)}: {identity}")

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
    url = public(str(client.base_url))
    try:
        with server_errors(client):
            reply = client.models.with_raw_response.list()
        listed = _models(read_json(reply.http_response, url), url)
    except GenerationError as error:
        raise UserError(f"No server that answers at base_url={url}: {error}") from error
    if model not in listed:
        raise choose("model on the server", model, sorted(map(excerpt, listed)))
    return listed[model]


def _models(reply: dict[str, Any], url: str) -> dict[str, str | None]:
    """What /models lists: the weights of each model by its name, None where they are not told."""
    entries = reply.get("data")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("id"), str)
        and isinstance(entry.get("root"), str | None)
        for entry in entries
    ):
        raise GenerationError(f"{url}/models lists no models: {excerpt(reply)}")
    return {entry["id"]: entry.get("root") for entry in entries}


def _input_size(processor: str | None, family: Family) -> InputSize | None:
    """How large the model sees an image, where the user says by which processor. UserError where the
    family's boxes do not refer to that."""
    if processor is None:
        return None
    if family.box_format.frame != "resized":
        raise UserError(
            f"processor={processor!r} tells to which size pictures are resized, and boxes of the family "
            f"{family.name!r} do not refer to that: leave it out."
        )
    return load_input_size(processor)


def _versions() -> dict[str, str]:
    return {"dualfocus_lmms": __version__, "lmms_eval": version("lmms_eval"), "openai": openai.__version__}
