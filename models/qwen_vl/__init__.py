"""Qwen-VL and Qwen-VL-Chat of 2023 as a model of transformers, with no code from the checkpoint.

Importing this package makes transformers' Auto classes load the published files as they are: config.json,
qwen.tiktoken and weights under their own names. `load_qwen_image_processor` makes up for the one file that
was never published.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from dualfocus_lmms.models.qwen_vl.configuration import QwenVLConfig
from dualfocus_lmms.models.qwen_vl.image_processing import load_qwen_image_processor
from dualfocus_lmms.models.qwen_vl.modeling import QwenVLForConditionalGeneration
from dualfocus_lmms.models.qwen_vl.tokenization import QWenTokenizer, load_qwen_tokenizer

AutoConfig.register(QwenVLConfig.model_type, QwenVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(QwenVLConfig, tokenizer_class=QWenTokenizer, exist_ok=True)

__all__ = [
    "QWenTokenizer",
    "QwenVLConfig",
    "QwenVLForConditionalGeneration",
    "load_qwen_image_processor",
    "load_qwen_tokenizer",
]
