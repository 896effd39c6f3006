"""Memory that one tensor gives back serves the next one."""

import subprocess
import sys

import pytest

# In a process of its own: what a long test run has left on the heap decides where its next tensor goes. Until
# glibc 2.38 an aligned block may not fit where one of its size was, so the heap grows a few times first (seen: 8).
PAGE_FAULTS_OF_THREE_TENSORS = """
import resource, torch
from prm_ray.core.allocator import keep_freed_memory

if {keep}:
    assert keep_freed_memory()
for _ in range(30):
    torch.ones(16 << 20)  # 64 MiB: 16,384 pages of 4 KB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    program = PAGE_FAULTS_OF_THREE_TENSORS.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_a_large_tensor_made_again_and_again_is_not_taken_from_the_system_each_time() -> None:
    assert page_faults(keep=True) < page_faults(keep=False) / 2
