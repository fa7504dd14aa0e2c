"""From the host's requests to questions. Both of its request forms are read here, and nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Any

from loguru import logger
from PIL import Image

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, open_image, set_up_pillow, unreadable
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.prompts import bare_question
from dualfocus_lmms.types import Question, StopCriteria

DEFAULT_NEW_TOKENS = 128  # as the release decodes
# What --gen_kwargs may set: the first two matter, the others can only say that decoding is greedy.
GENERATION_SETTINGS = (
    *("max_new_tokens", "until"),
    *("do_sample", "num_beams", "num_return_sequences", "temperature", "top_p", "top_k"),
)
_IMAGE_NAME_COLUMNS = ("image_id", "image")  # columns of documents, the first that holds texts
_QUESTION = "{question}"  # where the bare question stands in a task's wording
_REPLACE = "get its file again, or leave the document out."
ONLY_GENERATE_UNTIL = (
    "DualFocus generates its answers: choose a task with output_type generate_until, "
    "such as df_pope (`dualfocus eval --tasks list` names all tasks)."
)


def read_request(instance: Any, task_dict: Mapping[str, Any], chat: bool) -> Request:
    """A request of the simple form (context, gen_kwargs, doc_to_visual, doc_id, task, split) or of the chat
    form (context, doc_to_messages, gen_kwargs, doc_id, task, split)."""
    if chat:
        context, to_content, gen_kwargs, doc_id, task, split = instance.args
    else:
        context, gen_kwargs, to_content, doc_id, task, split = instance.args
    limits = read_limits(gen_kwargs)
    asked = repr((str(context), limits.max_new_tokens, limits.stop))
    fingerprint = hashlib.blake2b(asked.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    key = {"task": task, "split": split, "doc_id": doc_id, "context": fingerprint}

    def question() -> Question:
        set_up_pillow()  # before the task itself reads the image
        try:
            doc = task_dict[task][split][doc_id]
            content = to_content(doc)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # other errors are the task's
            raise unreadable(f"The image of {_name(key)}", error, _REPLACE) from error
        prompt, images = _chat_content(content, key) if chat else (context, content)
        return Question(
            id=f"{task}/{split}/{doc_id}",
            image=_only_image(images, key),
            text=_bare_text(doc, instance.metadata, prompt),
            prompt=prompt,
            key=key,
            box=_annotated_box(doc, instance.metadata, key),
            short=_short_question(doc, instance.metadata, prompt),
            options=_options(doc, instance.metadata, key),
            boxes=_annotated_boxes(doc, instance.metadata, key),
        )

    return Request(key, limits, question, len(str(context)), _image_name(task_dict[task][split], doc_id))


def read_limits(gen_kwargs: Mapping[str, Any]) -> StopCriteria:
    """The limits in a task's generation settings. Only greedy decoding is defined for DualFocus.

    UserError for sampling (a temperature above 0 too, unless do_sample is False), beams and several answers.
    A warning, once, names the settings that have no effect here.
    """
    sampled = gen_kwargs.get("do_sample")
    if sampled is None:
        sampled = (gen_kwargs.get("temperature") or 0) > 0
    several = max(gen_kwargs.get("num_beams") or 1, gen_kwargs.get("num_return_sequences") or 1)
    if sampled or several > 1:
        raise UserError(
            f"The task asks for sampling, beam search or several answers ({dict(gen_kwargs)}), but "
            "perplexities are compared between greedy answers. Run it with --gen_kwargs "
            "do_sample=False,num_beams=1,num_return_sequences=1."
        )
    _name_unused(tuple(sorted(gen_kwargs.keys() - set(GENERATION_SETTINGS))))
    until = gen_kwargs.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    longest = gen_kwargs.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if isinstance(longest, float) and longest.is_integer():  # the host's parser reads "1e2" as 100.0
        longest = int(longest)
    if type(longest) is not int:
        raise UserError(f"max_new_tokens is a whole number of tokens, 1 or more, got {longest!r}.")
    return StopCriteria(longest, stops)


@cache
def _name_unused(names: tuple[str, ...]) -> None:
    """Warn, once, of generation settings that change nothing here."""
    if names:
        logger.warning(
            f"The task's generation settings {', '.join(names)} are not used: DualFocus decodes greedily, "
            f"from raw logits, and reads {', '.join(GENERATION_SETTINGS[:2])} alone."
        )


def _image_name(docs: Any, doc_id: int) -> str | None:
    """How the document calls its image, in a column of names or paths; no image is opened."""
    features = getattr(docs, "features", None) or {}
    named = [name for name in _IMAGE_NAME_COLUMNS if getattr(features.get(name), "dtype", None) == "string"]
    return docs[named[0]][doc_id] if named else None


def _bare_text(doc: Mapping[str, Any], metadata: Mapping[str, Any], prompt: str) -> str:
    """The question without options and instruction: the column the task names, else found in the prompt."""
    column = _column(doc, metadata, "question")
    return bare_question(prompt) if column is None else str(doc[column])


def _short_question(doc: Mapping[str, Any], metadata: Mapping[str, Any], prompt: str) -> str | None:
    """The task's wording of a short question with the bare question in it; None where it has no wording.

    Where the task names a column of context, its text precedes the question on a separate line.
    """
    wording = (metadata.get("dualfocus") or {}).get("short")
    if wording is None:
        return None
    if not isinstance(wording, str) or _QUESTION not in wording:
        raise UserError(
            f"The task's metadata has the wording {wording!r} (dualfocus: short): "
            f"give a text with {_QUESTION} in it."
        )
    column = _column(doc, metadata, "context")
    context = doc[column] if column is not None and doc[column] else None
    bare = _bare_text(doc, metadata, prompt)
    return wording.replace(_QUESTION, bare if context is None else f"{context}\n{bare}")


def _options(doc: Mapping[str, Any], metadata: Mapping[str, Any], key: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of the options in the column the task names, or in its columns up to the first empty one.

    None where the task names no column, and where the document has none.
    """
    named = (metadata.get("dualfocus") or {}).get("options")
    if isinstance(named, (list, tuple)):
        found = takewhile(_is_text, (doc[_known(doc, column, "options")] for column in named))
        return tuple(found)
    value = None if named is None else doc[_known(doc, named, "options")]
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(map(_is_text, value)):
        raise UserError(
            f"{_name(key)} has the options {value!r} in its column {named!r}: a list of texts is expected. "
            "Correct the data, or name other columns (dualfocus: options)."
        )
    return tuple(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _annotated_box(doc: Mapping[str, Any], metadata: Mapping[str, Any], key: Mapping[str, Any]) -> Box | None:
    """The region in the column the task names, x0, y0, x1, y1 as fractions of the image.

    None where the task names no column, and where the document has None in it.
    """
    column = _column(doc, metadata, "box")
    value = None if column is None else doc[column]
    return None if value is None else _box(value, str(column), key)


def _annotated_boxes(
    doc: Mapping[str, Any], metadata: Mapping[str, Any], key: Mapping[str, Any]
) -> tuple[Box, ...]:
    """The boxes in the column the task names (dualfocus: boxes), a list of them; none where it names none."""
    column = _column(doc, metadata, "boxes")
    value = None if column is None else doc[column]
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(
            f"{_name(key)} has {value!r:.80} in its column {column!r}: a list of boxes is expected, or None."
        )
    return tuple(_box(box, str(column), key) for box in value)


def _box(value: Any, column: str, key: Mapping[str, Any]) -> Box:
    """The box x0, y0, x1, y1 in a column, fractions of the image."""
    try:
        box = Box(*(float(number) for number in value))
    except (TypeError, ValueError):
        box = None
    if box is None or box != box.clip():
        raise UserError(
            f"{_name(key)} has the box {value!r} in its column {column!r}. A box is left, top, right, bottom "
            "as fractions of the image, 0 to 1, in this order, or None where there is none: correct the data."
        )
    return box


def _column(doc: Mapping[str, Any], metadata: Mapping[str, Any], what: str) -> str | None:
    """The name of the column that holds `what`, None when the task names none. UserError: no such column."""
    column = (metadata.get("dualfocus") or {}).get(what)
    return None if column is None else _known(doc, column, what)


def _known(doc: Mapping[str, Any], column: str, what: str) -> str:
    """`column`; UserError where the documents have no such column."""
    if column not in doc:
        raise UserError(
            f"The task's metadata names the column {column!r} (dualfocus: {what}), "
            f"but its documents have {', '.join(sorted(doc))}. Name one of these, or none."
        )
    return column


def _chat_content(messages: Any, key: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Text and images of a chat request, which must be one user turn."""
    turns = [message for message in messages if message["role"] != "system"]
    if len(turns) != 1 or turns[0]["role"] != "user":
        roles = [message["role"] for message in turns]
        raise UserError(
            f"{_name(key)} is a conversation {roles}: DualFocus answers one question. Use a one-turn task."
        )
    content = turns[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    media = [part for part in parts if part["type"] != "text"]
    return text, [part.get("url", part.get("image")) if part["type"] == "image" else part for part in media]


def _only_image(images: Any, key: Mapping[str, Any]) -> Image.Image:
    """The one image of a request, as `open_image` gives it: upright too, whatever the task did to it."""
    if isinstance(images, Image.Image):
        images = [images]
    if images is None or len(images) != 1:
        raise UserError(
            f"{_name(key)} has {len(images or [])} images: DualFocus answers questions about one image."
        )
    image = images[0]
    if not isinstance(image, Image.Image):
        raise UserError(
            f"{_name(key)} brings {type(image).__name__} instead of an image. Choose an image task."
        )
    try:
        return open_image(image)
    except UNREADABLE as error:
        raise unreadable(f"The image of {_name(key)}", error, _REPLACE) from error


def _name(key: Mapping[str, Any]) -> str:
    return f"Document {key['doc_id']} of {key['task']} ({key['split']})"
