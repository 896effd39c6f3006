"""The parts of RL trainers that ask for rewards, against the server over HTTP with a tiny model behind it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prm_ray.integrations.trl import reward_function
from prm_ray.integrations.verl import write_step_rewards
from prm_ray.models import encode_prompt
from prm_ray.scorer import Scorer
from prm_ray.serve.bodies import sigmoid
from tests.serving import over_http, tiny_api, tiny_scorer

PROBLEM = "1 + 2 + 4"
RESPONSE = "1 + 2 = 3\n3 + 4 = 7\n"


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture(scope="module")
def url(scorer: Scorer) -> Iterator[str]:
    with over_http(tiny_api({"demo": scorer})) as url:
        yield url


def test_openrlhf_as_its_agent_sends_it(url: str, scorer: Scorer) -> None:
    """Lists of one, from a session of aiohttp."""
    aiohttp = pytest.importorskip("aiohttp")
    tokenizer = scorer.tokenizer
    prompt = tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": PROBLEM}]))
    payload = {"query": [f"{prompt}{RESPONSE}{tokenizer.eos_token}"], "prompts": [prompt], "labels": ["7"]}

    async def ask() -> Any:
        timeout = aiohttp.ClientTimeout(total=180)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{url}/get_reward", json=payload) as reply,
        ):
            reply.raise_for_status()
            return await reply.json()

    found = asyncio.run(ask())
    (reward,) = found["rewards"]
    assert reward == pytest.approx(scorer.score(PROBLEM, [RESPONSE])[0].rewards["min"], abs=1e-5) and found[
        "scores"
    ] == [sigmoid(reward)]
    assert all(len(torch.tensor([values])) == 1 for values in found["extra_logs"].values())  # as it stores them


@pytest.mark.parametrize("conversational", [False, True])
def test_trls_grpo_trainer_learns_from_the_reward_function(
    url: str, scorer: Scorer, tiny_model: str, tmp_path: Path, conversational: bool
) -> None:
    """Two steps of the real trainer; what it logs as reward is the mean of the scorer's rewards of what it sampled."""
    trl = pytest.importorskip("trl")
    asked: list[tuple[list[Any], list[Any], list[float | None]]] = []
    ask = reward_function(url, aggregation="mean", with_token_ids=True)

    def prm(prompts: list[Any], completion_ids: list[list[int]], **more: Any) -> list[float | None]:
        found = ask(prompts=prompts, completion_ids=completion_ids, **more)
        asked.append((prompts, completion_ids, found))
        return found

    prompts = [[{"role": "user", "content": text}] if conversational else text for text in ("1 + 2", "3 + 4")]
    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=prm,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert len(asked) == len(logs) == 2
    for log, (problems, tokens, found) in zip(logs, asked, strict=True):
        pairs = zip(problems, tokens, strict=True)
        expected = [scorer.score(problem, [ids])[0].rewards["mean"] for problem, ids in pairs]
        assert found == pytest.approx(expected, abs=1e-4)
        assert log["reward"] == log["rewards/prm/mean"] == pytest.approx(sum(expected) / 4, abs=1e-4)
        assert log["prm_without_reward"] == 0 and log["grad_norm"] > 0


def test_verls_reward_manager_takes_what_compute_score_gives(url: str, scorer: Scorer) -> None:
    """Through its loader of custom functions and its default manager, with the arguments of its config."""
    verl = pytest.importorskip("verl", reason="not in the environment: it needs older releases of what is there")
    import numpy as np
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    custom = {"path": "pkg://prm_ray.integrations.verl", "name": "compute_score"}
    options = {"url": url, "aggregation": "sum"}
    config = OmegaConf.create({"reward": {"custom_reward_function": custom | {"reward_kwargs": options}}})
    response = torch.tensor([[*scorer.score(PROBLEM, [RESPONSE])[0].tokens, 0, 0]])
    mask = torch.tensor([[1, 1] + [1] * (response.shape[1] - 2) + [0, 0]])
    texts = {"data_source": "x", "reward_model": {"ground_truth": "7"}, "extra_info": {"question": PROBLEM}}
    batch = {"prompts": torch.tensor([[5, 6]]), "responses": response, "attention_mask": mask}
    rows = {key: np.array([value], dtype=object) for key, value in texts.items()}
    data = verl.DataProto(batch=TensorDict(batch, batch_size=1), non_tensor_batch=rows)

    async def score() -> Any:
        manager = NaiveRewardManager(config, scorer.tokenizer, get_custom_reward_fn(config))
        manager.loop = asyncio.get_running_loop()
        return await manager.run_single(data)

    found, (ours,) = asyncio.run(score()), scorer.score(PROBLEM, [RESPONSE])
    assert found["reward_score"] == pytest.approx(ours.rewards["sum"], abs=1e-5)
    row = torch.zeros(response.shape[1])
    write_step_rewards(row, found["reward_extra_info"]["step_rewards"], found["reward_extra_info"]["step_ends"])
    assert row[[end - 1 for end in ours.step_ends]].tolist() == pytest.approx(ours.step_rewards, abs=1e-5)
