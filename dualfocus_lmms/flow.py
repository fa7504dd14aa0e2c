"""The two passes of DualFocus over one batch of questions (section 3.4, figure 6, appendix C).

Each step takes a list and returns a list. Knows nothing about models beyond the `Backend` protocol, and
nothing about the host that asks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from dualfocus_lmms.boxes import NO_BOX, Box
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.grounding import shifted
from dualfocus_lmms.judging import JointRule, Pair
from dualfocus_lmms.prompts import PROMPTS
from dualfocus_lmms.protocol import Protocol
from dualfocus_lmms.selection import select
from dualfocus_lmms.settings import NATIVE, Settings
from dualfocus_lmms.trace import Trace, image_hash
from dualfocus_lmms.types import Answer, Backend, Judged, Keep, Limits, Pairing, Question
from dualfocus_lmms.zoom import EMPTY_REGION, Rectangle

SKIPPED = "skip_confidence"  # fallback reason: the macro answer was certain enough (appendix C)
MACRO_ONLY = "pathway_macro"  # fallback reason: only the baseline was asked for


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """What was located: a crop to look at, or the reason why there is none.

    shifted: the box that is cropped, None where it was not moved. reply: how the box is said to the model,
    None where the model said it itself.
    """

    box: Box | None = None
    shifted: Box | None = None
    reply: str | None = None
    crop: Rectangle | None = None
    picture: Image.Image | None = None
    fallback: str | None = None


@dataclass(eq=False, slots=True)
class Look:
    """A question on its way, and what came of it so far: at first the macro answer alone.

    It is done where its region has a fallback reason; the others need a second look.
    """

    question: Question
    limits: Limits
    macro: Answer
    region: Region
    locate: Answer | None = None
    micro: Answer | None = None
    judged: Judged | None = None

    @property
    def done(self) -> bool:
        return self.region.fallback is not None


def answer_batch(
    backend: Backend, questions: Sequence[Question], limits: Sequence[Limits], settings: Settings
) -> list[Trace]:
    """Answer a batch: macro, then locate and micro where needed, then selection. One trace per question.

    limits bound the two answers; the locate reply has the protocol's own bound. The traces come in the order
    of the questions.

    A box that does not come from the model stands in the conversation as if the model had said it, and
    nothing is generated for it. Moving a box changes what is cropped and no word of the conversation: the
    paper permutes the sub-region and does not say that the reply would change with it.
    """
    try:
        looks = first_look(backend, questions, limits, settings)
        if settings.may_skip:
            backend.forget(but=[look.question.image for look in looks if not look.done])
        return second_look(backend, looks, settings)
    finally:
        backend.forget()


def first_look(
    backend: Backend, questions: Sequence[Question], limits: Sequence[Limits], settings: Settings
) -> list[Look]:
    """The macro answers, in the order of the questions, and the skip gate. The backend keeps what the second
    look at the others will extend, until it is told to forget it."""
    if len(questions) != len(limits):
        raise ValueError(f"Each question needs its limits: {len(questions)} questions, {len(limits)} limits.")
    settings = _worded(settings, backend)
    replies: Sequence[Answer | None] = [None] * len(questions)
    if isinstance(backend, Pairing) and _asks_both(settings):
        macros, replies = _pair(backend, questions, limits, settings)
    else:
        macros = _macro(backend, questions, limits, keep=settings.pathway == "both")
    reasons = [skip_reason(macro, settings) if settings.pathway == "both" else MACRO_ONLY for macro in macros]
    return [
        Look(question, limit, macro, Region(fallback=reason), reply)
        for question, limit, macro, reason, reply in zip(
            questions, limits, macros, reasons, replies, strict=True
        )
    ]


def second_look(backend: Backend, looks: Sequence[Look], settings: Settings) -> list[Trace]:
    """Locate and micro of those that are not done, then selection. One trace for each, in order.

    What is found is written into the looks: where memory runs out, they can be looked at again in parts.
    """
    settings = _worded(settings, backend)
    unlocated = [look for look in looks if not look.done and look.region.crop is None]
    unasked = [look for look in unlocated if look.locate is None]
    for look, reply in zip(unasked, _locate(backend, unasked, settings), strict=True):
        look.locate = reply
    for look in unlocated:
        look.region = _zoom(backend, look.question, look.locate, settings)
    zoomed = [look for look in looks if not look.done]
    for look, (answer, judged) in zip(zoomed, _micro(backend, zoomed, settings), strict=True):
        look.micro, look.judged = answer, judged
    return [_trace(look, settings) for look in looks]


def _worded(settings: Settings, backend: Backend) -> Settings:
    """The settings with the model's own wording of Q1 where that is asked for. UserError for what the model
    cannot do."""
    if settings.subimage == "patch" and not backend.local_patches:
        raise UserError(
            "subimage=patch adds the crop to the tiles of the image, and this model's family has no tiles. "
            "Leave subimage out, or take a model such as LLaVA-NeXT or LLaVA-OneVision."
        )
    if settings.prompts != NATIVE:
        return settings
    if backend.native_locate is None:
        raise UserError(
            "prompts=native asks for the region as the model's family was trained to be asked, and this "
            f"family has no such wording. Choose one of {', '.join(PROMPTS)}."
        )
    prompts = replace(settings.protocol.prompts, locate=backend.native_locate)
    return replace(settings, protocol=replace(settings.protocol, prompts=prompts))


def locate_prompt(question: Question, protocol: Protocol) -> str:
    """Q1: asks for the region, with the bare question."""
    return protocol.prompts.locate.format(question=question.text)


def micro_prompt(question: Question, protocol: Protocol) -> str:
    """Q2: asks for the answer, with the task's full prompt."""
    return protocol.prompts.micro.format(prompt=question.prompt)


