"""Compute account: floating-point operations of making a reward model's data and training on it.

2 operations a parameter and token forward, 4 backward (arXiv 2001.08361); attention over earlier tokens, norms and
sampling count as nothing. Costs are linear in counts, so means over prompts and responses are enough.

How "Free Process Rewards without Process Labels" (arXiv 2412.01981, section 4.3 and Figure 2) counts is not said there.
One reading gives all it prints, and is **inferred**, not stated:

- 33K instructions, N = 8.03e9, 6 N a token trained on, prompt and response, nothing shared; sampling the n responses
  and the reference's forward pass count as nothing. (DPO's 0.3, 0.8, 1.8 times CE at n = 2, 4, 8 is 0.26 (n - 1): two
  responses differ with chance 0.26, every pair trains two sequences, and no room is left for a term that is not
  proportional to n - 1, such as the sampling.)
- Math-Shepherd: 8 completions from each of 10 steps, 2 N a token, each reads prompt and prefix and writes as many
  tokens as a *whole* response has, then the PRM is trained. AutoPSV: two trainings, each of 10 prefixes read anew.
- The mean prompt has 132 tokens, the mean response 416. Their sum follows from CE's 7e18 at n = 8, the prompt's share,
  0.24, from 38.8: so 38.8 itself confirms nothing. What the same counts then give without any further choice:
  AutoPSV 4.2 times CE (printed 4.2 to 4.3), 2.9e19 (printed 3e19), Math-Shepherd 2.7e20 (printed 2.7e20).

If completions only wrote what is left of the response, Math-Shepherd would be 27.7 times CE under the same counts; if
the 8 of a step also read their prefix once together, 12.3 times (`tests/unit/test_compute.py` has all of these).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORWARD, BACKWARD = 2, 4
"""Operations a parameter and token."""
ADAPTER_BACKWARD = 2
"""With a small adapter only activations get a gradient, the base's weights get none."""
_WITHOUT_A_MODEL = ("label", "import", "rerank", "evaluate")
_LABELLING_TOKENS = ("prefix_tokens", "completion_tokens", "verifier_tokens")
"""What a `step_label` manifest counts: prefixes read and completions written, or responses read by a verifier."""


@dataclass(frozen=True)
class Rollouts:
    """`num_responses` to each of `num_prompts`; lengths are means in tokens."""

    num_prompts: float
    num_responses: float
    prompt_tokens: float
    response_tokens: float

    def tokens(self, shared_prompt: bool) -> float:
        """Tokens of one pass over all of them, the prompt once for all its responses or once for each."""
        prompts = 1 if shared_prompt else self.num_responses
        return self.num_prompts * (prompts * self.prompt_tokens + self.num_responses * self.response_tokens)

    def prefix_tokens(self, num_steps: int) -> float:
        """Mean length of prompt and prefix over the ends of a response's steps, taken as equally long."""
        return self.prompt_tokens + self.response_tokens * (num_steps + 1) / (2 * num_steps)


@dataclass(frozen=True)
class Flops:
    """Operations by part of the work."""

    generate: float = 0.0
    reference: float = 0.0
    label: float = 0.0
    train: float = 0.0

    @property
    def total(self) -> float:
        return self.generate + self.reference + self.label + self.train


def cross_entropy(
    rollouts: Rollouts,
    num_parameters: float,
    *,
    epochs: int = 1,
    reference_passes: float = 1,
    shared_prompt: bool = True,
) -> Flops:
    """Training on every response's outcome label, with any objective that asks each response by itself.

    `reference_passes`: 1 = cached, `epochs` = computed while training, 0 = none, or taken from the sampler.
    """
    tokens = rollouts.tokens(shared_prompt)
    return Flops(
        generate=FORWARD * num_parameters * tokens,
        reference=FORWARD * num_parameters * tokens * reference_passes,
        train=(FORWARD + BACKWARD) * num_parameters * tokens * epochs,
    )


def dpo(
    rollouts: Rollouts,
    num_parameters: float,
    share_of_mixed_pairs: float,
    *,
    epochs: int = 1,
    reference_passes: float = 1,
) -> Flops:
    """Every right with every wrong response to a prompt, each pair two sequences of its own; nothing is shared.

    `share_of_mixed_pairs`: the chance that two responses to a prompt are one right and one wrong.
    """
    num_pairs = rollouts.num_prompts * rollouts.num_responses * (rollouts.num_responses - 1) / 2 * share_of_mixed_pairs
    tokens = 2 * num_pairs * (rollouts.prompt_tokens + rollouts.response_tokens)
    return Flops(
        generate=FORWARD * num_parameters * rollouts.tokens(shared_prompt=False),
        reference=FORWARD * num_parameters * tokens * reference_passes,
        train=(FORWARD + BACKWARD) * num_parameters * tokens * epochs,
    )


