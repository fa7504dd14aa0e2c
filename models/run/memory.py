"""Whether memory ran out, and how to get it back. Loads torch only when it is called."""

from __future__ import annotations

# Of CUDA, ROCm, XPU and MPS; of the CPU; of a library without memory for its own work.
_SIGNS = ("out of memory", "DefaultCPUAllocator", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether an error reports that memory ran out, on a GPU or elsewhere."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def release() -> None:
    """Free unused memory on every device. A caught error keeps the tensors of its frames in use."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
