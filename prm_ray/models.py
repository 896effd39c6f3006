"""Load causal language models and tokenizers, and turn messages and texts into token ids: the one place that does.

Loading is strict: safetensors only, no remote code unless asked for, and what a later stage would stumble over (no
tokenizer, no chat template, different vocabularies) is said here in one line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_ray.adapters import WEIGHTS_FILE, adapter_base, load_adapter
from prm_ray.config import RunConfig
from prm_ray.damage import not_loaded, reason
from prm_ray.embeddedmodel import EMBEDDED, embedded_folder
from prm_ray.errors import UserError
from prm_ray.modelcache import local_copy, named_from, way_to
from prm_ray.settings import PromptSection
from prm_ray.tables import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_TOKENS_OF_A_CHARACTER = 16
"""More than any character has, by far: a text without a whole character in so many is no text."""
_NAMED_FROM_HERE = ("reference", "base")
"""Models that prm.json names by their way from its own folder."""


def resolve_model(name: str) -> str:
    """A folder of this machine, or a hub id, that transformers and vLLM load. Raises `UserError` if there is no model.

    A name means the same on all machines, what it resolves to does not: the embedded model is converted once into a
    cache, and one at an address copied there, and each machine has a cache of its own.
    """
    name = _on_this_machine(name)
    if _looks_like_path(name):
        if adapter_base(name) is None:
            _check_folder(Path(name))
        else:
            _check_adapter_folder(Path(name))
    return name


def base_model(config: RunConfig) -> str:
    """Name of the model that generates, is the reference, and starts as the policy: the warm-up's result if there is
    one.

    Raises `UserError` for an adapter folder: what generates and starts a training must be a whole model.
    """
    if is_adapter(config.model.name):
        raise UserError(f"model.name {config.model.name!r} is an adapter folder; it must be a whole model")
    if config.warmup.enabled:
        return str(config.run.dir / "warmup")
    resolve_model(config.model.name)
    return config.model.name


def reference_model(config: RunConfig) -> str:
    """Name of the model that rewards are relative to."""
    return config.reference.model or base_model(config)


def is_adapter(name: str) -> bool:
    return adapter_base(_on_this_machine(name)) is not None


def is_adapter_over(policy: str, reference: str) -> bool:
    """The policy, a folder, is an adapter, and the reference is what lies under it."""
    base = adapter_base(policy)
    return base is not None and (base == reference or Path(resolve_model(base)).resolve() == Path(reference).resolve())


def load_tokenizer(
    name: str, chat_template: Path | None = None, trust_remote_code: bool = False, needs_chat: bool = True
) -> PreTrainedTokenizerFast:
    """Load the tokenizer of `name`. Raises `UserError` if there is none, or it has no end token or no chat template,
    unless it needs none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_on_this_machine(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise not_loaded(f"model {name!r} has no tokenizer that loads", error) from None
    if chat_template is not None:
        if not chat_template.is_file():
            raise UserError(f"prompt.chat_template {str(chat_template)!r} does not exist")
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if needs_chat and not tokenizer.chat_template:
        raise UserError(f"model {name!r} has no chat template; give one as a Jinja file in prompt.chat_template")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of model {name!r} has no eos_token; responses could not end")
    return tokenizer


def load_model(
    name: str, dtype: str = "auto", trust_remote_code: bool = False, device: str | None = None
) -> PreTrainedModel:
    """Load a causal language model in eval mode, on `device` (none = the GPU this process may use, else the CPU).

    `dtype` is `float32`, `bfloat16`, `float16` or `auto`: bfloat16 where the device is fast in it, else float32.

    An adapter folder gives its base model with the adapter over it: a `peft.PeftModel`, used in the same way. Raises
    `UserError` for what does not load, or lacks weights: those would be random, as the output layer of a value head's.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from prm_ray.core.device import DTYPES, number_format, own_device, placed

    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
    folder = resolve_model(name)
    if (base := adapter_base(folder)) is not None:
        return load_adapter(load_model(base, dtype, trust_remote_code, device), folder).eval()
    device = device or own_device()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=number_format(dtype, device),
            use_safetensors=True,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise not_loaded(f"model {name!r} does not load", error, name) from None
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"model {name!r} is no whole language model: its files lack {missing[0]!r}")
    return placed(model, device)


def check_vocabularies(policy: str, reference: str, trust_remote_code: bool = False) -> None:
    """Raises `UserError` unless both models read the same token ids (same tokenizer, so ids mean the same text)."""
    if policy == reference:
        return
    ours, theirs = (
        load_tokenizer(name, trust_remote_code=trust_remote_code).get_vocab() for name in (policy, reference)
    )
    if ours != theirs:
        raise UserError(
            f"policy {policy!r} ({len(ours)} tokens) and reference {reference!r} ({len(theirs)} tokens) "
            "have different vocabularies; their log-ratio is defined only over the same token ids"
        )


def load_config(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model, or of what an adapter lies over. Raises `UserError` for one that does not load."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(_whole_model(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise not_loaded(f"model {name!r} has no config that loads", error) from None


def context_length(name: str, trust_remote_code: bool = False) -> int | None:
    """Most tokens the model can read at once, if its config says so."""
    return getattr(load_config(name, trust_remote_code), "max_position_embeddings", None)


def count_parameters(name: str, trust_remote_code: bool = False) -> int:
    """Parameters that a token is multiplied with: all of the whole model's but an embedding table only looked up in.

    Read from the config alone, no weights are loaded. An adapter counts as its base.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_config(name, trust_remote_code), trust_remote_code=trust_remote_code
        )
    total = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    looked_up, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return total if looked_up is output else total - looked_up.numel()


