"""The lmms-eval model classes `dualfocus_server`: DualFocus on a model behind an OpenAI-compatible server.

lmms-eval --model dualfocus_server --model_args base_url=http://host:8000/v1,model=NAME,family=llava ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import openai
from loguru import logger
from pydantic import Field, field_validator

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
from dualfocus_lmms.models.host.options import FlowOptions, parse_model_args
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.models.server.client import ServerBackend, answer_each
from dualfocus_lmms.models.server.images import InputSize, load_input_size, load_resolution
from dualfocus_lmms.options import FamilyName, Folder, ImageBounds, Switch, Text, must_be, option
from dualfocus_lmms.plugins import FAMILIES, load_family, names
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.text_output import excerpt
from dualfocus_lmms.trace import Trace, TraceWriter, claim_folder
from dualfocus_lmms.zoom import (
    DynamicResolution,
    crop_pixels_done,
    given_bounds,
    needs_dynamic_resolution,
)

URL = "OPENAI_BASE_URL"
# Questions that the runner hands over at a time, for each that is under way. Only at the end of a batch are
# fewer under way than may be.
_BATCH = 8


class ServerOptions(ImageBounds, FlowOptions):
    """Everything a user can set with `--model_args`."""

    base_url: Text = option(
        decides=False,
        secret=True,
        help="of the server, with `/v1`. One with a user or a password is refused, since lmms-eval writes "
        "model arguments into its results: export `OPENAI_BASE_URL` and leave `base_url` out",
    )
    model: Text = option(help="the model's name there (`--served-model-name`, or what `/v1/models` lists)")
    family: FamilyName = option(
        help="the model's family, which a server does not report: how it writes a box, and how images are "
        "sent"
    )
    api_key: Text | None = option(
        None,
        unset="$OPENAI_API_KEY, if set",
        decides=False,
        secret=True,
        help="better in the environment: lmms-eval writes model arguments into its results",
    )
    concurrency: Annotated[int, Field(strict=True, ge=1), must_be("a whole number, 1 or more")] = option(
        16,
        decides=False,
        help="questions under way at the same time, each in its own stage, so at most this many "
        "requests are open",
    )
    retries: Annotated[int, Field(strict=True, ge=0), must_be("a whole number, 0 or more")] = option(
        6,
        decides=False,
        help="how often one request is repeated after 429, 5xx or no reply, after 0.5, 1, 2, 4, 8, 8 seconds "
        "or when the server says",
    )
    timeout: Annotated[float, Field(strict=True, gt=0), must_be("a number of seconds above 0")] = option(
        600.0, decides=False, help="seconds from a request to the end of its reply"
    )
    processor: Folder | None = option(
        None,
        checkpoint=True,
        help="folder or hub name of the checkpoint that the server runs, where boxes are [pixels of the "
        "resized image](#boxes-in-pixels-of-the-resized-image) and where [crops are enlarged](#the-zoom)",
    )
    guided_box: Switch = option(
        False,
        help="the server forces the reply to Q1 into the family's notation (vLLM from 0.11, SGLang). Such a "
        "reply is not the model's own",
    )

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        check_url(url, "base_url")
        return url

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ServerOptions:
        url = given.get("base_url")
        if url:
            check_url(str(url), "base_url")
        if url and has_password(str(url)):
            raise UserError(
                "base_url holds a user or a password, and lmms-eval writes model arguments into its "
                f"results: export {URL}=http://USER:PASSWORD@HOST:PORT/v1 and leave base_url out."
            )
        return super().of({**given, "base_url": url or os.environ.get(URL)})

    @classmethod
    def kind(cls) -> str:
        return "model argument of dualfocus_server"

    @classmethod
    def missing(cls, name: str) -> str:
        return (
            f"No {name}: give --model_args base_url=http://HOST:PORT/v1,model=NAME,family=FAMILY. "
            f"NAME is what the server calls its model and FAMILY one of {', '.join(names(FAMILIES))}."
        )

    def settings(self) -> Settings:
        """How DualFocus answers. UserError for what no server gives, and for what excludes each other."""
        settings = super().settings()
        if self.guided_box and settings.separate:
            raise UserError(
                "guided_box=True forces a reply of one box, and regions=separate is for replies of several: "
                "leave one of them out."
            )
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
        finished: Sequence[Trace] = ()
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
        return cls(**parse_model_args(arg_string, ServerOptions))


class ServerSimple(Server):
    """Simple adapter, for tasks without messages (`--force_simple`)."""

    is_simple = True


def served(client: openai.OpenAI, model: str) -> str | None:
    """The weights that the server reports for `model`; None where it reports none. UserError where there is
    no such server or model."""
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
    """How large the model sees an image, where its boxes refer to that and the user names the processor.
    UserError where nothing would use it."""
    if processor is None or (family.box_format.frame != "resized" and family.resolution is not None):
        return None
    if family.box_format.frame != "resized":
        raise UserError(
            f"processor={processor!r} gives the size of resized images, but neither boxes nor crops "
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
