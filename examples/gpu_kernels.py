"""What a new shape costs torch's attention on a GPU, and resizing by threads: the figures in docs/speed.md.

    python examples/gpu_kernels.py [FILE]

Attention as in the zoom stages: 4 and 16 rows, 32 heads of 128 in bfloat16, some 700 tokens that attend to
1,330, with a mask. FILE gets the figures as JSON. Without a GPU only the images are resized.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPImageProcessorPil

from dualfocus_lmms.models.bench.model import noise_questions
from dualfocus_lmms.models.checkpoint import image_inputs
from dualfocus_lmms.models.families.llava import LLAVA

KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
SHAPES = 8  # each used for the first time
THREADS = (1, 4, 8, 16)


def milliseconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return round(1000 * (time.perf_counter() - began), 2)


def attention(kernel: SDPBackend, rows: int) -> dict[str, list[float]]:
    """Milliseconds of the first and the second call of each shape."""
    found: dict[str, list[float]] = {"first call of a shape, ms": [], "second call, ms": []}
    for number in range(SHAPES):
        tokens, visible = 700 + 3 * number, 1330 + 5 * number
        query, key, value = (
            torch.randn(rows, 32, length, 128, device="cuda", dtype=torch.bfloat16)
            for length in (tokens, visible, visible)
        )
        mask = torch.ones(rows, 1, tokens, visible, device="cuda", dtype=torch.bool).tril(visible - tokens)

        def work(inputs: tuple[torch.Tensor, ...] = (query, key, value, mask)) -> None:
            with sdpa_kernel([kernel]):
                scaled_dot_product_attention(*inputs)

        for calls in found.values():
            calls.append(milliseconds(work))
    return found


def resizing(threads: int, count: int = 32) -> float:
    """Milliseconds an image, the median of five."""
    image_inputs._MOST_THREADS = threads
    image_inputs._threads.cache_clear()
    size = {"height": 336, "width": 336}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=size)
    read = image_inputs.FixedSizeImages(LLAVA, processor, token=1, length=576)
    images = [question.image for question in noise_questions(count)]
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        read(images)
        spent.append(1000 * (time.perf_counter() - began) / count)
    return round(statistics.median(spent), 2)


def main() -> None:
    found: dict[str, Any] = {f"{count} threads, ms an image": resizing(count) for count in THREADS}
    if torch.cuda.is_available():
        for rows in (4, 16):
            found |= {f"{name}, {rows} rows": attention(kernel, rows) for name, kernel in KERNELS.items()}
    text = json.dumps(found, indent=1)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
