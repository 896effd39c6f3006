"""What the benchmarks compare gives the same numbers, is counted right, and ours never holds tokens x vocabulary."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common, flops, plots, scoring, ways
from benchmarks.common import Setting
from prm_ray.core.packing import PromptGroup, pack

ROOT = Path(__file__).resolve().parents[2]
SETTING = Setting("tiny", "float32", 2, 9, 3, 8, 0.3, 4, 64, 1, 0.0, 4)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that tensors made within `work` take at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_all_ways_of_scoring_give_the_same_log_probs():
    model = common.load("tiny", "float32")
    groups = common.candidates(SETTING, model.config.vocab_size)
    with torch.no_grad():
        expected = torch.cat(ways.one_by_one(model, groups))
        torch.testing.assert_close(torch.cat(ways.packed(model, groups, 64)), expected)
        torch.testing.assert_close(torch.cat(ways.padded(model, groups, 4)), expected)


def test_the_reference_of_a_benchmark_is_another_model_and_float32_is_the_same_one():
    models = common.load("tiny", "bfloat16"), common.load("tiny", "bfloat16", variant=1), common.load("tiny", "float32")
    policy, reference, exact = (model.get_output_embeddings().weight.float() for model in models)
    assert not torch.equal(policy, reference)
    assert torch.equal(policy, exact)


@pytest.mark.parametrize("backward", [False, True])
def test_peak_memory_does_not_grow_with_vocabulary_times_length(backward: bool):
    model = common.load("tiny-152k", "float32")
    model.get_output_embeddings().weight.data = torch.randn(20_000, 64) * 0.02
    model.requires_grad_(backward)
    short, long = ([PromptGroup([1], [[7, 8] * (length // 2)])] for length in (1024, 3072))

    def growth(way: Callable[..., list[torch.Tensor]]) -> float:
        def work(groups: list[PromptGroup]) -> None:
            with torch.set_grad_enabled(backward):
                total = torch.cat(way(model, groups, 8192)).sum()
            if backward:
                total.backward()
                model.zero_grad()

        work(short)
        return peak_bytes(lambda: work(long)) - peak_bytes(lambda: work(short))

    logits = (3072 - 1024) * 20_000 * 4
    assert (grown := growth(ways.packed)) < 0.25 * logits, f"{grown} bytes"
    assert growth(ways.padded) > logits, "the measure itself must see a logits matrix"


def test_useful_operations_count_the_pairs_that_see_each_other():
    groups = [PromptGroup([5, 6, 7], [[1, 2], [1, 3], [4]]), PromptGroup([5, 9], [[1]])]
    model = common.load("tiny", "float32")
    (batch,) = pack(groups, 64)
    pairs = 1 + 2 + 3 + (4 + 5 + 5) + 4 + (2 + 3)  # 5 6 7, then 1 with 2 and 3 behind it, then 4; and 9 1 behind the 5
    assert flops.visible_pairs(batch) == pairs
    useful = flops.useful(model, batch)
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)  # two layers: q and o, k and v, the three of the MLP
    assert useful["body"] == 2 * matrices * len(batch.input_ids_T)
    assert useful["head"] == 2 * 64 * 1000 * len(batch.target_U)
    assert useful["attention"] == 4 * pairs * 2 * 32 * 2


def test_rows_of_the_table_are_ratios_to_ours():
    run = {"all_seconds": [1.0, 3.0, 2.0], "response_tokens": 100, "peak_gib": 1.0, "work_gib": 0.5, "logprobs": [-1.0]}
    slow = run | {"all_seconds": [8.0], "peak_gib": 4.0, "logprobs": [-1.25]}
    failed = {"error": "out of memory"}
    runs = {"both": run, "vllm": slow, "loop": failed, "exact": {"logprobs": [-1.0]}}
    found = scoring.rows(runs, SETTING)
    assert found[scoring.NAMES["both"]]["response_tokens_per_second"] == 50
    assert found[scoring.NAMES["vllm"]]["times_slower_than_ours"] == 4
    assert found[scoring.TWICE_VLLM]["times_slower_than_ours"] == 8
    assert found[scoring.TWICE_VLLM]["times_our_peak"] == 4
    assert found[scoring.NAMES["vllm"]]["max_difference"] == 0.25
    assert found[scoring.NAMES["loop"]] == failed


def test_the_picture_is_drawn_from_what_a_sweep_writes(tmp_path: Path):
    pytest.importorskip("matplotlib")
    points = [
        {"axis": axis, "value": value, "way": way, "seconds": value / 10}
        for axis, values in scoring.AXES.items()
        for value in values
        for way in ("both", "padded")
    ]
    points[-1] = {key: points[-1][key] for key in ("axis", "value", "way")} | {"error": "out of memory"}
    setting = {"model": "tiny", "threads": 1, "n": 16, "prompt": 250, "response": 100}
    content = {"machine": common.machine(), "setting": setting, "sweep": points}
    plots.draw(json.loads(json.dumps(content)), tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_measuring_needs_torch_and_transformers_only():
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['ray', 'vllm', 'pyarrow', 'pydantic', 'matplotlib'])\n"
        "from benchmarks import memory, roofline, scoring, training\n"
        "from benchmarks.common import Setting\n"
        f"setting = {SETTING!r}\n"
        "for way in (scoring.both, scoring.padded, training.ours, training.padded, roofline.measure):\n"
        "    assert way(setting, None)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
