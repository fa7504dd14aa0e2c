"""Which weights learn, where they lie during training, and how they are written at its end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, ProcessorMixin, Trainer

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.checkpoint.image_inputs import complete_processor
from dualfocus_lmms.models.checkpoint.loading import DTYPES, Checkpoint
from dualfocus_lmms.train.trainer.recipe import Recipe, lora_config

# What connects the parts, where it is a part of the vision encoder.
_CONNECTORS = r"(?:attn_pool|merger|deepstack_merger_list\.\d+)"
_TOWERS = r"vision_tower|(?<!vision_tower\.)vision_model"  # CLIP's tower holds a vision_model itself

# The parameters of each part; in brackets the module that LoRA's runs train whole.
PARTS = {
    "vision_tower": rf"(?:.*\.)?({_TOWERS}|\w+\.visual(?!\.{_CONNECTORS}\b))\b.*",
    "projector": rf"(?:.*\.)?(multi_modal_projector|connector|embed_vision|visual\.{_CONNECTORS})\b.*",
    "language_model": r"(?:.*\.)?(language_model|text_model|lm_head|transformer\.(?:wte|h|ln_f))\b.*",
}


def trainable(recipe: Recipe, checkpoint: Checkpoint) -> Any:
    """The model with only the recipe's parts left to learn, and with LoRA where it asks for it."""
    model = checkpoint.model
    use_cache(model, False)
    chosen = [re.compile(PARTS[part]) for part in recipe.train]
    for part, pattern in zip(recipe.train, chosen, strict=True):
        if not any(pattern.fullmatch(name) for name, _ in model.named_parameters()):
            raise UserError(f"train: {recipe.model!r} has no {part}.")
    idle = _idle(model.config)
    for name, parameter in model.named_parameters():
        learns = any(pattern.fullmatch(name) for pattern in chosen) and not idle.search(name)
        parameter.requires_grad_(learns)
    if recipe.lora is not None:
        from peft import get_peft_model

        modules = {
            match[1] for name, _ in model.named_parameters() for p in chosen if (match := p.fullmatch(name))
        }
        model = get_peft_model(model, lora_config(recipe, checkpoint.family.lora_targets, sorted(modules)))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not idle.search(name))
            if parameter.requires_grad:  # small updates would be lost in bfloat16
                parameter.data = parameter.data.float()
    return model


def _idle(config: Any) -> re.Pattern[str]:
    """Parameters of the vision tower that nothing reads: what comes after the layer its features are from."""
    if not hasattr(config, "vision_feature_layer"):
        return re.compile(r"(?!)")
    layers = config.vision_config.num_hidden_layers
    read = config.vision_feature_layer
    last = max(layer % (layers + 1) for layer in ([read] if isinstance(read, int) else read))
    after = "|".join(str(layer) for layer in range(last, layers)) or "none"
    return re.compile(rf"\bvision_tower\b.*(\.layers\.({after})\.|\.post_layernorm\.)")


def use_cache(model: Any, used: bool) -> None:
    """Whether the model keeps keys and values: training never reads them, and checkpointed layers would keep
    them twice."""
    model.config.use_cache = model.config.get_text_config().use_cache = used


@dataclass(frozen=True, eq=False)
class Companions:
    """What is written beside the weights, so that every checkpoint loads on its own."""

    checkpoint: Checkpoint

    def save_pretrained(self, folder: str | Path) -> None:
        if self.checkpoint.processor is not None:
            self.checkpoint.processor.save_pretrained(folder)
            return
        self.checkpoint.tokenizer.save_pretrained(folder)
        self.checkpoint.image_processor.save_pretrained(folder)


def whole_weights(model: Any, recipe: Recipe) -> AbstractContextManager[None]:
    """The model with its weights in one piece on this process, where FSDP divides them; else as it is."""
    from torch.distributed.fsdp import FSDPModule

    divided = [module for module in model.modules() if isinstance(module, FSDPModule)]
    divides_again = bool((recipe.training.get("fsdp_config") or {}).get("reshard_after_forward", True))
    return _gathered(divided, divides_again) if divided else nullcontext()


@contextmanager
def _gathered(divided: Sequence[Any], divides_again: bool) -> Iterator[None]:
    for module in divided:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in divided:
            module.reshard()
            module.set_reshard_after_forward(divides_again, recurse=False)


def write_checkpoint(trainer: Trainer, recipe: Recipe, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the trained model, whole and with LoRA merged, and all that a checkpoint needs beside it.

    Every process calls it; the first one writes.
    """
    use_cache(checkpoint.model, True)
    first = trainer.is_world_process_zero()
    if recipe.lora is not None:
        merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        if first:
            merged.to(DTYPES[recipe.dtype]).save_pretrained(folder)
    elif trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.deepspeed)
        if first:
            # With the modules' own names: transformers 5.23 turns those of weights that were loaded under
            # ZeRO-3 into names of no format at all.
            checkpoint.model.save_pretrained(folder, state_dict=state, save_original_format=False)
    else:
        if trainer.is_fsdp_enabled:
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(folder))
    if first:
        Companions(checkpoint).save_pretrained(folder)
        if checkpoint.processor is None:
            _write_processor(checkpoint, folder)
        (folder / "training_args.bin").unlink(missing_ok=True)  # no part of a checkpoint


def _write_processor(checkpoint: Checkpoint, folder: Path) -> None:
    """The processor with which plain transformers reads this checkpoint."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if isinstance(processor, ProcessorMixin):
        complete_processor(processor, checkpoint.model.config)
        processor.save_pretrained(folder)
