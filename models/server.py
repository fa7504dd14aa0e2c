"""A `Backend` whose model runs behind an OpenAI-compatible server, such as vLLM or SGLang. No weights here.

The requests of one stage go out together. What the model said in an earlier stage goes back to it as text,
which the server tokenises anew: exact tokens cannot be handed back.
"""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from string import Formatter
from typing import Any, NoReturn

import openai
from PIL import Image

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.conversation import Conversation, Turn
from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.server_reply import read_reply
from dualfocus_lmms.types import Answer, Keep, Limits, Stage
from dualfocus_lmms.zoom import pad_to_square

CLIP_MEAN = (122, 116, 104)  # RGB: what LLaVA-1.5 fills a square with

# Not OpenAI's own; a server ignores the fields it does not know. A checkpoint's own repetition penalty would
# change which token is the likeliest. Token ids are for the traces.
_EXTRAS = {"repetition_penalty": 1.0, "return_token_ids": True}


class ServerBackend:
    """A model behind a server.

    client: repeats a request by itself when it was refused (429), failed (5xx) or got no reply. model: its
    name there. family: of that model. concurrency: requests under way at once. guided_box: the server forces
    the reply to Q1 into the family's notation. count_eos: the closing token will count, so it must be listed.
    """

    def __init__(
        self,
        client: openai.OpenAI,
        model: str,
        family: Family,
        concurrency: int = 16,
        guided_box: bool = False,
        count_eos: bool = False,
    ) -> None:
        if family.box_format.frame == "resized":
            raise UserError(
                f"Models of the family {family.name!r} write boxes in pixels of the resized picture, whose "
                "size no server tells. Load the checkpoint with --model dualfocus instead."
            )
        self.box_format = family.box_format
        self.native_locate = family.native_locate
        self.local_patches = False  # a server reads pictures, not tiles of one's own
        self._client = client
        self._model = model
        self._square = family.image == "square"
        self._concurrency = concurrency
        self._guide = box_pattern(family.box_format) if guided_box else None
        self._count_eos = count_eos
        self._urls: dict[int, tuple[Image.Image, str]] = {}  # by id, which a picture keeps while it is held

    def generate(
        self,
        stage: Stage,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
        keep: Keep | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
    ) -> list[Answer]:
        """See `Backend`. `keep` and `drafts` are ignored: pictures open every message, so that a server
        that caches prefixes finds them itself. UserError where the server refuses a request."""
        started = time.perf_counter()
        with ThreadPoolExecutor(self._concurrency) as pool:
            self._encode(pool, conversations)
            bodies = [self._body(stage, *row) for row in zip(conversations, limits, strict=True)]
            replies = list(pool.map(self._ask, bodies))
        seconds = (time.perf_counter() - started) / max(len(bodies), 1)
        answers = []
        for conversation, limit, reply in zip(conversations, limits, replies, strict=True):
            images = len(conversation.images)
            answer = read_reply(stage, reply, limit, self._count_eos, images, seconds)
            if stage == "locate":
                self._check_guided(answer)
            answers.append(answer)
        return answers

    def score(self, conversations: Sequence[Conversation]) -> NoReturn:
        """Always a UserError: a chat server gives the log-probabilities of what it generates, no others."""
        raise UserError(
            "This selection rule scores given texts, and a server scores only what it generates itself. "
            "Choose another with select=..., or load the checkpoint with --model dualfocus."
        )

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) in pixels; the families that refer to it are refused."""
        return image.size

    def forget(self) -> None:
        self._urls.clear()

    def _body(self, stage: Stage, conversation: Conversation, limits: Limits) -> dict[str, Any]:
        """The arguments of one request."""
        extra: dict[str, Any] = dict(_EXTRAS)
        if self._guide is not None and stage == "locate":  # vLLM reads the first, SGLang the second
            extra |= {"structured_outputs": {"regex": self._guide}, "regex": self._guide}
        body = {
            "model": self._model,
            "messages": [self._message(turn) for turn in conversation.turns],
            "max_tokens": limits.max_new_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 0,
            "extra_body": extra,
        }
        stops = [stop for stop in limits.stop if stop]
        return body | {"stop": stops} if stops else body

    def _message(self, turn: Turn) -> dict[str, Any]:
        """A turn with its pictures before its text. Always parts: some servers drop a plain text where the
        chat template expects parts."""
        pictures = [
            {"type": "image_url", "image_url": {"url": self._urls[id(image)][1]}} for image in turn.images
        ]
        return {"role": turn.role, "content": [*pictures, {"type": "text", "text": turn.text}]}

    def _encode(self, pool: ThreadPoolExecutor, conversations: Sequence[Conversation]) -> None:
        """Every picture that is new becomes a data URL, once."""
        images = {id(image): image for conversation in conversations for image in conversation.images}
        new = [image for key, image in images.items() if key not in self._urls]
        for image, url in zip(new, pool.map(self._data_url, new), strict=True):
            self._urls[id(image)] = (image, url)

    def _data_url(self, image: Image.Image) -> str:
        """A PNG, padded to a square here where the family says so: servers leave pictures to the checkpoint's
        own processor, and LLaVA-1.5's cuts the middle out of them."""
        picture = image.convert("RGB")
        if self._square:
            picture = pad_to_square(picture, CLIP_MEAN)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    def _ask(self, body: dict[str, Any]) -> Any:
        with server_errors(str(self._client.base_url)):
            return self._client.chat.completions.create(**body)

    def _check_guided(self, reply: Answer) -> None:
        """GenerationError where the server has not forced a reply that it was asked to force."""
        if self._guide is not None and reply.ended and not re.fullmatch(self._guide, reply.text):
            raise GenerationError(
                f"The server let the model say {reply.text[:80]!r} in spite of guided_box=True: it does not "
                "offer structured output by regular expression. Leave guided_box out."
            )


def box_pattern(box_format: BoxFormat) -> str:
    r"""A regular expression for what a family's notation can write, after a blank or none.

    >>> box_pattern(BoxFormat("[{:.2f}, {:d}]", scale=1))
    ' ?\\[[01]\\.\\d{2}, [01]\\]'
    """
    whole = "[01]" if box_format.scale == 1 else r"\d{1,4}"
    pattern = " ?"
    for text, field, spec, _ in Formatter().parse(box_format.template):
        pattern += re.sub(r"[][\\(){}.*+?|^$]", r"\\\g<0>", text)
        if field is not None:
            decimals = re.fullmatch(r"\.(\d+)f", spec or "")
            pattern += rf"{whole}\.\d{{{decimals[1]}}}" if decimals else whole
    return pattern


@contextmanager
def server_errors(url: str) -> Iterator[None]:
    """Errors of the client in our words: UserError where the server at `url` refuses, GenerationError where
    it fails or does not answer."""
    try:
        yield
    except openai.APIStatusError as error:
        said = f"{url} answered {error.status_code}: {error.message}"
        if error.status_code < 500 and error.status_code != 429:
            raise UserError(f"{said}. Check base_url (it ends with /v1), model, api_key.") from error
        raise GenerationError(f"{said}. It was asked again and again: see the server's log.") from error
    except (openai.APIError, json.JSONDecodeError) as error:
        why = error.__cause__ or error
        raise GenerationError(f"{url} gave no reply that can be read: {why}. Does the server run?") from error