def dpo_packed(
    rollouts: Rollouts,
    num_parameters: float,
    share_of_mixed_prompts: float,
    *,
    epochs: int = 1,
    reference_passes: float = 1,
) -> Flops:
    """The same pairs as `train` computes them: each response once, whatever the number of its pairs, prompts shared.

    `share_of_mixed_prompts`: prompts that have right and wrong responses; the others are sampled, but not trained on.
    """
    tokens = rollouts.tokens(shared_prompt=True)
    return Flops(
        generate=FORWARD * num_parameters * tokens,
        reference=FORWARD * num_parameters * tokens * reference_passes,
        train=(FORWARD + BACKWARD) * num_parameters * tokens * share_of_mixed_prompts * epochs,
    )


def math_shepherd(
    rollouts: Rollouts,
    num_parameters: float,
    *,
    num_steps: int,
    num_completions: int = 8,
    completion_tokens: float | None = None,
    shared_prefix: bool = False,
    shared_prompt: bool = True,
    epochs: int = 1,
) -> Flops:
    """Completions from the end of every step give step labels, then a PRM is trained on them (arXiv 2312.08935).

    `completion_tokens`: mean length of what a completion adds; none = what is left of the response. `shared_prefix`:
    the completions of a step read prompt and prefix once together, as in a sampler that takes them as one request.
    """
    prefix = rollouts.prefix_tokens(num_steps)
    if completion_tokens is None:
        completion_tokens = rollouts.prompt_tokens + rollouts.response_tokens - prefix
    reads = 1 if shared_prefix else num_completions
    tokens_of_a_step = reads * prefix + num_completions * completion_tokens
    num_labelled = rollouts.num_prompts * rollouts.num_responses * num_steps
    tokens = rollouts.tokens(shared_prompt)
    return Flops(
        generate=FORWARD * num_parameters * tokens,
        label=FORWARD * num_parameters * num_labelled * tokens_of_a_step,
        train=(FORWARD + BACKWARD) * num_parameters * tokens * epochs,
    )


def auto_psv(
    rollouts: Rollouts,
    num_parameters: float,
    *,
    num_steps: int,
    one_pass: bool = True,
    shared_prompt: bool = True,
    epochs: int = 1,
) -> Flops:
    """A verifier trained on outcomes, step labels from the changes of its confidence, a PRM on them (arXiv 2405.16802).

    `one_pass`: the verifier reads a response once for all its steps; else every prefix anew.
    """
    tokens = rollouts.tokens(shared_prompt)
    num_prefixes = rollouts.num_prompts * rollouts.num_responses * num_steps
    read = tokens if one_pass else num_prefixes * rollouts.prefix_tokens(num_steps)
    return Flops(
        generate=FORWARD * num_parameters * tokens,
        label=(FORWARD + BACKWARD) * num_parameters * tokens * epochs + FORWARD * num_parameters * read,
        train=(FORWARD + BACKWARD) * num_parameters * tokens * epochs,
    )


def run_flops(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Stage -> operations of a finished run, from its manifests; None where a manifest lacks the counts.

    A stage counts with its own `num_parameters`, or with the policy's. Prompts count once for all their responses, as
    they are computed, and in training equal responses to a prompt do; what a trie of prefixes shares beyond that,
    measuring on held-out prompts, and passes that were repeated after a kill are not taken off or added.
    """
    policy = _detail(manifests.get("train", {}), "num_parameters")
    return {stage: _stage_flops(stage, manifest, policy) for stage, manifest in manifests.items()}


def _stage_flops(stage: str, manifest: Mapping[str, Any], policy: float | None) -> float | None:
    if stage in _WITHOUT_A_MODEL or _setting(manifest, "reference.logprobs") == "sampled":
        return 0.0
    if _setting(manifest, "step_label.method") == "truth":
        return 0.0
    num_parameters = _detail(manifest, "num_parameters") or policy
    tokens = _tokens(stage, manifest)
    if num_parameters is None or tokens is None:
        return None
    if stage not in ("warmup", "train"):
        return FORWARD * num_parameters * tokens
    backward = ADAPTER_BACKWARD if _setting(manifest, "train.lora_rank") else BACKWARD
    forward_alone = FORWARD * num_parameters * (_detail(manifest, "forward_tokens") or 0)
    return (FORWARD + backward) * num_parameters * tokens + forward_alone


def _tokens(stage: str, manifest: Mapping[str, Any]) -> float | None:
    """Tokens that went through the model, prompts included."""
    if stage in ("warmup", "train"):
        return _detail(manifest, "trained_tokens")
    if stage == "step_label":
        counts = [_detail(manifest, key) for key in _LABELLING_TOKENS]
        return _sum(*(count for count in counts if count is not None)) if any(counts) else None
    return _sum(_detail(manifest, "prompt_tokens"), manifest.get("tokens"))


def _sum(*counts: float | None) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _detail(manifest: Mapping[str, Any], key: str) -> float | None:
    return (manifest.get("details") or {}).get(key)


def _setting(manifest: Mapping[str, Any], key: str) -> Any:
    return (manifest.get("identity") or {}).get(key)
