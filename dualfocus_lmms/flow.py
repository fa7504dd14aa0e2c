"""The two passes of DualFocus over one batch of questions (section 3.4, figure 6, appendix C).

Each step takes a list and returns a list. Knows nothing about models beyond the `Backend` protocol, and
nothing about the host that calls it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from dualfocus_lmms.boxes import PADDING, Box, BoxFormat, distinct, in_reading_order
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.grounding import Attended, Grounded, shifted
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.joint_rules import JointRule, Pair
from dualfocus_lmms.prompts import MOST_REGIONS, PROMPTS
from dualfocus_lmms.protocol import Protocol
from dualfocus_lmms.sample import Region, Sample
from dualfocus_lmms.selection import select
from dualfocus_lmms.settings import NATIVE, Settings
from dualfocus_lmms.trace import Look, Trace
from dualfocus_lmms.types import (
    Answer,
    Backend,
    Fallback,
    JointScores,
    Keep,
    Prompt,
    Question,
    StopCriteria,
)
from dualfocus_lmms.zoom import DynamicResolution, Rectangle, check_crops, zoomed


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
    prompts = [_macro_prompt(*row, settings) for row in zip(questions, limits, strict=True)]
    if _always_locates(settings):
        prompts += [_locate_prompt(question, settings) for question in questions]
    answers = backend.generate(prompts)
    macros = answers[: len(questions)]
    replies: Sequence[Answer | None] = answers[len(questions) :] or [None] * len(questions)
    both = settings.pathway == "both"
    reasons = [skip_reason(macro, settings) if both else Fallback.MACRO_ONLY for macro in macros]
    return [
        Sample(question, limit, macro, reply, outcome=reason)
        for question, limit, macro, reason, reply in zip(
            questions, limits, macros, reasons, replies, strict=True
        )
    ]


def run_zoom(backend: Backend, samples: Sequence[Sample], settings: Settings) -> list[Trace]:
    """Locate and micro of those that are not done, then selection. One trace for each, in order.

    The results are written into the samples: where memory runs out, they can be run again in parts.
    """
    settings = _worded(settings, backend)
    unlocated = [sample for sample in samples if sample.outcome is None]
    without_reply = [sample for sample in unlocated if sample.locate is None]
    for sample, reply in zip(without_reply, _locate(backend, without_reply, settings), strict=True):
        sample.locate = reply
    for sample in unlocated:
        _zoom(backend, sample, settings)
    zoomed = [(sample, sample.outcome) for sample in samples if isinstance(sample.outcome, Region)]
    for (sample, _), (answer, judged) in zip(zoomed, _micro(backend, zoomed, settings), strict=True):
        sample.micro, sample.judged = answer, judged
    _look_further(backend, [sample for sample, _ in zoomed], settings)
    return [_trace(sample, settings, backend) for sample in samples]


def _look_further(backend: Backend, samples: Sequence[Sample], settings: Settings) -> None:
    """Locate in the crop and look at that, settings.looks times in all at most, while the perplexity falls.

    A look that locates nothing, or all of what it looks at, is the last one and has no answer.
    """
    for sample in samples:
        sample.further = []
    for _ in range(settings.looks - 1):
        looks = []
        for sample in samples:
            last = sample.looks[-1]
            if last.micro is not None and last.micro.nll(settings.count_eos) < last.macro.nll(
                settings.count_eos
            ):
                sample.further.append(last.further_look())
                looks.append(sample.further[-1])
        for look, reply in zip(looks, _locate(backend, looks, settings), strict=True):
            look.locate = reply
            _zoom(backend, look, settings)
        zoomed = [
            (look, look.outcome)
            for look in looks
            if isinstance(look.outcome, Region)
            and look.before
            and look.outcome.crops != look.before.region.crops
        ]
        for (look, _), (answer, _) in zip(zoomed, _micro(backend, zoomed, settings), strict=True):
            look.micro = answer


def _worded(settings: Settings, backend: Backend) -> Settings:
    """The settings with the model's own wording of Q1 where that is requested. UserError for what the model
    cannot do."""
    if settings.subimage == "patch" and not backend.local_patches:
        raise UserError(
            "subimage=patch adds the crop to the tiles of the image, and this model's family has no tiles. "
            "Leave subimage out, or take a model such as LLaVA-NeXT or LLaVA-OneVision."
        )
    check_crops(settings.crop_pixels, backend.resolution)
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


def micro_prompt(question: Question, protocol: Protocol, crops: int = 1) -> str:
    """Q2: requests the answer, with the task's full prompt; `crops` crops are shown with it."""
    return protocol.prompts.micro_for(crops).format(prompt=question.prompt)


