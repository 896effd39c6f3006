"""Fingerprints of models and of rows: what reference log-probs are kept under, and compared by across runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from prm_ray.adapters import adapter_base
from prm_ray.models import WEIGHT_FILES, resolve_model
from prm_ray.tables import BOOKKEEPING

_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def model_fingerprint(name: str) -> str:
    """Hash of weights (an adapter's and its base's), tokenizer and chat template.

    Weights are sampled (sizes, headers, evenly spaced blocks of every file), so that 140 GB cost seconds; any training
    step changes every block.
    """
    folder = Path(resolve_model(name))
    digest = hashlib.blake2b(digest_size=16)
    if not folder.is_dir():
        digest.update(name.encode())
        return digest.hexdigest()
    files = [path for pattern in (*WEIGHT_FILES, "*.json", "*.jinja") for path in folder.glob(pattern)]
    for path in sorted({path for path in files if path.name not in BOOKKEEPING}):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        for block in _sample_blocks(path):
            digest.update(block)
    if (base := adapter_base(folder)) is not None:
        digest.update(model_fingerprint(base).encode())
    return digest.hexdigest()


def row_fingerprint(model: str, prompt: Iterable[int], response: Iterable[int]) -> str:
    """Key of one row's reference log-probs: the model's fingerprint and the token ids."""
    content = json.dumps([model, list(prompt), list(response)])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _sample_blocks(path: Path) -> Iterable[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            offset = number * max(size - _BLOCK_BYTES, 0) // (_BLOCKS - 1)
            file.seek(offset)
            yield file.read(_BLOCK_BYTES)
            if size <= _BLOCK_BYTES:
                return
