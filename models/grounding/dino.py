"""The region that GroundingDINO finds for a question, instead of the model's own (the paper's table 11).

The paper gives no details. Which text is detected and which box is used: docs/grounding.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import GenerationError, UserError, choose
from dualfocus_lmms.images import rgb
from dualfocus_lmms.models.checkpoint.folder import LOAD_ERRORS, load_error
from dualfocus_lmms.types import Question

# Checkpoints whose boxes come with one score for each word of a text.
MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")


class Detector:
    """A grounding: the box around everything that GroundingDINO finds of a question, None where it finds
    nothing. Runs in float32, one question at a time.

    several: every box that it finds, the one with the highest score first, instead of the one around them.
    """

    def __init__(self, checkpoint: str, device: torch.device | str = "cpu", several: bool = False) -> None:
        """Load a checkpoint folder or hub name; UserError when that fails or it is no GroundingDINO."""
        self._several = several
        self.model, self.processor = _load(checkpoint)
        self.model.to(device).eval()

    @torch.inference_mode()
    def __call__(self, question: Question) -> Box | Sequence[Box] | None:
        inputs = self.processor(
            images=rgb(question.image),
            text=caption(question.text),
            truncation=True,  # the detector cannot score words beyond that
            max_length=self.model.config.max_text_len,
            return_tensors="pt",
        ).to(self.model.device)
        outputs = self.model(**inputs)
        if not bool(outputs.pred_boxes.isfinite().all()):
            raise GenerationError(
                f"GroundingDINO gave boxes that are not numbers for question {question.id!r}."
            )
        (found,) = self.processor.post_process_grounded_object_detection(outputs, inputs.input_ids)
        if self._several:
            return [
                Box.from_corners(*box).clip()
                for box in found["boxes"][found["scores"].argsort(descending=True)].tolist()
            ]
        return enclosing(found["boxes"])


def caption(question: str) -> str:
    """A bare question as GroundingDINO's text: one phrase, lower case, ended by a dot.

    >>> caption("What is on the Table?")
    'what is on the table.'
    """
    return f"{' '.join(question.lower().split()).rstrip('?!. ')}."


def enclosing(boxes: torch.Tensor) -> Box | None:
    """The box around all of `boxes` (N, 4), x0 y0 x1 y1 in fractions of the image, cut to it; else None."""
    if not len(boxes):
        return None
    low, high = boxes[:, :2].amin(0).tolist(), boxes[:, 2:].amax(0).tolist()
    return Box.from_corners(*low, *high).clip()


def _load(checkpoint: str) -> tuple[Any, Any]:
    """(model, processor)."""
    try:
        kind = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).model_type
        if kind not in MODEL_TYPES:
            raise choose(f"model type of the grounding checkpoint {checkpoint!r},", kind, MODEL_TYPES)
        both: Any = AutoModelForZeroShotObjectDetection.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise UserError(
            f"Cannot load the grounding checkpoint {checkpoint!r}: {load_error(error)}\n"
            "Give grounding_checkpoint=<folder or hub name of a GroundingDINO>, with config.json, weights, "
            "tokenizer and preprocessor_config.json."
        ) from error
    model, loaded = both
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers fills them with random numbers and only warns
        raise UserError(
            f"The grounding checkpoint {checkpoint!r} lacks {len(missing)} of its weights, the first of them "
            f"{missing[0]!r}: give a complete one in the Hugging Face format."
        )
    return model, processor
