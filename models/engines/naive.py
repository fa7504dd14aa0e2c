"""The slow, obvious engine: transformers' own `generate` for each row, then a teacher-forced scoring pass.

The oracle that every faster engine is compared with. It batches nothing and caches nothing between calls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.checkpoint.image_inputs import ImageInputs, as_patch
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.attention import steady_attention
from dualfocus_lmms.models.engines.backend import ModelBackend, own_settings_ignored
from dualfocus_lmms.models.engines.shareable import language_model
from dualfocus_lmms.types import Answer, Prompt, Stage, StopCriteria, Usage


class NaiveBackend(ModelBackend):
    """Separate full generations. What prompts keep and their drafts are ignored."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        pad = self.tokenizer.pad_token_id
        self._pad_id: int = min(self.eos_ids) if pad is None else pad
        counted = language_model(self.model) or self.model
        counted.register_forward_pre_hook(self._count_forward, with_kwargs=True)

    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return [self._row(prompt.stage, prompt.conversation, prompt.limits) for prompt in prompts]

    def forget(self, but: Sequence[Image.Image] = ()) -> None:
        pass

    @torch.inference_mode()
    def _row(self, stage: Stage, conversation: Conversation, limits: StopCriteria) -> Answer:
        started, counted = time.perf_counter(), self.counts.tokens
        prepared = {id(image): self.image_reader([image])[0] for image in conversation.images}
        for patch in conversation.patches:
            prepared[id(patch)] = as_patch(prepared[id(patch)], self.image_token_id, self.model.config)
        rendered = self.renderer.render(conversation, lambda image: prepared[id(image)].ids)
        self.warn_too_long(len(rendered.ids))
        prompt = torch.tensor([rendered.ids], device=self.model.device)  # (1, L)
        images = [prepared[id(image)] for image in rendered.images]
        read = self._embedded if conversation.patches else self._read
        generated = self._continued(read(prompt, images), limits.max_new_tokens)  # (1, L + new)
        if not conversation.patches:  # from embeddings, generate returns only the new tokens
            generated = generated[:, prompt.shape[1] :]
        chosen = self._cut(generated[0].tolist(), limits)
        answer = torch.tensor([chosen], device=prompt.device)
        logprobs = self._score(read(torch.cat([prompt, answer], dim=1), images), answer)
        self.counts.encodes += 2 * len(rendered.images)
        ended = chosen[-1] in self.eos_ids
        usage = Usage(self.counts.tokens - counted, 2 * len(rendered.images), time.perf_counter() - started)
        return self.answer(stage, chosen[: len(chosen) - ended], logprobs, ended, limits, usage)

    def _continued(self, inputs: dict[str, torch.Tensor], max_new_tokens: int) -> torch.Tensor:
        """What transformers' `generate` returns, greedy and from raw logits."""
        with steady_attention(self.model.device), own_settings_ignored(self.model):
            return self.model.generate(**inputs, generation_config=self._generation_config(max_new_tokens))

    def _read(self, ids: torch.Tensor, images: Sequence[ImageInputs]) -> dict[str, torch.Tensor]:
        """The model's arguments for a prompt (1, L) and its images."""
        return self.prompt_input(ids) | self.encoder_input(images)

    def _embedded(self, ids: torch.Tensor, images: Sequence[ImageInputs]) -> dict[str, torch.Tensor]:
        """The same as embeddings (1, L, D): transformers cannot put an image of one's own among tiles."""
        features = []
        for image in images:
            output = self.model.get_image_features(**self.encoder_input([image]), return_dict=True)
            features.append(output.pooler_output[0][: image.ids.count(self.image_token_id)])
        embeddings = self.model.get_input_embeddings()(ids)
        embeddings[ids == self.image_token_id] = torch.cat(features).to(embeddings.dtype)
        return {"inputs_embeds": embeddings, "attention_mask": torch.ones_like(ids)}

    def _score(self, sequence: dict[str, torch.Tensor], answer: torch.Tensor) -> list[float]:
        """Log-probability of each token of an answer (1, new) at a sequence's end; one forward, float32."""
        with steady_attention(self.model.device):
            logits = self.model(**sequence, use_cache=False).logits[0]  # (L + new, V)
        scores = logits[-answer.shape[1] - 1 : -1].float().log_softmax(-1)  # (new, V)
        return scores.gather(-1, answer[0, :, None])[:, 0].tolist()

    def _cut(self, tokens: list[int], limits: StopCriteria) -> list[int]:
        """The tokens up to the first end of turn (included) or the one that completes a stop string."""
        for length in range(1, len(tokens) + 1):
            if tokens[length - 1] in self.eos_ids:
                return tokens[:length]
            if self.stopped(tokens[:length], limits):
                return tokens[:length]
        return tokens

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(self.eos_ids),
            pad_token_id=self._pad_id,
            suppress_tokens=[self.image_token_id],
        )

    def _count_forward(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.counts.forwards += 1
        read = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        self.counts.tokens += read.shape[:2].numel()  # type: ignore[union-attr]