def skip_reason(macro: Answer, settings: Settings) -> str | None:
    """The skip gate (appendix C): SKIPPED where the macro answer is certain enough, else None."""
    return SKIPPED if macro.confidence(settings.count_eos) > settings.skip_confidence else None


def perplexities(answers: Sequence[Answer], settings: Settings) -> dict[str, float]:
    """The perplexity of each answer by its pathway, never infinite."""
    return {answer.pathway: min(answer.ppl(settings.count_eos), 1e300) for answer in answers}


def _macro(
    backend: Backend, questions: Sequence[Question], limits: Sequence[Limits], keep: bool
) -> list[Answer]:
    conversations = [_macro_conversation(question) for question in questions]
    return backend.generate("macro", conversations, limits, keep="image" if keep else None)


def _locate(backend: Backend, looks: Sequence[Look], settings: Settings) -> Sequence[Answer | None]:
    """The model's replies to Q1; None for each where it is not asked."""
    if not looks or settings.grounder is not None:
        return [None] * len(looks)
    conversations = [_locate_conversation(look.question, settings) for look in looks]
    limits = [Limits(settings.protocol.locate_tokens)] * len(looks)
    keep: Keep = "conversation" if settings.subimage == "turn" else "image"
    return backend.generate("locate", conversations, limits, keep=keep)


def _asks_both(settings: Settings) -> bool:
    """Whether the model is asked for the region whatever the macro answer is, and goes on from its reply."""
    return (
        settings.pathway == "both"
        and not settings.may_skip
        and settings.grounder is None
        and settings.subimage == "turn"
    )


def _pair(
    backend: Pairing, questions: Sequence[Question], limits: Sequence[Limits], settings: Settings
) -> tuple[list[Answer], list[Answer]]:
    """The macro answers and the replies to Q1, said at the same time."""
    macros = [_macro_conversation(question) for question in questions]
    locates = [_locate_conversation(question, settings) for question in questions]
    locate_limits = [Limits(settings.protocol.locate_tokens)] * len(questions)
    return backend.generate_pair(macros, limits, locates, locate_limits)


def _macro_conversation(question: Question) -> Conversation:
    return Conversation().user(question.prompt, question.image)


