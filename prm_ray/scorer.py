"""`Scorer`: (problem, responses) -> step rewards, from a policy and (or without) its reference. No Ray, no vLLM.

    scorer = Scorer.from_pretrained("runs/demo/checkpoint")
    for response in scorer.score("12 + 45 - 8", ["12 + 45 = 57\\n57 - 8 = 49\\nAnswer: 49"]):
        print(response.steps, response.step_rewards, response.rewards["sum"])

The batch stage, the server and search use this class, so they cannot disagree but by rounding: in bfloat16 that differs
with what else is in a batch, and with what a prefix cache holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prm_ray.adapters import has_adapter
from prm_ray.core.forward import (
    Reading,
    cached_response_logprobs,
    policy_and_reference_logprobs,
    response_logprobs,
)
from prm_ray.core.packing import PackedBatch, PromptGroup, pack, pack_lazily, unpack
from prm_ray.core.prefixcache import PrefixCache
from prm_ray.core.rewards import step_rewards, token_rewards
from prm_ray.errors import UserError
from prm_ray.models import (
    check_vocabularies,
    is_adapter_over,
    load_model,
    load_tokenizer,
    read_prm_json,
    resolve_model,
)
from prm_ray.settings import PromptSection
from prm_ray.texts import (
    Candidates,
    Problem,
    Response,
    ScoredResponse,
    check_numbers,
    check_scoring,
    encode_candidates,
    longest_text,
    scored_responses,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@torch.no_grad()
def group_values(
    model: PreTrainedModel, groups: Sequence[PromptGroup], token_budget: int, reading: Reading = response_logprobs
) -> list[list[torch.Tensor]]:
    """Log-probs (or what else is read) of every response token: for each group a float32 CPU tensor a response."""
    return _by_group(groups, ((batch, reading(model, batch)) for batch in pack(groups, token_budget)))


def cached_group_logprobs(
    cache: PrefixCache, groups: Sequence[PromptGroup], token_budget: int
) -> list[list[torch.Tensor]]:
    """The same from the model of a prefix cache: what it holds is not computed again, what it lacks is added.

    Threads may share a cache: one call works at a time. `token_budget` counts new tokens.
    """
    with cache.use():
        batches = pack_lazily(groups, token_budget, cache.find)
        return _by_group(groups, ((batch, cached_response_logprobs(cache, batch)) for batch in batches))


def _by_group(
    groups: Sequence[PromptGroup], scored: Iterable[tuple[PackedBatch, torch.Tensor]]
) -> list[list[torch.Tensor]]:
    found = [[torch.zeros(0)] * len(group.responses) for group in groups]
    for batch, logprobs_R in scored:
        for (group, response), values in unpack(logprobs_R.cpu(), batch):
            found[group][response] = values
    return found


@torch.no_grad()
def group_logprob_pairs(
    model: PreTrainedModel, groups: Sequence[PromptGroup], token_budget: int
) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """`group_values` with the model's adapter, and without it: one forward pass for policy and reference.

    A pass holds two rows, so half as many tokens in each.
    """
    policy = [[torch.zeros(0)] * len(group.responses) for group in groups]
    reference = [[torch.zeros(0)] * len(group.responses) for group in groups]
    for batch in pack(groups, max(1, token_budget // 2)):
        for found, logprobs_R in zip((policy, reference), policy_and_reference_logprobs(model, batch), strict=True):
            for (group, response), values in unpack(logprobs_R.cpu(), batch):
                found[group][response] = values
    return policy, reference


Logprobs = Sequence[Sequence[torch.Tensor]]
"""Float32 [T] of every response of every group."""
RefLogprobs = Sequence[Sequence[torch.Tensor | None]]
"""The same of the reference; None without one."""


class Scorer:
    """Step rewards from a policy, and mostly a reference: causal language models over the same tokens."""

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerFast,
        *,
        beta: float,
        step_rule: str = "blank_line",
        prompt: PromptSection | None = None,
        token_budget: int = 8192,
        with_reference: bool = True,
        beta_schedule: str = "constant",
        cache_tokens: int = 0,
    ):
        """`with_reference=False` leaves the reference out; else `reference=None` needs cached log-probs.

        A policy that is an adapter over its reference is given as both: then one model and one pass do for the two.

        With `cache_tokens` each model keeps what it computed for so many tokens, the most recently used ones: a prompt
        seen before with new responses, or a response that grew by a step, costs only its new tokens. An adapter and
        its base are two passes and two caches then.
        """
        check_numbers(beta=beta, token_budget=token_budget, cache_tokens=cache_tokens)
        for model in (policy, reference):
            if model is not None:
                check_scoring(model, step_rule)
        self.policy, self.reference, self.tokenizer = policy, reference, tokenizer
        self.beta, self.step_rule, self.token_budget = beta, step_rule, token_budget
        self.with_reference, self.beta_schedule = with_reference, beta_schedule
        self.policy_cache, self.reference_cache = (
            PrefixCache(model, cache_tokens) if cache_tokens and model is not None else None
            for model in (policy, reference if with_reference else None)
        )
        self.prompt = prompt or PromptSection()

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the policy's prefix cache has spared so far; the reference's spares the same ones."""
        return 0 if self.policy_cache is None else self.policy_cache.num_found

    @classmethod
    def from_pretrained(
        cls,
        policy: str | Path,
        reference: str | Path | None = None,
        *,
        dtype: str = "auto",
        token_budget: int = 8192,
        beta: float | None = None,
        step_rule: str | None = None,
        with_reference: bool | None = None,
        beta_schedule: str | None = None,
        cache_tokens: int = 0,
        trust_remote_code: bool = False,
    ) -> Scorer:
        """Load a trained PRM and its reference (none = the one named in the PRM's `prm.json`).

        Plain model folders do too: then `beta` is 1 and steps end at blank lines unless given. `with_reference=False`
        loads the policy alone; none is, here and in `beta_schedule`, as the PRM's responses were scored. Raises
        `UserError` if the two models read different vocabularies, or a reference is given that would not be used.
        """
        policy_path = resolve_model(str(policy))
        facts = read_prm_json(policy_path) if (Path(policy_path) / "prm.json").is_file() else {}
        if facts.get("reward", "log_ratio") != "log_ratio":
            raise UserError(f"{policy_path!r} has a {facts['reward']}: load it with HeadScorer.from_pretrained")
        if with_reference is None:
            with_reference = reference is not None or facts.get("with_reference", True)
        if with_reference and reference is None and "reference" not in facts:
            raise UserError(
                f"{policy_path!r} has no prm.json that names a reference; give one, or score with_reference=False"
            )
        if not with_reference and reference is not None:
            raise UserError(f"the reference {str(reference)!r} would not be used: with_reference is False")
        reference_path = resolve_model(str(reference or facts["reference"])) if with_reference else None
        if reference_path is not None:
            check_vocabularies(policy_path, reference_path, trust_remote_code)
        policy_model = load_model(policy_path, dtype, trust_remote_code)
        reference_model = None
        if reference_path is not None:
            is_base = is_adapter_over(policy_path, reference_path)
            reference_model = policy_model if is_base else load_model(reference_path, dtype, trust_remote_code)
        return cls(
            policy_model,
            reference_model,
            load_tokenizer(policy_path, trust_remote_code=trust_remote_code),
            beta=facts.get("beta", 1.0) if beta is None else beta,
            step_rule=step_rule or facts.get("step_rule", "blank_line"),
            prompt=PromptSection.model_validate(facts.get("prompt", {})),
            token_budget=token_budget,
            with_reference=with_reference,
            beta_schedule=beta_schedule or facts.get("beta_schedule", "constant"),
            cache_tokens=cache_tokens,
        )

    @property
    def longest(self) -> int | None:
        """Tokens of prompt and response that it reads together; None = no limit."""
        return longest_text(self.policy)

    def score(self, problem: Problem, responses: Sequence[Response]) -> list[ScoredResponse]:
        """Score responses to one problem, in their order.

        Raises `UserError` for an empty response, which has no token to reward, and for one that is longer behind its
        prompt than what the model can read.
        """
        (scored,) = self.score_prepared([self.prepare(problem, responses)])
        return scored

    def prepare(self, problem: Problem, responses: Sequence[Response]) -> Candidates:
        """The part of `score` that needs no model: encodes and checks. Raises `UserError` as `score` does."""
        return encode_candidates(self.policy, self.tokenizer, self.prompt, self.step_rule, problem, responses)

    def score_prepared(self, prepared: Sequence[Candidates]) -> list[list[ScoredResponse]]:
        """Score candidates of many problems in packed passes over all of them."""
        policy, reference = self.logprob_pairs([each.group for each in prepared])
        found = []
        rewards = self._paired(policy, reference)
        for candidates, of_group, *logprobs in zip(prepared, rewards, policy, reference, strict=True):
            scored = scored_responses(candidates, list(map(step_rewards, of_group, candidates.step_ends)), of_group)
            found.append(list(map(_with_logprobs, scored, *logprobs)))
        return found

    def score_tokens(self, groups: Sequence[PromptGroup]) -> list[list[list[float]]]:
        """Token rewards of every response of every group: beta * (log pi - log pi_ref), or beta * log pi."""
        return self._paired(*self.logprob_pairs(groups))

    def logprob_pairs(self, groups: Sequence[PromptGroup]) -> tuple[Logprobs, RefLogprobs]:
        """log pi and log pi_ref [T] of every response of every group; the latter are None `with_reference=False`."""
        if not self.with_reference:
            policy = self.policy_logprobs(groups)
            return policy, [[None] * len(group) for group in policy]
        assert self.reference is not None, "this scorer was made to score against cached reference log-probs"
        if self.reference is self.policy and has_adapter(self.policy):
            return self._adapter_pairs(groups)
        return self.policy_logprobs(groups), self._logprobs(self.reference, self.reference_cache, groups)

    def policy_logprobs(self, groups: Sequence[PromptGroup]) -> list[list[torch.Tensor]]:
        """log pi [T] of every response of every group, float32 on the CPU."""
        return self._logprobs(self.policy, self.policy_cache, groups)

    def rewards(
        self, logprobs: Sequence[Sequence[torch.Tensor]], ref_logprobs: Sequence[Sequence[torch.Tensor]]
    ) -> list[list[list[float]]]:
        """Token rewards from log pi and log pi_ref; the latter are not looked at `with_reference=False`."""
        if not self.with_reference:
            return self._paired(logprobs, [[None] * len(group) for group in logprobs])
        return self._paired(logprobs, ref_logprobs)

    def _adapter_pairs(self, groups: Sequence[PromptGroup]) -> tuple[Logprobs, RefLogprobs]:
        if self.policy_cache is None or self.reference_cache is None:
            return group_logprob_pairs(self.policy, groups, self.token_budget)
        with self.policy_cache.use(), self.policy.disable_adapter():  # while it is off, nobody fills the policy's cache
            ref_logprobs = cached_group_logprobs(self.reference_cache, groups, self.token_budget)
        return self.policy_logprobs(groups), ref_logprobs

    def _paired(self, logprobs: Logprobs, references: RefLogprobs) -> list[list[list[float]]]:
        return [
            [
                token_rewards(ours, theirs, self.beta, self.beta_schedule).tolist()
                for ours, theirs in zip(policy, reference, strict=True)
            ]
            for policy, reference in zip(logprobs, references, strict=True)
        ]

    def _logprobs(
        self, model: PreTrainedModel, cache: PrefixCache | None, groups: Sequence[PromptGroup]
    ) -> list[list[torch.Tensor]]:
        if cache is None:
            return group_values(model, groups, self.token_budget)
        return cached_group_logprobs(cache, groups, self.token_budget)


def _with_logprobs(
    scored: ScoredResponse, logprobs_T: torch.Tensor, ref_logprobs_T: torch.Tensor | None
) -> ScoredResponse:
    reference = [] if ref_logprobs_T is None else ref_logprobs_T.tolist()
    return replace(scored, policy_logprobs=logprobs_T.tolist(), ref_logprobs=reference)
