"""The two passes of DualFocus over one batch of questions (section 3.4, figure 6, appendix C).

Each step takes a list and returns a list. Knows nothing about models beyond the `Backend` protocol, and
nothing about the host that calls it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.grounding import shifted
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.joint_rules import JointRule, Pair
from dualfocus_lmms.prompts import PROMPTS
from dualfocus_lmms.protocol import Protocol
from dualfocus_lmms.selection import select
from dualfocus_lmms.settings import NATIVE, Settings
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer, Backend, Fallback, JointScores, Keep, Pairing, Question, StopCriteria
from dualfocus_lmms.zoom import Rectangle


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """What was located: the crop, or the reason why none exists.

    shifted: the box that is cropped, None where it was not moved. reply: the text of the box in the
    conversation, None where the model generated it.
    """

    box: Box | None = None
    shifted: Box | None = None
    reply: str | None = None
    crop: Rectangle | None = None
    image: Image.Image | None = None
    fallback: Fallback | None = None


@dataclass(eq=False, slots=True)
class Sample:
    """A question with its results so far: at first the macro answer alone.

    It is done where its region has a fallback reason; the others need a second look.
    """

    question: Question
    limits: StopCriteria
    macro: Answer
    region: Region
    locate: Answer | None = None
    micro: Answer | None = None
    judged: JointScores | None = None

    @property
    def done(self) -> bool:
        return self.region.fallback is not None


def answer_batch(
    backend: Backend, questions: Sequence[Question], limits: Sequence[StopCriteria], settings: Settings
) -> list[Trace]:
    """Answer a batch: macro, then locate and micro where needed, then selection. One trace per question.

    limits bound the two answers; the locate reply has the protocol's own bound. The traces come in the order
    of the questions.

    A box that does not come from the model stands in the conversation as the reply to Q1, and nothing is
    generated for it. Moving a box changes the crop and no word of the conversation: the paper permutes the
    sub-region and does not mention a change of the reply.
    """
    try:
        samples = run_macro(backend, questions, limits, settings)
        if settings.may_skip:
            backend.forget(but=[sample.question.image for sample in samples if not sample.done])
        return run_zoom(backend, samples, settings)
    finally:
        backend.forget()


def run_macro(
    backend: Backend, questions: Sequence[Question], limits: Sequence[StopCriteria], settings: Settings
) -> list[Sample]:
    """The macro answers, in the order of the questions, and the skip gate. The backend keeps what the second
    look at the others will extend, until `forget`."""
    if len(questions) != len(limits):
        raise ValueError(f"Each question needs its limits: {len(questions)} questions, {len(limits)} limits.")
    settings = _worded(settings, backend)
    replies: Sequence[Answer | None] = [None] * len(questions)
    if isinstance(backend, Pairing) and _locates_all(settings):
        macros, replies = _pair(backend, questions, limits, settings)
    else:
        macros = _macro(backend, questions, limits, keep=settings.pathway == "both")
    both = settings.pathway == "both"
    reasons = [skip_reason(macro, settings) if both else Fallback.MACRO_ONLY for macro in macros]
    return [
        Sample(question, limit, macro, Region(fallback=reason), reply)
        for question, limit, macro, reason, reply in zip(
            questions, limits, macros, reasons, replies, strict=True
        )
    ]


def run_zoom(backend: Backend, samples: Sequence[Sample], settings: Settings) -> list[Trace]:
    """Locate and micro of those that are not done, then selection. One trace for each, in order.

    The results are written into the samples: where memory runs out, they can be run again in parts.
    """
    settings = _worded(settings, backend)
    unlocated = [sample for sample in samples if not sample.done and sample.region.crop is None]
    without_reply = [sample for sample in unlocated if sample.locate is None]
    for sample, reply in zip(without_reply, _locate(backend, without_reply, settings), strict=True):
        sample.locate = reply
    for sample in unlocated:
        sample.region = _zoom(backend, sample.question, sample.locate, settings)
    zoomed = [sample for sample in samples if not sample.done]
    for sample, (answer, judged) in zip(zoomed, _micro(backend, zoomed, settings), strict=True):
        sample.micro, sample.judged = answer, judged
    return [_trace(sample, settings) for sample in samples]


def _worded(settings: Settings, backend: Backend) -> Settings:
    """The settings with the model's own wording of Q1 where that is requested. UserError for what the model
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
            "prompts=native requests the region by the wording of the model's own training, and this "
            f"family has no such wording. Choose one of {', '.join(PROMPTS)}."
        )
    prompts = replace(settings.protocol.prompts, locate=backend.native_locate)
    return replace(settings, protocol=replace(settings.protocol, prompts=prompts))


def locate_prompt(question: Question, protocol: Protocol) -> str:
    """Q1: requests the region, with the bare question."""
    return protocol.prompts.locate.format(question=question.text)


def micro_prompt(question: Question, protocol: Protocol) -> str:
    """Q2: requests the answer, with the task's full prompt."""
    return protocol.prompts.micro.format(prompt=question.prompt)


