"""By which chat template a checkpoint's conversations are written: one choice, for inference and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jinja2 import TemplateError
from loguru import logger
from PIL import Image
from transformers import ProcessorMixin
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.family import Family
from dualfocus_lmms.reasoning import OPENING, is_open
from dualfocus_lmms.types import Template, TemplateChoice

PROBE = Conversation().user("?", Image.new("RGB", (1, 1)))
_TWO_ROUNDS = PROBE.assistant("!").user("?")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template in Jinja, and whose it is."""

    text: str
    choice: TemplateChoice


def check_template_name(asked: str) -> None:
    """UserError for anything but auto, family or checkpoint."""
    if asked not in get_args(Template):
        raise choose("chat_template", asked, get_args(Template))


def apply_template(tokenizer: Any, template: str | None, conversation: Conversation, open_turn: bool) -> str:
    """A conversation as text. A template that knows reasoning is told to leave it out."""
    return tokenizer.apply_chat_template(
        conversation.messages(),
        chat_template=template,
        add_generation_prompt=open_turn,
        tokenize=False,
        enable_thinking=False,
    )


def choose_template(
    tokenizer: Any, family: Family, image_texts: Sequence[str], processors: Any = None, asked: str = "auto"
) -> ChatTemplate:
    """The template of the conversations, one that writes one of `image_texts` for an image.

    processors: what the checkpoint brings besides the tokenizer's. asked: "family" is the family's,
    "checkpoint" the first usable one of processor and tokenizer. "auto" is the checkpoint's, but the family's
    where the checkpoint brings none that can be used, with a warning where it brings another, or a rewording
    of the family's (`Family.reworded`).

    UserError where there is no such template, and where a turn would open with reasoning: answer, box and
    perplexity would come from it.
    """
    check_template_name(asked)
    brought = [text for text in map(default_template, (processors, tokenizer.chat_template)) if text]
    own = next((text for text in brought if _writes(tokenizer, text, image_texts)), None)
    replaced = asked == "auto" and own is not None and _is_rewording(tokenizer, own, family)
    takes_family = asked == "family" or replaced or (asked == "auto" and own is None)
    used: Literal["family", "checkpoint"] = "family" if takes_family else "checkpoint"
    template = family.chat_template if used == "family" else own
    if not template or not _writes(tokenizer, template, image_texts):
        raise UserError(_unusable(used, family, image_texts, brought))
    if asked == "auto" and brought and own is None:
        logger.warning(
            f"No chat template of the checkpoint writes an image, and that of its family {family.name!r} is "
            "used. If the model was trained with another, put it beside the weights (chat_template.jinja)."
        )
    if is_open(_render(tokenizer, template)):
        raise UserError(
            f"The {used}'s chat template opens every turn with reasoning ({' or '.join(OPENING)}) and has no "
            "switch (enable_thinking) for it: the few tokens of an answer would not reach its end. Take the "
            "variant of this model that answers without it, such as Instruct in place of Thinking."
        )
    return ChatTemplate(template, TemplateChoice(asked, used, replaced))


def default_template(given: Any) -> str | None:
    """The template to use of what a checkpoint has: a text, named ones as a mapping or a list, or nothing."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = {one["name"]: one["template"] for one in given}
    return given.get("default") if isinstance(given, Mapping) else given


def read_template(pretrained: str, revision: str | None = None) -> Any:
    """The chat template, or the named ones, that a folder or hub name has in any of its files; else None."""
    settings, _ = ProcessorMixin.get_processor_dict(pretrained, revision=revision)
    found = settings.get("chat_template")
    return found or get_tokenizer_config(pretrained, revision=revision).get("chat_template")


def _writes(tokenizer: Any, template: str, image_texts: Sequence[str]) -> bool:
    """Whether a template writes one of `image_texts` for an image."""
    rendered = _render(tokenizer, template)
    return any(text in rendered for text in image_texts)


def _render(tokenizer: Any, template: str, conversation: Conversation = PROBE) -> str:
    """How a template writes a conversation; empty where it cannot."""
    try:
        return apply_template(tokenizer, template, conversation, open_turn=True)
    except (TemplateError, TypeError, ValueError):
        return ""


def _is_rewording(tokenizer: Any, template: str, family: Family) -> bool:
    """Whether a template writes what the family's does but for `family.reworded`, opening and blanks."""
    if not family.reworded:
        return False
    own, family_text = (
        _render(tokenizer, text, _TWO_ROUNDS).removeprefix(tokenizer.bos_token or "")
        for text in (template, family.chat_template)
    )
    for part in family.reworded:
        family_text = family_text.replace(part, "")
    return "".join(own.split()) == "".join(family_text.split())


def _unusable(used: str, family: Family, image_texts: Sequence[str], brought: Sequence[str]) -> str:
    """The message where there is no template that can be used."""
    texts = ", ".join(map(repr, image_texts))
    if used == "family":
        lacks = f"writes {texts} for an image" if family.chat_template else "exists"
        return (
            f"No chat template of the family {family.name!r} {lacks}. Put the template of the model's "
            "processor (chat_template.jinja) beside its weights, and leave chat_template out."
        )
    other = (
        f" If the model was trained with that of its family {family.name!r}, give chat_template=family."
        if family.chat_template
        else ""
    )
    return (
        f"None of the {len(brought)} chat templates that the checkpoint brings writes {texts} for an image: "
        "they are not made for questions about images. Put the template of the model's processor "
        f"(chat_template.jinja) beside its weights.{other}"
    )
