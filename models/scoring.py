"""How likely what was said is: one forward over a conversation that ends with an assistant turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.models.rendering import Rendered

if TYPE_CHECKING:
    from dualfocus_lmms.models.backend import ModelBackend


def score(backend: ModelBackend, conversations: Sequence[Conversation]) -> list[list[tuple[float, ...]]]:
    """See `Backend.score`; one conversation after the other, nothing is cached."""
    return [_row(backend, conversation) for conversation in conversations]


def _row(backend: ModelBackend, conversation: Conversation) -> list[tuple[float, ...]]:
    if not conversation.turns or conversation.turns[-1].role != "assistant":
        raise ValueError("A conversation that is scored ends with an assistant turn.")
    rendered = backend.renderer.render(conversation, backend.pictures.ids)
    read = rendered.ids[: sum(rendered.replies[-1])]
    ids = torch.tensor([read], device=backend.model.device)  # (1, L)
    logits = backend.logits(ids, rendered.images)  # (1, L, V)
    return [_turn(backend, logits[0], rendered, *reply) for reply in rendered.replies]


def _turn(
    backend: ModelBackend, logits: torch.Tensor, rendered: Rendered, start: int, length: int
) -> tuple[float, ...]:
    """Log-probabilities of a reply's tokens and of its closing token, from logits (L, V)."""
    end = start + length
    said = torch.tensor([*rendered.ids[start:end], _closing(backend, rendered.ids[end:])])  # (length + 1,)
    logprobs = logits[start - 1 : end].log_softmax(-1)  # (length + 1, V)
    values = logprobs.gather(-1, said.to(logits.device)[:, None])[:, 0].tolist()
    if not all(math.isfinite(value) for value in values):
        raise GenerationError(
            "The model produced logits that are not numbers while answers were scored. "
            "Try dtype=float32 or bfloat16, and check the checkpoint's weights."
        )
    return tuple(values)


def _closing(backend: ModelBackend, after: Sequence[int]) -> int:
    """The token that ends a turn: what the template closes it with, else what the model ends its own with.

    The templates of some checkpoints put a blank between turns and no closing token.
    """
    return after[0] if after and after[0] in backend.eos_ids else backend.tokenizer.eos_token_id
