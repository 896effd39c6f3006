"""Where a model's shape comes from: its own config.json, a table of well-known models, or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from prm_ray.errors import UserError
from prm_ray.objectstore import is_remote, location, reading_from
from prm_ray.planning.shapes import Shape, shape_of

_QWEN_25 = {  # hidden, layers, intermediate, heads, key-value heads, vocabulary, tied
    "0.5B": (896, 24, 4864, 14, 2, 151_936, True),
    "1.5B": (1536, 28, 8960, 12, 2, 151_936, True),
    "3B": (2048, 36, 11_008, 16, 2, 151_936, True),
    "7B": (3584, 28, 18_944, 28, 4, 152_064, False),
    "14B": (5120, 48, 13_824, 40, 8, 152_064, False),
    "32B": (5120, 64, 27_648, 40, 8, 152_064, False),
    "72B": (8192, 80, 29_568, 64, 8, 152_064, False),
}
_QWEN_3 = {
    "0.6B": (1024, 28, 3072, 16, 8, 151_936, True),
    "1.7B": (2048, 28, 6144, 16, 8, 151_936, True),
    "4B": (2560, 36, 9728, 32, 8, 151_936, True),
    "8B": (4096, 36, 12_288, 32, 8, 151_936, False),
    "14B": (5120, 40, 17_408, 40, 8, 151_936, False),
    "32B": (5120, 64, 25_600, 64, 8, 151_936, False),
}
_LLAMA_3 = {
    "Llama-3.2-1B": (2048, 16, 8192, 32, 8, 128_256, True),
    "Llama-3.2-3B": (3072, 28, 8192, 24, 8, 128_256, True),
    "Llama-3.1-8B": (4096, 32, 14_336, 32, 8, 128_256, False),
    "Llama-3.1-70B": (8192, 80, 28_672, 64, 8, 128_256, False),
    "Llama-3.3-70B": (8192, 80, 28_672, 64, 8, 128_256, False),
}
KNOWN: dict[str, Shape] = {
    "smollm2-135m-instruct": Shape(576, 30, 1536, 9, 3, 49_152, True, context=8192),
    **{f"Qwen/Qwen2.5-{size}": Shape(*sizes, context=32_768, kind="qwen2") for size, sizes in _QWEN_25.items()},
    **{
        f"Qwen/Qwen2.5-Math-{size}": Shape(*_QWEN_25[size], context=4096, kind="qwen2")
        for size in ("1.5B", "7B", "72B")
    },
    **{f"Qwen/Qwen3-{size}": Shape(*sizes, 128, 40_960, "qwen3") for size, sizes in _QWEN_3.items()},
    **{f"meta-llama/{name}": Shape(*sizes, context=131_072) for name, sizes in _LLAMA_3.items()},
}
"""Hub ids of base models, which those with -Instruct behind them share their shape with."""

_SECONDS = 5
"""How long the hub may take to answer."""


def model_shape(name: str) -> tuple[Shape, str]:
    """The shape of a folder or hub id, and where it was read. Raises `UserError` saying what to give instead."""
    if is_remote(name):
        with reading_from(config := location(name) / "config.json"):
            return shape_of(_parsed(config.read_text(encoding="utf-8"), name), name), name
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return shape_of(_parsed((folder / "config.json").read_text(encoding="utf-8"), name), name), str(folder)
    if folder.is_dir() and (folder / "adapter_config.json").is_file():
        raise UserError(f"model {name!r} is an adapter folder; give the whole model under it")
    if name.removesuffix("-Instruct") in KNOWN:
        return KNOWN[name.removesuffix("-Instruct")], "built-in table"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"model {name!r} has no config.json that could be read: give a model folder, a hub id, or one of "
            f"{', '.join(KNOWN)}"
        )
    return shape_of(_parsed(_from_hub(name), name), name), "hub"


def _from_hub(name: str) -> str:
    """The model's config.json, from the hub's cache on this machine or from the hub, asked once and not for long."""
    try:
        from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached).read_text(encoding="utf-8")
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
        with urlopen(Request(hf_hub_url(name, "config.json"), headers=headers), timeout=_SECONDS) as reply:
            return reply.read().decode("utf-8")
    except ImportError:
        reason = "huggingface_hub is not installed"
    except (OSError, ValueError) as error:
        reason = _reason(error)
    raise UserError(
        f"the config.json of model {name!r} cannot be read from the hub ({reason}): give model.name=FOLDER, a folder "
        f"that holds it, or a model whose shape is built in: {', '.join(KNOWN)}"
    )


def _reason(error: Exception) -> str:
    """In one line; what urllib wraps (`<urlopen error [Errno -2] ...>`) without the wrapping."""
    text: object = error
    if type(error) is URLError:  # not an HTTPError, which says its status
        text = getattr(error.reason, "strerror", None) or error.reason
    return (str(text).strip().splitlines() or [type(error).__name__])[0]


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"the config.json of model {name!r} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"the config.json of model {name!r} must hold an object, not {type(config).__name__}")
    return config