def build_messages(prompt: PromptSection, problem: str) -> list[dict[str, str]]:
    """The chat of one problem: system message, worked examples as earlier turns, then the problem."""
    messages = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    for example in prompt.examples:
        messages.append({"role": "user", "content": prompt.template.replace("{problem}", example.problem)})
        messages.append({"role": "assistant", "content": example.solution})
    return [*messages, {"role": "user", "content": prompt.template.replace("{problem}", problem)}]


def encode_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of the chat up to and including the assistant's header. Raises `UserError` for messages that the chat
    template refuses, as many do a system message or two turns of one role."""
    return list(_templated(tokenizer, messages, tokenize=True, return_dict=False))


def prompt_text(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]]) -> str:
    """The text that `encode_prompt` gives the token ids of. Raises as it does."""
    text = _templated(tokenizer, messages, tokenize=False)
    assert isinstance(text, str)
    return text


def _templated(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]], **options: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, **options)
    except TemplateError as error:
        raise UserError(f"the model's chat template refuses the messages: {reason(error)}") from None


def encode_response(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a response text that was not sampled here, closed by the end-of-turn token."""
    return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def decode(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    """Text of token ids, special tokens dropped, nothing tidied up."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def token_char_ends(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> list[int]:
    """For each token the length of the text decoded up to and including it (a part of a character counts as nothing).

    Linear in the number of tokens: each one is decoded behind the last few only, as streaming servers do, because
    some tokenizers change a token's text at the start of a string. Where many tokens give no whole character, they
    never will: their text is taken as it is.
    """
    ends, length, start, read = [], 0, 0, 0
    before = ""
    for index in range(len(tokens)):
        text = decode(tokenizer, tokens[start : index + 1])
        if len(text) > len(before) and (not text.endswith("�") or index - read > _TOKENS_OF_A_CHARACTER):
            length += len(text) - len(before)
            start, read = read, index + 1
            before = decode(tokenizer, tokens[start:read])
        ends.append(length)
    return ends


def write_prm_json(folder: Path, facts: dict[str, Any], home: Path | None = None) -> None:
    """Write what makes `folder` a PRM. A reference or base that is a folder is named from here, so all can move.

    `home` is where `folder` will be put in the end, if it is not there yet.
    """
    named = {key: facts[key] for key in _NAMED_FROM_HERE if key in facts}
    write_json(folder / "prm.json", facts | {key: way_to(name, home or folder) for key, name in named.items()})


def read_prm_json(folder: str | Path) -> dict[str, Any]:
    """What makes a model folder a PRM: objective, beta, reference, step rule. Raises `UserError` if it is missing."""
    name, folder = str(folder), local_copy(str(folder))
    path = Path(folder) / "prm.json"
    if not path.is_file():
        raise UserError(f"{name!r} is not a trained PRM: it has no prm.json")
    facts = json.loads(path.read_text(encoding="utf-8"))
    folders = {key: (Path(folder) / facts[key]).resolve() for key in _NAMED_FROM_HERE if key in facts}
    there = {key: named_from(folder, facts[key]) for key in folders}
    return facts | there | {key: str(found) for key, found in folders.items() if found.is_dir()}


def _on_this_machine(name: str) -> str:
    return str(embedded_folder()) if name == EMBEDDED else local_copy(name)


def _whole_model(name: str) -> str:
    """The model itself, or what an adapter lies over, resolved."""
    folder = resolve_model(name)
    base = adapter_base(folder)
    return folder if base is None else resolve_model(base)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists() or name.count("/") != 1


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"model {str(folder)!r} does not exist; it must be a model folder, a hub id or {EMBEDDED!r}")
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {str(folder)!r} has no config.json")
    if not any(True for pattern in WEIGHT_FILES for _ in folder.glob(pattern)):
        raise UserError(f"model folder {str(folder)!r} holds no safetensors weights (pickled weights are not read)")


def _check_adapter_folder(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"adapter folder {str(folder)!r} has no {WEIGHTS_FILE} (pickled weights are not read)")
    try:
        resolve_model(adapter_base(folder) or "")
    except UserError as error:
        raise UserError(f"adapter folder {str(folder)!r} lies over a base that cannot be used: {error}") from None
