"""The slow, obvious engine: transformers' own `generate` for each row, then a teacher-forced scoring pass.

The oracle that every faster engine is compared with. Nothing is batched, cached between calls or reused.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.backend import ModelBackend, image_tokens
from dualfocus_lmms.models.loading import Checkpoint
from dualfocus_lmms.types import Answer, Keep, Limits, Stage, Usage


class NaiveBackend(ModelBackend):
    """Separate full generations. `keep` is ignored."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        language_model = self.model.model.language_model
        language_model.register_forward_pre_hook(self._count_forward, with_kwargs=True)

    def generate(
        self,
        stage: Stage,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
        keep: Keep | None = None,
    ) -> list[Answer]:
        return [self._row(stage, *row) for row in zip(conversations, limits, strict=True)]

    def forget(self) -> None:
        pass

    @torch.inference_mode()
    def _row(self, stage: Stage, conversation: Conversation, limits: Limits) -> Answer:
        started, counted = time.perf_counter(), self.counts.tokens
        rendered = self.renderer.render(conversation, self._image_length)
        prompt = torch.tensor([rendered.ids], device=self.model.device)  # (1, L)
        pictures = {"pixel_values": self.pixels(rendered.images)} if rendered.images else {}
        sequence = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=self._generation_config(limits.max_new_tokens),
            **pictures,
        )  # (1, L + new)
        chosen = self._cut(sequence[0, prompt.shape[1] :].tolist(), limits)
        logprobs = self._score(prompt, chosen, pictures)
        self.counts.encodes += 2 * len(rendered.images)
        ended = chosen[-1] in self.eos_ids
        usage = Usage(self.counts.tokens - counted, 2 * len(rendered.images), time.perf_counter() - started)
        return self.answer(stage, chosen[: len(chosen) - ended], logprobs, ended, limits, usage)

    def _score(self, prompt: torch.Tensor, chosen: list[int], pictures: dict[str, Any]) -> list[float]:
        """Log-probability of each chosen token in one forward over prompt and answer, float32."""
        answer = torch.tensor([chosen], device=prompt.device)
        sequence = torch.cat([prompt, answer], dim=1)
        logits = self.model(
            input_ids=sequence, attention_mask=torch.ones_like(sequence), use_cache=False, **pictures
        ).logits  # (1, L + new, V)
        scores = logits[0, prompt.shape[1] - 1 : -1].float().log_softmax(-1)  # (new, V)
        return scores.gather(-1, answer[0, :, None])[:, 0].tolist()

    def _cut(self, tokens: list[int], limits: Limits) -> list[int]:
        """The tokens up to the first end of turn (included) or the one that completes a stop string."""
        for length in range(1, len(tokens) + 1):
            if tokens[length - 1] in self.eos_ids:
                return tokens[:length]
            if self.stopped(tokens[:length], limits):
                return tokens[:length]
        return tokens

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        pad = self.tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(self.eos_ids),
            pad_token_id=min(self.eos_ids) if pad is None else pad,
            suppress_tokens=[self.image_token_id],
        )

    def _image_length(self, image: Image.Image) -> int:
        return image_tokens(self.model.config)

    def _count_forward(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.counts.forwards += 1
        self.counts.tokens += kwargs["inputs_embeds"].shape[:2].numel()
