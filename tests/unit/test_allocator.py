"""Memory that one tensor gives back serves the next one."""

import resource
import sys

import pytest
import torch

from prm_ray.core.allocator import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_a_large_tensor_made_again_and_again_is_not_taken_from_the_system_each_time() -> None:
    assert keep_freed_memory()
    for _ in range(3):
        torch.ones(16 << 20)  # 64 MiB: 16,384 pages of 4 KB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(16 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
