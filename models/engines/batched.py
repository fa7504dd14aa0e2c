"""Whole batches through transformers' own `generate`, for models of which nothing else is known.

Rows are padded on the left. The prompts of one stage are one batch; no cache outlives it, so that models with
sliding windows, linear attention or a cache of their own kind are served as they are. Log-probabilities are
taken while decoding, from raw logits in float32. Equal to `naive.NaiveBackend` in float32
(tests/models/engines/test_batched.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

import torch
from transformers import LogitsProcessor, StoppingCriteria

from dualfocus_lmms.models.checkpoint.tokenize_chat import Rendered
from dualfocus_lmms.models.engines.attention import steady_attention
from dualfocus_lmms.models.engines.backend import own_settings_ignored
from dualfocus_lmms.models.engines.naive import NaiveBackend
from dualfocus_lmms.types import Answer, Prompt, StopCriteria, Usage


class BatchedBackend(NaiveBackend):
    """One call of `generate` for all prompts of a stage. What prompts keep and their drafts are ignored."""

    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        answers: list[Answer] = []
        for _, group in groupby(prompts, lambda prompt: prompt.stage):
            answers += self._generate_group(list(group))
        return answers

    @torch.inference_mode()
    def _generate_group(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """The answers of prompts of one stage."""
        if any(prompt.conversation.patches for prompt in prompts):  # only embeddings hold images among tiles
            return super().generate(prompts)
        started = time.perf_counter()
        images = [image for prompt in prompts for image in prompt.conversation.images]
        unique = {id(image): image for image in images}
        prepared = dict(zip(unique, self.image_reader([*unique.values()]), strict=True))
        rendered = [
            self.renderer.render(prompt.conversation, lambda image: prepared[id(image)].ids)
            for prompt in prompts
        ]
        self.warn_too_long(max(len(row.ids) for row in rendered))
        new_tokens = max(prompt.limits.max_new_tokens for prompt in prompts)
        self.check_length(max(len(row.ids) for row in rendered) + new_tokens)
        inputs = self._padded(rendered) | self.encoder_input([prepared[id(image)] for image in images])
        counted = self.counts.tokens
        chosen, logprobs = self._decode(inputs, [prompt.limits for prompt in prompts])
        self.counts.encodes += len(images)
        computed = [len(row.ids) + len(tokens) - 1 for row, tokens in zip(rendered, chosen, strict=True)]
        self.counts.tokens = counted + sum(computed)  # without what fills up the rows
        seconds = (time.perf_counter() - started) / len(prompts)
        return [
            self._finished(prompt, tokens, scores, Usage(read, len(row.images), seconds))
            for prompt, tokens, scores, read, row in zip(
                prompts, chosen, logprobs, computed, rendered, strict=True
            )
        ]

    def _padded(self, rendered: Sequence[Rendered]) -> dict[str, torch.Tensor]:
        """The model's arguments for prompts (B, L), filled up on the left, without those for their images."""
        width = max(len(row.ids) for row in rendered)
        ids = torch.tensor([[self._pad_id] * (width - len(row.ids)) + [*row.ids] for row in rendered])
        inputs = self.prompt_input(ids.to(self.model.device))
        starts = torch.tensor([[width - len(row.ids)] for row in rendered])
        inputs["attention_mask"] = (torch.arange(width) >= starts).long().to(self.model.device)
        return inputs

    def _decode(
        self, inputs: dict[str, torch.Tensor], limits: Sequence[StopCriteria]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Each row's tokens, its end of turn included, and their log-probabilities."""
        width = inputs["input_ids"].shape[1]
        record = _GreedyScores(self.image_token_id)
        done = _RowsDone(self, width, limits)
        config = self._generation_config(max(limit.max_new_tokens for limit in limits))
        config.suppress_tokens = None  # `record` does it, behind the raw log-probabilities
        with steady_attention(self.model.device), own_settings_ignored(self.model):
            sequences = self.model.generate(
                **inputs, generation_config=config, logits_processor=[record], stopping_criteria=[done]
            )
        chosen = [
            self._cut(row[: limit.max_new_tokens], limit)
            for row, limit in zip(sequences[:, width:].tolist(), limits, strict=True)
        ]
        scores = torch.stack(record.logprobs, dim=1).tolist()  # (B, new)
        return chosen, [row[: len(tokens)] for row, tokens in zip(scores, chosen, strict=True)]

    def _finished(self, prompt: Prompt, tokens: list[int], logprobs: Sequence[float], usage: Usage) -> Answer:
        ended = tokens[-1] in self.eos_ids
        kept = tokens[: len(tokens) - ended]
        return self.answer(prompt.stage, kept, logprobs, ended, prompt.limits, usage)


class _GreedyScores(LogitsProcessor):
    """Notes the raw log-probability of the token that greedy decoding takes, which is never `suppressed`.

    logprobs: a tensor (B,) for each step.
    """

    def __init__(self, suppressed: int) -> None:
        self._suppressed = suppressed
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs = scores.float().log_softmax(-1)  # (B, V)
        allowed = scores.clone()
        allowed[:, self._suppressed : self._suppressed + 1] = -torch.inf
        self.logprobs.append(logprobs.gather(-1, allowed.argmax(-1, keepdim=True))[:, 0])
        return allowed


class _RowsDone(StoppingCriteria):
    """Which rows have all the tokens they may have, or a stop string in their text."""

    def __init__(self, backend: NaiveBackend, width: int, limits: Sequence[StopCriteria]) -> None:
        self._backend = backend
        self._width = width
        self._limits = limits

    def __call__(self, input_ids: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
        new = input_ids.shape[1] - self._width
        done = [
            new >= limit.max_new_tokens
            or (bool(limit.stop) and self._backend.stopped(row[self._width :].tolist(), limit))
            for row, limit in zip(input_ids, self._limits, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)