def skip_reason(macro: Answer, settings: Settings) -> Fallback | None:
    """The skip gate (appendix C): SKIPPED where the macro answer is confident enough, else None."""
    return Fallback.SKIPPED if macro.confidence(settings.count_eos) > settings.skip_confidence else None


def perplexities(answers: Sequence[Answer], settings: Settings) -> dict[str, float]:
    """The perplexity of each answer by its pathway, never infinite."""
    return {answer.pathway: min(answer.ppl(settings.count_eos), 1e300) for answer in answers}


def _macro(
    backend: Backend, questions: Sequence[Question], limits: Sequence[StopCriteria], keep: bool
) -> list[Answer]:
    conversations = [_macro_conversation(question) for question in questions]
    return backend.generate("macro", conversations, limits, keep="image" if keep else None)


def _locate(backend: Backend, samples: Sequence[Sample], settings: Settings) -> Sequence[Answer | None]:
    """The model's replies to Q1; None for each where the model does not locate."""
    if not samples or settings.grounder is not None:
        return [None] * len(samples)
    conversations = [_locate_conversation(sample.question, settings) for sample in samples]
    limits = [StopCriteria(settings.protocol.locate_tokens)] * len(samples)
    keep: Keep = "conversation" if settings.subimage == "turn" else "image"
    return backend.generate("locate", conversations, limits, keep=keep)


def _locates_all(settings: Settings) -> bool:
    """Whether the model locates the region whatever the macro answer is, and continues from its reply."""
    return (
        settings.pathway == "both"
        and not settings.may_skip
        and settings.grounder is None
        and settings.subimage == "turn"
    )


def _pair(
    backend: Pairing, questions: Sequence[Question], limits: Sequence[StopCriteria], settings: Settings
) -> tuple[list[Answer], list[Answer]]:
    """The macro answers and the replies to Q1, generated at the same time."""
    macros = [_macro_conversation(question) for question in questions]
    locates = [_locate_conversation(question, settings) for question in questions]
    locate_limits = [StopCriteria(settings.protocol.locate_tokens)] * len(questions)
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
        return Region(fallback=Fallback.NO_BOX)
    moved = shifted(box, question, settings.box_shift) if settings.box_shift else None
    crop = settings.protocol.geometry(moved or box, size, settings.box_margin)
    if crop is None:
        return Region(box, moved, fallback=Fallback.EMPTY_REGION)
    text = form.write(box, size, resized) if reply is None else None
    return Region(box, moved, text, crop, question.image.crop(crop))


def _micro(
    backend: Backend, samples: Sequence[Sample], settings: Settings
) -> list[tuple[Answer, JointScores | None]]:
    """The micro answers, each with the scores of a `JointRule`, None for other rules."""
    if not samples:
        return []
    conversations = [_micro_conversation(sample, settings) for sample in samples]
    drafts = [sample.macro.tokens for sample in samples]
    answers = backend.generate("micro", conversations, [sample.limits for sample in samples], drafts=drafts)
    pairs = [
        Pair(sample.question, conversation, sample.macro, answer)
        for sample, conversation, answer in zip(samples, conversations, answers, strict=True)
    ]
    return list(zip(answers, _judge(backend, pairs, settings), strict=True))


def _judge(backend: Backend, pairs: Sequence[Pair], settings: Settings) -> Sequence[JointScores | None]:
    if not isinstance(settings.rule, JointRule):
        return [None] * len(pairs)
    started = time.perf_counter()
    judged = settings.rule.judge(settings.rule_name, backend, pairs)
    seconds = (time.perf_counter() - started) / len(pairs)
    return [replace(verdict, seconds=seconds) for verdict in judged]


def _micro_conversation(sample: Sample, settings: Settings) -> Conversation:
    """Image, Q1 and the box, then crop and Q2; or the macro question about the image with one more tile."""
    question, reply = sample.question, sample.locate
    crop: Image.Image = sample.region.image  # type: ignore[assignment]
    if settings.subimage == "patch":
        return Conversation().user(question.prompt, question.image, patches=(crop,))
    located = _locate_conversation(question, settings)
    turn = (sample.region.reply, None) if reply is None else (reply.text, reply.tokens)
    return located.assistant(*turn).user(micro_prompt(question, settings.protocol), crop)  # type: ignore[arg-type]


def _trace(sample: Sample, settings: Settings) -> Trace:
    question, macro, micro, region = sample.question, sample.macro, sample.micro, sample.region
    prompts = {"macro": question.prompt}
    if sample.locate is not None or micro is not None:  # the micro conversation opens with it
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
        image_hash=question.image_hash or image_hash(question.image),
        selection=select(settings.rule_name, settings.rule, macro, micro, settings.count_eos, sample.judged),
        macro=macro,
        locate=sample.locate,
        micro=micro,
        box=region.box.xyxy if region.box else None,
        crop=region.crop,
        fallback=region.fallback.value if region.fallback else None,
        ppl=perplexities(answers, settings),
        grounding=settings.grounding,
        given_reply=region.reply,
        box_shift=settings.box_shift,
        shifted_box=region.shifted.xyxy if region.shifted else None,
        judged=sample.judged,
    )