def skip_reason(macro: Answer, settings: Settings) -> Fallback | None:
    """The skip gate (appendix C): SKIPPED where the macro answer is confident enough, else None."""
    return Fallback.SKIPPED if macro.confidence(settings.count_eos) > settings.skip_confidence else None


def perplexities(answers: Sequence[Answer], settings: Settings) -> dict[str, float]:
    """The perplexity of each answer by its pathway, never infinite."""
    return {answer.pathway: min(answer.ppl(settings.count_eos), 1e300) for answer in answers}


def _macro_prompt(question: Question, limits: StopCriteria, settings: Settings) -> Prompt:
    keep: Keep | None = "image" if settings.pathway == "both" else None
    return Prompt("macro", Conversation().user(question.prompt, question.image), limits, keep)


def _always_locates(settings: Settings) -> bool:
    """Whether the model locates a region whatever its macro answer is."""
    return settings.pathway == "both" and not settings.may_skip and settings.grounder is None


def _locate_prompt(question: Question, settings: Settings) -> Prompt:
    keep: Keep = "conversation" if settings.subimage == "turn" else "image"
    limits = StopCriteria(settings.protocol.locate_tokens * (MOST_REGIONS if settings.separate else 1))
    return Prompt("locate", _locate_conversation(question, settings), limits, keep)


def _locate(backend: Backend, samples: Sequence[Sample], settings: Settings) -> Sequence[Answer | None]:
    """The model's replies to Q1; None for each where the model does not locate."""
    if not samples or settings.grounder is not None:
        return [None] * len(samples)
    return backend.generate([_locate_prompt(sample.question, settings) for sample in samples])


def _locate_conversation(question: Question, settings: Settings) -> Conversation:
    return Conversation().user(locate_prompt(question, settings.protocol), question.image)


def _zoom(backend: Backend, sample: Sample, settings: Settings) -> None:
    """Set a sample's boxes and its outcome."""
    image, whole, form = sample.question.image, sample.original, backend.box_format
    resized = backend.input_size(image) if form.frame == "resized" else None
    _set_boxes(form, sample, settings, resized)
    if sample.before is not None:
        (crop,) = sample.before.region.crops
        edges = (value / side for value, side in zip(crop, whole.size * 2, strict=True))
        sample.boxes = tuple(box.within(Box(*edges)) for box in sample.boxes)
    if not sample.boxes:
        sample.outcome = Fallback.NO_BOX
        return
    if settings.box_shift:
        sample.shifted = shifted(sample.boxes[0], sample.question, settings.box_shift)
    padding = PADDING if settings.separate else 0
    shown = (sample.shifted,) if sample.shifted else [box.grown(padding) for box in sample.boxes]
    crops = [settings.protocol.geometry(box, whole.size, settings.box_margin) for box in shown]
    found = tuple(crop for crop in crops if crop is not None)
    if len(found) < len(crops):
        sample.outcome = Fallback.EMPTY_REGION
        return
    reply = sample.locate or form.write_all(sample.boxes, image.size, resized)
    sample.outcome = Region(found, tuple(_seen(backend, whole, crop, settings) for crop in found), reply)


def _set_boxes(form: BoxFormat, sample: Sample, settings: Settings, resized: tuple[int, int] | None) -> None:
    """Set what a grounding or the reply to Q1 locates: one box or none; with regions=separate the first
    MOST_REGIONS that are apart, in reading order. One without area is left out where another has some."""
    read = form.read_all if settings.separate else form.read
    found: Grounded = None
    if settings.grounder is not None:
        found = settings.grounder(sample.question)
    elif sample.locate is not None:
        found = read(sample.locate.text, sample.question.image.size, resized)
    if isinstance(found, Attended):
        sample.attention = found.map
        found = found.box
    boxes = [found] if isinstance(found, Box) else [*(found or ())]
    if settings.separate:
        visible = [box for box in boxes if box.clip().area > 0]
        boxes = in_reading_order(distinct(visible or boxes)[:MOST_REGIONS])
    sample.boxes = tuple(boxes)


def _seen(backend: Backend, image: Image.Image, crop: Rectangle, settings: Settings) -> Image.Image:
    """A crop of the image as the model gets it (eq. 3)."""
    return zoomed(image.crop(crop), image.size, settings.crop_pixels, backend.resolution)


