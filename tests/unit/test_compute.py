"""Compute account: the published figures from one set of counts, the parts by hand, and a run's manifests."""

import pytest

from prm_ray.core.compute import Flops, Rollouts, auto_psv, cross_entropy, dpo, dpo_packed, math_shepherd, run_flops

N = 8.03e9
NUM_STEPS, DIFFER = 10, 0.26
"""The paper's "about 10 steps"; the chance that two responses differ, inferred from its DPO figures."""


def rollouts(num_responses: int) -> Rollouts:
    """The paper's data; the two lengths are inferred (see the module's docstring)."""
    return Rollouts(num_prompts=32_942, num_responses=num_responses, prompt_tokens=132, response_tokens=416)


def counted(flops: Flops) -> float:
    """What the paper's Figure 2 seems to count: labelling beyond the outcome, and training."""
    return flops.label + flops.train


def ce(num_responses: int) -> float:
    return counted(cross_entropy(rollouts(num_responses), N, shared_prompt=False))


def shepherd(num_responses: int, completion_tokens: float | None = 416, shared_prefix: bool = False) -> float:
    return counted(
        math_shepherd(
            rollouts(num_responses),
            N,
            num_steps=NUM_STEPS,
            completion_tokens=completion_tokens,
            shared_prefix=shared_prefix,
            shared_prompt=False,
        )
    )


@pytest.mark.parametrize(
    ("num_responses", "published", "dpo_published"), [(2, 38.8, 0.3), (4, 38.6, 0.8), (8, 38.8, 1.8)]
)
def test_the_papers_ratios_to_ce(num_responses: int, published: float, dpo_published: float) -> None:
    """Two inferred counts were chosen by 38.8 and 1.8; the others follow. AutoPSV: printed 4.2 to 4.3."""
    base = ce(num_responses)
    assert shepherd(num_responses) / base == pytest.approx(published, abs=0.25)
    assert round(counted(dpo(rollouts(num_responses), N, DIFFER)) / base, 1) == dpo_published
    verifier = auto_psv(rollouts(num_responses), N, num_steps=NUM_STEPS, one_pass=False, shared_prompt=False)
    assert 4.15 <= counted(verifier) / base < 4.35


def test_the_papers_absolute_figures() -> None:
    """Read off its Figures 1 and 2 to two digits."""
    assert [ce(n) for n in (1, 2, 4, 8)] == pytest.approx([9e17, 1.7e18, 3.5e18, 7e18], rel=0.04)
    assert [shepherd(n) for n in (2, 4, 8)] == pytest.approx([0.68e20, 1.35e20, 2.7e20], rel=0.02)
    assert counted(dpo(rollouts(8), N, DIFFER)) == pytest.approx(1.27e19, rel=0.01)
    verifier = auto_psv(rollouts(8), N, num_steps=NUM_STEPS, one_pass=False, shared_prompt=False)
    assert counted(verifier) == pytest.approx(3e19, rel=0.04)


def test_other_readings_do_not_give_the_papers_ratio() -> None:
    """Completions that write only what is left of a response, with prefixes read anew or once a step."""
    assert shepherd(8, completion_tokens=None) / ce(8) == pytest.approx(27.7, abs=0.05)
    assert shepherd(8, completion_tokens=None, shared_prefix=True) / ce(8) == pytest.approx(12.3, abs=0.05)


def test_parts_by_hand() -> None:
    """One prompt of 10 tokens, 4 responses of 5 tokens, 3 parameters: 30 tokens with the prompt once, 60 without."""
    small = Rollouts(num_prompts=1, num_responses=4, prompt_tokens=10, response_tokens=5)
    assert cross_entropy(small, 3, epochs=2) == Flops(generate=180, reference=180, train=1080)
    assert cross_entropy(small, 3, reference_passes=0, shared_prompt=False) == Flops(generate=360, train=1080)
    all_pairs = dpo(small, 3, share_of_mixed_pairs=0.5)  # 3 pairs, 6 sequences of 15 tokens
    assert all_pairs == Flops(generate=360, reference=540, train=1620)
    packed = dpo_packed(small, 3, share_of_mixed_prompts=1.0)
    assert packed == Flops(generate=180, reference=180, train=540) and packed.total == 900
    labelled = math_shepherd(small, 3, num_steps=5, num_completions=2)  # prefix 13, left 2: 4 x 5 x 2 x 15 tokens
    assert labelled == Flops(generate=180, label=3600, train=540)
    assert math_shepherd(small, 3, num_steps=5, num_completions=2, shared_prefix=True).label == 6 * 4 * 5 * (13 + 4)
    assert auto_psv(small, 3, num_steps=5) == Flops(generate=180, label=540 + 180, train=540)
    assert auto_psv(small, 3, num_steps=5, one_pass=False).label == 540 + 6 * 4 * 5 * 13


MANIFESTS = {
    "generate": {"tokens": 100, "details": {"prompt_tokens": 20}},
    "label": {"tokens": 0},
    "reference": {"tokens": 100, "details": {"prompt_tokens": 20, "num_parameters": 7}, "identity": {}},
    "step_label": {"tokens": 50, "details": {"num_prefixes": 3, "prefix_tokens": 30, "completion_tokens": 50}},
    "train": {"tokens": 80, "details": {"trained_tokens": 90, "num_parameters": 5}},
    "score": {"tokens": 40, "details": {"prompt_tokens": 8}},
}


def test_a_run_is_counted_by_stage_from_its_manifests() -> None:
    flops = run_flops(MANIFESTS)
    assert flops == {
        "generate": 2 * 5 * 120,
        "label": 0,
        "reference": 2 * 7 * 120,
        "step_label": 2 * 5 * 80,
        "train": 6 * 5 * 90,
        "score": 2 * 5 * 48,
    }


def test_what_was_free_or_smaller_counts_so() -> None:
    sampled = MANIFESTS | {"reference": {"tokens": 100, "identity": {"reference.logprobs": "sampled"}}}
    assert run_flops(sampled)["reference"] == 0
    adapter = MANIFESTS | {"train": MANIFESTS["train"] | {"identity": {"train.lora_rank": 8}}}
    assert run_flops(adapter)["train"] == 4 * 5 * 90
    verified = {"details": {"verifier_tokens": 60}, "identity": {"step_label.method": "confidence"}}
    assert run_flops(MANIFESTS | {"step_label": verified})["step_label"] == 2 * 5 * 60
    truth = {"identity": {"step_label.method": "truth"}}
    assert run_flops(MANIFESTS | {"step_label": truth})["step_label"] == 0


def test_counts_that_an_older_manifest_lacks_are_unknown_not_zero() -> None:
    older = {"generate": {"tokens": 100, "details": {}}, "train": {"tokens": 80}, "step_label": {"details": {}}}
    assert run_flops(older) == {"generate": None, "train": None, "step_label": None}
    assert run_flops({"score": MANIFESTS["score"]}) == {"score": None}
