"""The prefix cache: what is kept changes no log-prob, spares every token seen before, and stays within its bound."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from prm_ray.adapters import AdapterSettings, add_adapter
from prm_ray.core import attention
from prm_ray.core.forest import ForestAttention
from prm_ray.core.packing import PackedBatch, PromptGroup, pack, pack_lazily
from prm_ray.core.past import Past, Pools
from prm_ray.core.prefixcache import PrefixCache
from prm_ray.core.radix import RadixTree
from prm_ray.errors import UserError
from prm_ray.models import load_model, load_tokenizer
from prm_ray.scorer import Scorer, cached_group_logprobs, group_values

FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    "Gemma3": {"head_dim": 16},
}


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Any:
    return load_model(tiny_model, "float32")


def random_calls(seed: int, num_calls: int = 8) -> list[list[PromptGroup]]:
    """Texts that take up earlier ones anywhere and go on; prompts and responses are cut wherever it falls."""
    rng = random.Random(seed)
    seen = [[rng.randrange(3, 9) for _ in range(10)]]

    def group() -> PromptGroup:
        prompt = rng.choice(seen)
        prompt = prompt[: rng.randint(1, len(prompt))]
        responses = []
        for _ in range(rng.randint(1, 4)):
            text = rng.choice([text for text in [*seen, prompt] if text[: len(prompt)] == prompt])
            text = text[: rng.randint(len(prompt), len(text))]
            text = text + [rng.randrange(3, 9) for _ in range(rng.choice([0, 1, 5, rng.choice([20, 150])]))]
            responses.append(text[len(prompt) :])
        seen.extend([*prompt, *response] for response in responses)
        seen[:] = [text for text in seen if len(text) < 300][-8:]
        return PromptGroup(prompt, responses)

    return [[group() for _ in range(rng.randint(1, 3))] for _ in range(num_calls)]


def check(cache: PrefixCache, groups: list[PromptGroup], token_budget: int = 5000) -> int:
    """Compare with the log-probs without a cache; the number of tokens that were computed for it."""
    before = cache.num_computed
    ours, theirs = cached_group_logprobs(cache, groups, token_budget), group_values(cache.model, groups, 5000)
    for our_responses, their_responses in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_responses, their_responses, atol=1e-5, rtol=0)
    assert cache.num_used <= cache.num_tokens
    return cache.num_computed - before


@pytest.mark.parametrize("token_budget", [1, 60, 5000])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 100, 600, 5000])
def test_whatever_was_asked_before_log_probs_are_those_without_a_cache(model: Any, num_tokens: int, token_budget: int):
    cache = PrefixCache(model, num_tokens)
    for groups in random_calls(seed=num_tokens + token_budget):
        check(cache, groups, token_budget)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_its_cached_tokens(family: str) -> None:
    import transformers

    torch.manual_seed(0)
    kind = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    config = getattr(transformers, kind)(**sizes, **heads, **FAMILIES[family])
    cache = PrefixCache(getattr(transformers, f"{family}ForCausalLM")(config).eval(), 400)
    for groups in random_calls(seed=5):
        check(cache, groups)
    assert cache.num_computed < sum(len(batch.input_ids_T) for g in random_calls(seed=5) for batch in pack(g, 5000))


def test_only_new_tokens_are_computed(model: Any) -> None:
    cache, prompt = PrefixCache(model, 1000), list(range(3, 53))
    assert check(cache, [PromptGroup(prompt, [[60, 61, 62], [60, 63]])]) == 50 + 3 + 1
    assert check(cache, [PromptGroup(prompt, [[64, 65]])]) == 2, "new candidate to a known prompt"
    assert check(cache, [PromptGroup(prompt, [[60, 61, 62, 70, 71], [60, 63, 72]])]) == 3, "candidates grown by a step"
    assert check(cache, [PromptGroup(prompt, [[60, 61, 80], [60, 61, 80]])]) == 1, "branch within what is cached, twice"
    assert check(cache, [PromptGroup(prompt[:20], [[99, 98]])]) == 2, "branch within the prompt"
    assert check(cache, [PromptGroup(prompt, [[60, 61, 62, 70], []])]) == 0, "nothing new at all"


def test_a_prompt_may_later_be_a_response_and_the_other_way_round(model: Any) -> None:
    cache, text = PrefixCache(model, 1000), list(range(3, 43))
    check(cache, [PromptGroup(text, [[50]])])
    assert check(cache, [PromptGroup(text[:1], [text[1:]])]) == 0
    assert check(cache, [PromptGroup(text[:30], [text[30:], text[30:35]])]) == 0
    assert check(cache, [PromptGroup([*text, 50], [[51]])]) == 1
    assert check(cache, [PromptGroup(text, [[50, 51]])]) == 0


def test_a_new_text_between_known_ones_sees_none_of_them(model: Any) -> None:
    cache, known = PrefixCache(model, 1000), [PromptGroup([first] * 20, [[10]]) for first in (3, 5)]
    check(cache, known)
    grown = [PromptGroup([first] * 20, [[10, 11], [10, 12]]) for first in (3, 4, 5)]
    assert check(cache, grown) == 2 + 23 + 2


def test_batches_of_one_call_build_upon_each_other(model: Any) -> None:
    groups = [PromptGroup(list(range(3, 43)), [[i, i + 1] for i in range(50, 60)])]
    assert check(PrefixCache(model, 1000), groups, token_budget=45) == 40 + 10 * 2


def test_the_least_recently_used_text_goes_first(model: Any) -> None:
    old, used, new = ([PromptGroup([first] * 10, [[20] * 10])] for first in (3, 4, 5))
    cache = PrefixCache(model, 45)
    assert [check(cache, groups) for groups in (old, used, used, new)] == [20, 20, 0, 20]
    assert cache.num_used == 45
    assert [check(cache, groups) for groups in (new, used)] == [0, 0]
    assert check(cache, old) == 15, "its first 5 tokens found room"


def test_memory_is_bounded_by_the_number_of_tokens(model: Any) -> None:
    cache = PrefixCache(model, 64)
    sizes = set()
    for groups in random_calls(seed=1):
        check(cache, groups)
        sizes.add(cache.num_bytes)
    layers, key_value_heads, head_size, hidden_size = 2, 2, 8, 32
    assert sizes == {64 * (layers * 2 * key_value_heads * head_size + hidden_size + 1) * 4}
    assert cache.num_used == 64


def test_a_call_that_fails_leaves_the_cache_as_it_was(tiny_model: str) -> None:
    model = load_model(tiny_model, "float32")
    cache, groups = PrefixCache(model, 100), [PromptGroup([3] * 20, [[5, 6]])]
    check(cache, groups)
    model.config.sliding_window = 25
    with pytest.raises(ValueError, match="30 tokens is longer than the model's sliding window of 25"):
        cached_group_logprobs(cache, [PromptGroup([3] * 20, [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])], 1000)
    model.config.sliding_window = None
    assert cache.num_used == 22
    assert check(cache, groups) == 0
    assert check(cache, [PromptGroup([4] * 70, [[5] * 8])]) == 78
    assert cache.num_used == 100, "no slot got lost"


def test_weights_that_change_empty_the_cache(tiny_model: str) -> None:
    model = load_model(tiny_model, "float32")
    cache, groups = PrefixCache(model, 100), [PromptGroup([3] * 20, [[5, 6]])]
    check(cache, groups)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert check(cache, groups) == 22


def test_threads_that_share_a_cache_wait_for_each_other(model: Any) -> None:
    cache, calls = PrefixCache(model, 200), [random_calls(seed)[0] for seed in range(6)] * 3
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda groups: cached_group_logprobs(cache, groups, 100), calls))
    for groups, ours in zip(calls, results, strict=True):
        for our_responses, theirs in zip(ours, group_values(model, groups, 5000), strict=True):
            torch.testing.assert_close(our_responses, theirs, atol=1e-5, rtol=0)


def test_a_scorer_with_a_cache_gives_the_same_rewards_for_fewer_tokens(tiny_model: str, other_tiny_model: str) -> None:
    models = load_model(tiny_model, "float32"), load_model(other_tiny_model, "float32")
    plain, ours = (
        Scorer(*models, load_tokenizer(tiny_model), beta=0.5, step_rule="newline", cache_tokens=size)
        for size in (0, 500)
    )
    for responses in (["1+2=3\n", "1+2=4\n"], ["1+2=3\n3+4=7\n", "1+2=3\n3+4=8\n"]):
        for one, other in zip(plain.score("1+2+4", responses), ours.score("1+2+4", responses), strict=True):
            assert one.token_rewards == pytest.approx(other.token_rewards, abs=1e-5)
            assert one.steps == other.steps
    assert plain.policy_cache is None and plain.reference_cache is None
    assert ours.policy_cache and ours.reference_cache
    everything = ours.prepare("1+2+4", ["1+2=3\n3+4=7\n", "1+2=3\n3+4=8\n"]).num_tokens
    for cache in (ours.policy_cache, ours.reference_cache):
        computed = cache.num_computed
        ours.score("1+2+4", ["1+2=3\n", "1+2=3\n3+4=7\n"])
        assert cache.num_computed == computed < everything


def test_an_adapter_and_its_base_have_a_cache_each(tiny_model: str) -> None:
    pytest.importorskip("peft")
    adapted = add_adapter(load_model(tiny_model, "float32"), AdapterSettings(rank=2, alpha=4), seed=0).eval()
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        torch.nn.init.normal_(weight) if "lora_B" in name else None
    tokenizer = load_tokenizer(tiny_model)
    plain, ours = (Scorer(adapted, adapted, tokenizer, beta=0.5, cache_tokens=size) for size in (0, 500))
    for responses in (["1+2=3"], ["1+2=3", "1+2=3 and"], ["1+2=3", "1+2=3 and"]):
        for one, other in zip(plain.score("1+2+4", responses), ours.score("1+2+4", responses), strict=True):
            assert one.token_rewards == pytest.approx(other.token_rewards, abs=1e-5)
            assert one.rewards["sum"] != 0
    assert ours.policy_cache and ours.reference_cache
    assert ours.policy_cache.num_computed == ours.reference_cache.num_computed
    assert ours.policy_cache.num_computed == ours.prepare("1+2+4", responses).num_tokens - len("1+2=3"), "shared once"


def test_a_scorer_refuses_a_cache_of_negative_size(tiny_model: str) -> None:
    with pytest.raises(UserError, match="cache_tokens is -1; it must be 0"):
        Scorer.from_pretrained(tiny_model, tiny_model, dtype="float32", cache_tokens=-1)


def batch_behind_cached_tokens() -> tuple[PackedBatch, Past, Pools]:
    """Trees of 2 to 140 tokens: below 150 cached ones, on two branches below these, and with nothing above."""
    tree, rng = RadixTree(400), random.Random(0)
    stem = [3] * 150
    for text in ([*stem, *[4] * 40], [*stem, *[5] * 30]):
        known = tree.find(np.array(text))
        tree.put(np.array(text), np.concatenate([known, tree.take(len(text) - len(known))]))
    responses = [[4] * 40 + [rng.randrange(6, 9) for _ in range(n)] for n in (2, 140, 9)]
    responses += [[5, 5, 9, 9], [6, 7], [6, 8]]
    (batch,) = pack_lazily([PromptGroup(stem, responses), PromptGroup([9], [[9] * 20])], 5000, tree.find)
    pools = Pools(400)
    return batch, Past(pools, batch, tree.take(len(batch.input_ids_T))), pools


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_gpu_rule_sees_the_same_cached_tokens_as_the_cpu_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    batch, past, pools = batch_behind_cached_tokens()
    torch.manual_seed(0)
    for name in ("key", "value"):
        pools.store((name, 0), torch.arange(400), torch.randn(400, 2, 16))
    num_tokens = len(batch.input_ids_T)
    states = (torch.randn(1, 4, num_tokens, 16), torch.randn(1, 2, num_tokens, 16), torch.randn(1, 2, num_tokens, 16))
    forest = ForestAttention(batch.nodes, num_tokens, torch.device("cpu"), past)
    key, value = past.extend(0, *states[1:])
    by_calls = attention._Segments.apply(states[0], key, value, forest, 0.25)
    torch.testing.assert_close(attention._flex(states[0], key, value, forest, 0.25, None), by_calls, atol=1e-5, rtol=0)


def test_every_slot_comes_back_when_all_is_forgotten() -> None:
    rng, tree = random.Random(0), RadixTree(60)
    for _ in range(300):
        text = np.array([rng.randrange(2) for _ in range(rng.randint(1, 25))])
        known = tree.find(text)
        taken = tree.take(len(text) - len(known))
        tree.put(text[: len(known) + len(taken)], np.concatenate([known, taken]))
        tree.next_turn()
        assert tree.find(text).tolist() == [*known, *taken]
    tree.next_turn()
    assert sorted(tree.take(1000)) == list(range(60))
    assert tree.find(np.array([0, 1, 0])).tolist() == []
