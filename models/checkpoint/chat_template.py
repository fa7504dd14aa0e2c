"""By which chat template a checkpoint's conversations are written: one choice, for inference and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.family import Family

_THINKS = "<think>"
PROBE = Conversation().user("?", Image.new("RGB", (1, 1)))


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
    tokenizer: Any, family: Family, image_texts: Sequence[str], processors: Any = None
) -> str:
    """The first template that writes one of `image_texts` for an image: the processor's, the tokenizer's, the
    family's.

    UserError where none does, and where a turn would open with reasoning: answer, box and perplexity would
    come from it.
    """
    candidates = [default_template(given) for given in (processors, tokenizer.chat_template)]
    tried = [template for template in (*candidates, family.chat_template) if template]
    for template in tried:
        text = _attempt(tokenizer, template)
        if not any(image_text in text for image_text in image_texts):
            continue
        if text.rstrip().endswith(_THINKS):
            raise UserError(
                f"The checkpoint's chat template opens every turn with {_THINKS} and has no switch "
                "(enable_thinking) for it: the answer would be the reasoning. Take the variant of this model "
                "that answers without it."
            )
        return template
    raise UserError(
        f"None of the {len(tried)} chat templates of the checkpoint and its family writes "
        f"{', '.join(map(repr, image_texts))} for an image: they are not made for questions about images. "
        "Put the template of the model's processor (chat_template.jinja) beside its weights."
    )


def default_template(given: Any) -> str | None:
    """The template to use of what a checkpoint has: a text, named ones as a mapping or a list, or nothing."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = {one["name"]: one["template"] for one in given}
    return given.get("default") if isinstance(given, Mapping) else given


def _attempt(tokenizer: Any, template: str) -> str:
    """How a template writes a question about an image; empty where it cannot."""
    try:
        return apply_template(tokenizer, template, PROBE, open_turn=True)
    except (TemplateError, TypeError, ValueError):
        return ""
