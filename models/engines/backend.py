"""What all engines share: image inputs, answers from tokens, scores of given answers, counts of work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from loguru import logger
from PIL import Image
from transformers import GenerationConfig

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.models.checkpoint.image_inputs import ImageInputs, joined
from dualfocus_lmms.models.checkpoint.image_text_inputs import reader, token_types
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.checkpoint.tokenize_chat import Rendered
from dualfocus_lmms.models.compatibility import rope_settings
from dualfocus_lmms.models.engines.attention import steady_attention
from dualfocus_lmms.reasoning import CLOSING, OPENING, answer_start
from dualfocus_lmms.token_texts import lengths, whole_characters
from dualfocus_lmms.types import Answer, Stage, StopCriteria, TemplateChoice, Usage
from dualfocus_lmms.zoom import DynamicResolution


@dataclass(slots=True)
class Counts:
    """Work done since the engine was made.

    forwards: calls of the language model, a batch counting once. tokens: language-model tokens computed,
    padding not counted. encodes: images that went through the vision encoder.
    """

    forwards: int = 0
    tokens: int = 0
    encodes: int = 0


class ModelBackend:
    """A checkpoint with its renderer and image handling; engines add `generate`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self.box_format = checkpoint.family.box_format
        self.local_patches = checkpoint.family.local_patches
        self.native_locate = checkpoint.family.native_locate
        self.image_token_id: int = self.model.config.image_token_id
        self.renderer, self.image_reader = reader(checkpoint)
        self.template: TemplateChoice | None = self.renderer.template.choice
        self.resolution: DynamicResolution | None = self.image_reader.resolution
        self.counts = Counts()
        vocabulary = self.tokenizer.get_vocab()
        self._most_tokens = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.eos_ids = _eos_ids(self.model, self.tokenizer) | self.renderer.closing_ids
        self.opens_reasoning, self.closes_reasoning = (
            frozenset(vocabulary[tag] for tag in tags if tag in vocabulary) for tags in (OPENING, CLOSING)
        )
        self._token_types = token_types(self.model)
        self._before = self.tokenizer("a", add_special_tokens=False).input_ids
        self._after = lru_cache(maxsize=1 << 16)(self._decode_after)
        self._steady_tokens = steady_tokens(self.model.config.get_text_config())

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) in pixels of `image` as the encoder gets it."""
        return self.image_reader.input_size(image)

    def encoder_input(self, images: Sequence[ImageInputs]) -> dict[str, torch.Tensor]:
        """The encoder's input for N images by the model's argument names, on its device and in its dtype."""
        return {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in joined(images).items()
        }

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Encoder input (N, 3, H, W) for N images of one size, on the model's device and in its dtype."""
        return self.encoder_input(self.image_reader(images))["pixel_values"]

    def prompt_input(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The whole model's arguments for a prompt (1, L) without holes, except those for its images."""
        types = (ids == self.image_token_id).long()
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **dict.fromkeys(self._token_types, types),
        }

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, images: Sequence[Image.Image]) -> torch.Tensor:
        """Raw logits (1, L, V) in float32 of one forward over a whole sequence (1, L) with its images."""
        inputs = self.prompt_input(ids) | self.encoder_input(self.image_reader(images))
        with steady_attention(self.model.device):
            return self.model(**inputs, use_cache=False).logits.float()

    def warn_too_long(self, tokens: int) -> None:
        """Warn, once, that a prompt has more tokens than the model has positions."""
        if self._most_tokens is not None and tokens > self._most_tokens:
            logger.warning(
                f"A prompt has {tokens} tokens, and the model was made for {self._most_tokens} "
                "(max_position_embeddings): its answers may be nonsense. Shorten the question, or where an "
                "image is cut into tiles, let the checkpoint's processor make fewer of them."
            )
            self._most_tokens = None

    def check_length(self, tokens: int) -> None:
        """UserError where rotary positions would depend on the length of the sequence, as with dynamic NTK.

        A cached row, or one beside a longer one, would have other positions than alone.
        """
        if self._steady_tokens is not None and tokens > self._steady_tokens:
            raise UserError(
                f"A prompt and its reply may take {tokens} tokens, and beyond {self._steady_tokens} this "
                "model's rotary positions depend on the length (rope_type dynamic or longrope), which only "
                "engine=naive computes as the model does. Give it, or shorten the question."
            )

    def score(self, conversations: Sequence[Conversation]) -> list[list[tuple[float, ...]]]:
        """See `Backend.score`: one forward for each conversation, nothing is cached."""
        return [self._score_replies(conversation) for conversation in conversations]

    def _score_replies(self, conversation: Conversation) -> list[tuple[float, ...]]:
        """Of each reply the log-probabilities of its tokens and of its closing token."""
        if not conversation.turns or conversation.turns[-1].role != "assistant":
            raise ValueError("A conversation that is scored ends with an assistant turn.")
        rendered = self.renderer.render(conversation, self.image_reader.ids)
        end = sum(rendered.replies[-1])
        ids = torch.tensor([rendered.ids[:end]], device=self.model.device)  # (1, L)
        logits = self.logits(ids, rendered.images)[0]  # (L, V)
        scores = [self._score_reply(logits, rendered, *reply) for reply in rendered.replies]
        if not all(math.isfinite(value) for reply in scores for value in reply):
            raise GenerationError(
                "The model produced logits that are not numbers while answers were scored. "
                "Try dtype=float32 or bfloat16, and check the checkpoint's weights."
            )
        return scores

    def _score_reply(
        self, logits: torch.Tensor, rendered: Rendered, start: int, length: int
    ) -> tuple[float, ...]:
        """Log-probabilities of one reply's tokens and of its closing token, from logits (L, V)."""
        end = start + length
        ids = torch.tensor([*rendered.ids[start:end], self._closing_token(rendered.ids[end:])])
        logprobs = logits[start - 1 : end].log_softmax(-1)  # (length + 1, V)
        return tuple(logprobs.gather(-1, ids.to(logits.device)[:, None])[:, 0].tolist())

    def _closing_token(self, after: Sequence[int]) -> int:
        """The token that ends a reply followed by the ids `after`: what the template closes it with, else the
        tokenizer's end of sequence. Some checkpoints' templates have a blank there, and no such token."""
        return after[0] if after and after[0] in self.eos_ids else self.tokenizer.eos_token_id

    def stopped(self, tokens: Sequence[int], limits: StopCriteria) -> bool:
        """Whether the answer in `tokens` contains a stop string; reasoning before it may."""
        if not limits.stop:
            return False
        start = self._answer_start(tokens)
        return start is not None and _first_stop(self.decode(tokens[start:]), limits.stop) is not None

    def _answer_start(self, tokens: Sequence[int]) -> int | None:
        """See `reasoning.answer_start`."""
        return answer_start(
            tokens,
            self.opens_reasoning.__contains__,
            self.closes_reasoning.__contains__,
            lambda token: self.decode([token]).isspace(),
        )

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _decode_after(self, tokens: tuple[int, ...]) -> str:
        """The text of tokens that follow others: the first of a text may lose a blank."""
        return self.decode([*self._before, *tokens])[len(self.decode(self._before)) :]

    def _lengths(self, tokens: Sequence[int], text: str) -> tuple[int, ...] | None:
        """How many characters of `text` each token wrote."""
        return lengths(list(whole_characters(tokens, lambda some: self._after(tuple(some)))), text)

    def answer(
        self,
        stage: Stage,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        ended: bool,
        limits: StopCriteria,
        usage: Usage,
    ) -> Answer:
        """The answer made of generated tokens: what comes after reasoning, cut before the first stop string.

        Raises GenerationError when a log-probability is not a finite number, and where the reasoning does not
        end.
        """
        if not all(math.isfinite(value) for value in logprobs):
            raise GenerationError(
                f"The model produced logits that are not numbers in the {stage} stage, token {len(tokens)}. "
                "Try dtype=float32 or bfloat16, and check the checkpoint's weights."
            )
        start = self._answer_start(tokens)
        if start is None or (start and start == len(logprobs)):
            raise GenerationError(
                f"The model reasons in the {stage} stage, though its prompt closes the reasoning, and "
                f"{len(tokens)} tokens did not reach an answer. Take the variant of this model that answers "
                "without it, or give longer replies (max_new_tokens)."
            )
        tokens, logprobs = tokens[start:], logprobs[start:]
        text = self.decode(tokens)
        cut = _first_stop(text, limits.stop)
        if cut is not None:
            kept = max(n for n in range(len(tokens) + 1) if len(self.decode(tokens[:n])) <= cut)
            # An answer that is only a stop string keeps its first token: its perplexity must stay defined.
            kept = max(kept, 1)
            text, tokens, logprobs, ended = text[:cut], tokens[:kept], logprobs[:kept], False
        text = text.strip()
        parts = self._lengths(tokens, text)
        return Answer(stage, text, tuple(tokens), tuple(logprobs), ended, usage, parts)


def steady_tokens(config: Any) -> int | None:
    """The tokens up to which a text model's rotary positions do not depend on the length; None for any."""
    for part in rope_settings(config):
        if part.get("rope_type") in ("dynamic", "longrope"):
            return part.get("original_max_position_embeddings") or config.max_position_embeddings
    return None


@contextmanager
def own_settings_ignored(model: Any) -> Iterator[None]:
    """Let transformers' `generate` decode greedily from raw logits, whatever the checkpoint's settings are.

    Else they fill in what its caller leaves open, penalties and samplers too.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """The index at which the first stop string begins, None without one."""
    found = [text.find(stop) for stop in stops if stop and stop in text]
    return min(found) if found else None


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn: the checkpoint's generation settings and the tokenizer's own."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)
