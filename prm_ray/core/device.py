"""Where a model computes and in which number format, where nobody has said so."""

from __future__ import annotations

from typing import Any

import torch

from prm_ray.core.allocator import keep_freed_memory

DTYPES = ("auto", "float32", "bfloat16", "float16")


def own_device() -> str:
    """The GPU that this process may use, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def number_format(dtype: str, device: str) -> torch.dtype:
    """The format of that name, one of `DTYPES`.

    `auto` is bfloat16 wherever it is multiplied at full speed: on GPUs, and on CPUs for which oneDNN has kernels
    (AVX-512 and newer). Elsewhere it is float32: on an AVX2 machine bfloat16 took 6 times as long forward, and 35 times
    as long backward.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    # what torch itself asks before it hands a matrix to oneDNN
    is_fast = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if is_fast else torch.float32


def placed(model: Any, device: str) -> Any:
    """The model there, in eval mode."""
    if device == "cpu":
        keep_freed_memory()
    return model.to(device).eval()
