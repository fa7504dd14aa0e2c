"""The lmms-eval model classes `dualfocus_server`: DualFocus on a model behind an OpenAI-compatible server.

lmms-eval --model dualfocus_server --model_args base_url=http://host:8000/v1,model=NAME,family=llava ...
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import openai
from loguru import logger

from dualfocus_lmms._version import __version__
from dualfocus_lmms.chat_client import (
    KEY,
    connect,
    public,
    read_json,
    server_errors,
)
from dualfocus_lmms.errors import GenerationError, UserError, choose
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.checkpoint.loading import fingerprint
from dualfocus_lmms.models.grounding.bind import bind_grounding
from dualfocus_lmms.models.host.model import Answering
from dualfocus_lmms.models.host.options import parse_model_args
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.models.server.client import ServerBackend, answer_each
from dualfocus_lmms.models.server.images import InputSize, load_input_size, load_resolution
from dualfocus_lmms.models.server.options import ServerOptions
from dualfocus_lmms.plugins import load_family
from dualfocus_lmms.text_output import excerpt
from dualfocus_lmms.trace import Trace, TraceWriter, claim_folder
from dualfocus_lmms.zoom import (
    DynamicResolution,
    crop_pixels_done,
    given_bounds,
    needs_dynamic_resolution,
)

# Questions that the runner hands over at a time, for each that is under way. Only at the end of a batch are
# fewer under way than may be.
_BATCH = 8


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
