"""Labels of the steps of a response, from completions, from a verifier's confidence, or from the first wrong step.

Every label is a number in [0, 1] that belongs to the prefix up to its step's end: the chance that it leads to a right
answer, or 1 / 0. Letters: S steps of one response.
"""

from __future__ import annotations

from collections.abc import Sequence


def soft_label(verdicts: Sequence[bool | None]) -> float | None:
    """Share of right ones among the completions of a prefix: Math-Shepherd's soft estimation (arXiv 2312.08935).

    Its hard estimation, "is any of them right", is `soft_label > 0`. A verdict of None could not be judged and does not
    count; None if that leaves nothing.
    """
    judged = [verdict for verdict in verdicts if verdict is not None]
    return sum(judged) / len(judged) if judged else None


def confidence_labels(confidence_S: Sequence[float], before: float, threshold: float) -> list[float]:
    """1 for each step before the first drop of a verifier's confidence, 0 from that step on: AutoPSV, arXiv 2405.16802.

    `confidence_S[t]` is the chance of a right answer that the verifier sees at the end of step t, `before` what it saw
    before the first. A drop is a relative change (f_t - f_(t-1)) / f_(t-1) below `threshold` (negative), asked here
    without the division. What stands on a wrong step is wrong, as in the paper's published code.
    """
    for step, (earlier, now) in enumerate(zip([before, *confidence_S], confidence_S, strict=False)):
        if now < (1 + threshold) * earlier:
            return labels_before(step, len(confidence_S))
    return labels_before(None, len(confidence_S))


def labels_before(first_wrong: int | None, num_steps: int) -> list[float]:
    """1 for each step before the first wrong one (counted from 0; None = there is none), 0 from there on: S numbers."""
    num_right = num_steps if first_wrong is None else first_wrong
    return [1.0] * num_right + [0.0] * (num_steps - num_right)