def _micro(
    backend: Backend, zoomed: Sequence[tuple[Sample, Region]], settings: Settings
) -> list[tuple[Answer, JointScores | None]]:
    """The micro answers, each with the scores of a `JointRule`, None for other rules."""
    if not zoomed:
        return []
    conversations = [_micro_conversation(*looked, settings) for looked in zoomed]
    rows = [(sample, conversation) for (sample, _), conversation in zip(zoomed, conversations, strict=True)]
    answers = backend.generate(
        [
            Prompt("micro", conversation, sample.limits, draft=sample.macro.tokens)
            for sample, conversation in rows
        ]
    )
    pairs = [
        Pair(sample.question, conversation, sample.macro, answer)
        for (sample, conversation), answer in zip(rows, answers, strict=True)
    ]
    return list(zip(answers, _judge(backend, pairs, settings), strict=True))


def _judge(backend: Backend, pairs: Sequence[Pair], settings: Settings) -> Sequence[JointScores | None]:
    if not isinstance(settings.rule, JointRule):
        return [None] * len(pairs)
    started = time.perf_counter()
    judged = settings.rule.judge(settings.rule_name, backend, pairs)
    seconds = (time.perf_counter() - started) / len(pairs)
    return [replace(verdict, seconds=seconds) for verdict in judged]


def _micro_conversation(sample: Sample, region: Region, settings: Settings) -> Conversation:
    """Image, Q1 and the box, then crop and Q2; or the macro question about the image with one more tile.

    With regions=separate there may be several boxes and as many crops.
    """
    question, reply = sample.question, region.reply
    if settings.subimage == "patch":
        return Conversation().user(question.prompt, question.image, patches=region.images)
    located = _locate_conversation(question, settings)
    turn = (reply, None) if isinstance(reply, str) else (reply.text, reply.tokens)
    prompt = micro_prompt(question, settings.protocol, len(region.images))
    return located.assistant(*turn).user(prompt, *region.images)


def _trace(first: Sample, settings: Settings, backend: Backend) -> Trace:
    """The trace of a sample; of several looks, with what was located and answered in the best one."""
    template, resolution = backend.template, backend.resolution
    sample = first.best(settings.count_eos)
    question, macro, micro = first.question, first.macro, sample.micro
    region = sample.outcome if isinstance(sample.outcome, Region) else None
    crops, seen = (region.crops, region.images) if region else ((), ())
    sizes = tuple(resolution.fit(image.size) for image in seen) if resolution else ()
    prompts = {"macro": question.prompt}
    if sample.locate is not None or micro is not None:  # the micro conversation opens with it
        prompts["locate"] = locate_prompt(question, settings.protocol)
    if micro is not None:
        turn = settings.subimage == "turn"
        micro_text = micro_prompt(question, settings.protocol, len(crops))
        prompts["micro"] = micro_text if turn else question.prompt
    answers = [answer for answer in (macro, micro) if answer is not None]
    return Trace(
        key=question.key or {"id": question.id},
        question_id=question.id,
        prompts=prompts,
        image_size=question.image.size,
        image_hash=question.image_hash or image_hash(question.image),
        selection=select(
            settings.rule_name, settings.rule, macro, micro, settings.count_eos, sample.judged, sample.box
        ),
        macro=macro,
        locate=sample.locate,
        micro=micro,
        box=sample.box.xyxy if sample.box else None,
        crop=crops[0] if len(crops) == 1 else None,
        input_size=resolution.fit(question.image.size) if resolution else None,
        crop_size=sizes[0] if len(sizes) == 1 else None,
        fallback=sample.outcome.value if isinstance(sample.outcome, Fallback) else None,
        ppl=perplexities(answers, settings),
        grounding=settings.grounding,
        given_reply=region.reply if region and isinstance(region.reply, str) else None,
        box_shift=settings.box_shift,
        shifted_box=sample.shifted.xyxy if sample.shifted else None,
        judged=sample.judged,
        stop=sample.limits.stop,
        chat_template=template.asked if template else None,
        chat_template_used=template.used if template else None,
        boxes=tuple(box.xyxy for box in sample.boxes) if settings.separate else None,
        crops=crops if settings.separate else None,
        crop_sizes=sizes if settings.separate and resolution else None,
        looks=tuple(_look(look, resolution) for look in first.looks) if first.further else None,
        attention=sample.attention,
    )


def _look(sample: Sample, resolution: DynamicResolution | None) -> Look:
    region = sample.outcome if isinstance(sample.outcome, Region) else None
    return Look(
        locate=sample.locate,
        box=sample.box.xyxy if sample.box else None,
        crop=region.crops[0] if region else None,
        crop_size=resolution.fit(region.images[0].size) if resolution and region else None,
        micro=sample.micro,
    )
