"""A `Backend` whose model runs behind an OpenAI-compatible server, such as vLLM or SGLang. No weights here.

Each question goes through its stages by itself, many of them at the same time. What the model said in an
earlier stage goes back to it as text, which the server tokenises anew: exact tokens cannot be handed back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from string import Formatter
from threading import Lock
from typing import Any, NoReturn

import openai
from PIL import Image

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.chat_client import public, read_json, server_errors
from dualfocus_lmms.conversation import Conversation, Turn
from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.family import Family
from dualfocus_lmms.flow import answer_batch
from dualfocus_lmms.grounding import Grounded, Grounder
from dualfocus_lmms.models.server.images import DataUrls, InputSize
from dualfocus_lmms.models.server.reply import Source, read_reply
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.text_output import excerpt
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer, Backend, Prompt, Question, Stage, StopCriteria, TemplateChoice
from dualfocus_lmms.zoom import DynamicResolution

# Not OpenAI's own; a server ignores the fields it does not know. A checkpoint's own repetition penalty would
# change which token is the likeliest. Token ids are for the traces.
_EXTRAS = {"repetition_penalty": 1.0, "return_token_ids": True}


class ServerBackend:
    """A model behind a server. Threads may share it: see `answer_each`.

    client: repeats a request by itself when it was refused (429), failed (5xx) or got no reply. model: its
    name there. family: of that model. guided_box: the server forces the reply to Q1 into the family's
    notation. count_eos: the closing token will count, so it must be listed. input_size: how large the model
    sees an image, for families whose boxes refer to that. resolution: how the server resizes images, None is
    as the family's authors document it. resizes: images are resized so before they are sent.
    """

    def __init__(
        self,
        client: openai.OpenAI,
        model: str,
        family: Family,
        guided_box: bool = False,
        count_eos: bool = False,
        input_size: InputSize | None = None,
        resolution: DynamicResolution | None = None,
        resizes: bool = False,
    ) -> None:
        if family.box_format.frame == "resized" and input_size is None:
            raise UserError(
                f"Models of the family {family.name!r} write boxes in pixels of the resized image, whose "
                "size no server reports. Give processor=<folder or hub name of the server's "
                "checkpoint>: its image processor gives it, and no weights are loaded."
            )
        self.box_format = family.box_format
        self.template: TemplateChoice | None = TemplateChoice(None, "server")
        self.native_locate = family.native_locate
        self.local_patches = False  # a server reads images, not tiles of one's own
        self.resolution: DynamicResolution | None = resolution or family.resolution
        self._client = client
        self._model = model
        self._guide = box_pattern(family.box_format) if guided_box else None
        self._count_eos = count_eos
        self._input_size = input_size
        self._resizes = self.resolution if resizes else None
        self._url = DataUrls(family.image == "square", self._resizes)
        self._clock = SharedClock()

    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See `Backend`. One request after the other. What is kept and drafts are ignored: images open every
        message, so that a server that caches prefixes finds them itself. UserError where the server refuses a
        request."""
        return [self._answer(prompt.stage, prompt.conversation, prompt.limits) for prompt in prompts]

    def score(self, conversations: Sequence[Conversation]) -> NoReturn:
        """Always a UserError: a chat server gives the log-probabilities of what it generates, no others."""
        raise UserError(
            "This selection rule scores given texts, and a server scores only what it generates itself. "
            "Choose another with select=..., or load the checkpoint with --model dualfocus."
        )

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) in pixels of `image` as the model sees it, where its family's boxes refer to it."""
        if self._resizes is not None:
            return self._resizes.fit(image.size)
        return image.size if self._input_size is None else self._input_size(image)

    def forget(self, but: Sequence[Image.Image] = ()) -> None:
        """Nothing: the URL of an image goes with the image, which other threads may show meanwhile."""

    def _answer(self, stage: Stage, conversation: Conversation, limits: StopCriteria) -> Answer:
        body = self._body(stage, conversation, limits)
        with self._clock.share() as seconds, server_errors(self._client):
            raw = self._client.chat.completions.with_raw_response.create(**body)
        source = Source(public(str(self._client.base_url)), stage)
        reply = read_json(raw.http_response, source.url)
        images = len(conversation.images)
        answer = read_reply(source, reply, limits, self._count_eos, images, seconds())
        if stage == "locate":
            self._check_guided(answer)
        return answer

    def _body(self, stage: Stage, conversation: Conversation, limits: StopCriteria) -> dict[str, Any]:
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
        """A turn with its images before its text. Always parts: some servers drop a plain text where the
        chat template expects parts."""
        images = [{"type": "image_url", "image_url": {"url": self._url(image)}} for image in turn.images]
        return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}

    def _check_guided(self, reply: Answer) -> None:
        """GenerationError where the server has not forced a reply that it was asked to force."""
        if self._guide is not None and reply.ended and not re.fullmatch(self._guide, reply.text):
            raise GenerationError(
                f"The server let the model say {excerpt(reply.text, 80)!r} in spite of guided_box=True: "
                "it does not offer structured output by regular expression. Leave guided_box out."
            )