def _locate_conversation(question: Question, settings: Settings) -> Conversation:
    return Conversation().user(locate_prompt(question, settings.protocol), question.image)


def _zoom(backend: Backend, question: Question, reply: Answer | None, settings: Settings) -> Region:
    size = question.image.size
    form = backend.box_format
    resized = backend.input_size(question.image) if form.frame == "resized" else None
    box = settings.grounder(question) if reply is None else form.read(reply.text, size, resized)  # type: ignore[misc]
    if box is None:
        return Region(fallback=NO_BOX)
    moved = shifted(box, question, settings.box_shift) if settings.box_shift else None
    crop = settings.protocol.geometry(moved or box, size, settings.box_margin)
    if crop is None:
        return Region(box, moved, fallback=EMPTY_REGION)
    said = form.write(box, size, resized) if reply is None else None
    return Region(box, moved, said, crop, question.image.crop(crop))


def _micro(backend: Backend, looks: Sequence[Look], settings: Settings) -> list[tuple[Answer, Judged | None]]:
    """The micro answers, each with what the rule compares where that is not the answers as they are."""
    if not looks:
        return []
    asked = [_micro_conversation(look, settings) for look in looks]
    drafts = [look.macro.tokens for look in looks]
    answers = backend.generate("micro", asked, [look.limits for look in looks], drafts=drafts)
    pairs = [
        Pair(look.question, conversation, look.macro, answer)
        for look, conversation, answer in zip(looks, asked, answers, strict=True)
    ]
    return list(zip(answers, _judge(backend, pairs, settings), strict=True))


def _judge(backend: Backend, pairs: Sequence[Pair], settings: Settings) -> Sequence[Judged | None]:
    if not isinstance(settings.rule, JointRule):
        return [None] * len(pairs)
    started = time.perf_counter()
    judged = settings.rule.judge(settings.rule_name, backend, pairs)
    seconds = (time.perf_counter() - started) / len(pairs)
    return [replace(verdict, seconds=seconds) for verdict in judged]


def _micro_conversation(look: Look, settings: Settings) -> Conversation:
    """Image, Q1 and the box, then crop and Q2; or the macro question about the image with one more tile."""
    question, reply = look.question, look.locate
    crop: Image.Image = look.region.picture  # type: ignore[assignment]
    if settings.subimage == "patch":
        return Conversation().user(question.prompt, question.image, patches=(crop,))
    asked = _locate_conversation(question, settings)
    said = (look.region.reply, None) if reply is None else (reply.text, reply.tokens)
    return asked.assistant(*said).user(micro_prompt(question, settings.protocol), crop)  # type: ignore[arg-type]


def _trace(look: Look, settings: Settings) -> Trace:
    question, macro, micro, region = look.question, look.macro, look.micro, look.region
    prompts = {"macro": question.prompt}
    if look.locate is not None or micro is not None:  # the micro conversation opens with it
        prompts["locate"] = locate_prompt(question, settings.protocol)
    if micro is not None:
        turn = settings.subimage == "turn"
        prompts["micro"] = micro_prompt(question, settings.protocol) if turn else question.prompt
    answers = [answer for answer in (macro, micro) if answer is not None]
    return Trace(
        key=question.key or {"id": question.id},
        question_id=question.id,
        prompts=prompts,
        image_size=question.image.size,
        image_hash=image_hash(question.image),
        selection=select(settings.rule_name, settings.rule, macro, micro, settings.count_eos, look.judged),
        macro=macro,
        locate=look.locate,
        micro=micro,
        box=region.box.xyxy if region.box else None,
        crop=region.crop,
        fallback=region.fallback,
        ppl=perplexities(answers, settings),
        grounding=settings.grounding,
        given_reply=region.reply,
        box_shift=settings.box_shift,
        shifted_box=region.shifted.xyxy if region.shifted else None,
        judged=look.judged,
    )


def with_key(question: Question, **key: Any) -> Question:
    """A copy of `question` whose trace is found by `key`."""
    return replace(question, key=key)