def answer_each(
    backend: Backend,
    questions: Sequence[Question],
    limits: Sequence[StopCriteria],
    settings: Settings,
    concurrency: int = 16,
) -> Iterator[Trace]:
    """Answer questions on threads, each on its own through all stages, `concurrency` of them at a time.

    The traces come as they are done. After an error no question is begun; those under way come to their end,
    and then the first error is raised, as it was. A grounder gets one question at a time.
    """
    if settings.grounder is not None:
        settings = replace(settings, grounder=_one_at_a_time(settings.grounder))
    for question in questions:
        question.image.load()  # an image that two questions share must not be read on two threads
    failures: list[Exception] = []

    def answer(question: Question, limit: StopCriteria) -> list[Trace]:
        if failures:
            return []
        try:
            return answer_batch(backend, [question], [limit], settings)
        except Exception as error:
            failures.append(error)
            return []

    pool = ThreadPoolExecutor(concurrency)
    try:
        rows = [pool.submit(answer, *row) for row in zip(questions, limits, strict=True)]
        for row in as_completed(rows):
            yield from row.result()
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        raise failures[0]


def _one_at_a_time(grounder: Grounder) -> Grounder:
    lock = Lock()

    def ground(question: Question) -> Grounded:
        with lock:
            return grounder(question)

    return ground


class SharedClock:
    """Time shared equally among what runs at the same time, so that all shares add up to the time itself."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running = 0
        self._since = 0.0
        self._share = 0.0  # of one that has run from the beginning

    @contextmanager
    def share(self) -> Iterator[Callable[[], float]]:
        """with clock.share() as seconds: ...; seconds() is the share of what ran in there."""
        begun = self._change(+1)
        ended = begun
        try:
            yield lambda: ended - begun
        finally:
            ended = self._change(-1)

    def _change(self, by: int) -> float:
        """One more or one less runs from now on; the share so far."""
        with self._lock:
            now = time.perf_counter()
            if self._running:
                self._share += (now - self._since) / self._running
            self._running, self._since = self._running + by, now
            return self._share


def box_pattern(box_format: BoxFormat) -> str:
    r"""A regular expression for what a family's notation can write, after a blank or none.

    >>> box_pattern(BoxFormat("[{:.2f}, {:d}]", scale=1))
    ' ?\\[[01]\\.\\d{2}, [01]\\]'
    """
    pixels = box_format.frame == "resized"
    whole = "[01]" if box_format.scale == 1 and not pixels else rf"\d{{1,{5 if pixels else 4}}}"
    pattern = " ?"
    for text, field, spec, _ in Formatter().parse(box_format.template):
        pattern += re.sub(r"[][\\(){}.*+?|^$]", r"\\\g<0>", text)
        if field is not None:
            decimals = re.fullmatch(r"\.(\d+)f", spec or "")
            pattern += rf"{whole}\.\d{{{decimals[1]}}}" if decimals else whole
    return pattern
