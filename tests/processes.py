"""Processes of a test told from all others by an environment variable, and waiting for them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

MARK = "PRM_RAY_TEST_MARK"
NODE = "PRM_RAY_TEST_NODE"
"""The same of one node of a test's cluster."""
_RAYS_OWN = (["ray::DashboardAgent"], ["ray::RuntimeEnvAgent"])
"""They hold nothing, and take from ten seconds to some minutes to notice that their Ray was killed."""


def marked(mark: str, variable: str = MARK, with_agents: bool = False) -> list[psutil.Process]:
    """Living processes that were started with this value of the variable, their children too; but for Ray's agents."""
    found = []
    for process in psutil.process_iter():
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and process.environ().get(variable) == mark:
                found += [process] if with_agents or process.cmdline()[:1] not in _RAYS_OWN else []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def command_line(process: psutil.Process) -> str:
    """Nothing of one that has just ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def wait_for_end(mark: str, seconds: float) -> None:
    """Until none of the marked processes is left; those that are, are named."""
    start = time.monotonic()
    while left := marked(mark):
        if time.monotonic() - start > seconds:
            raise AssertionError(f"still there after {seconds:g} s: {[_described(process) for process in left]}")
        time.sleep(0.5)  # a look at all processes costs what they need to end


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.pid} of {process.ppid()}, {process.status()}: {process.name()} {process.cmdline()[:4]}"
    except psutil.NoSuchProcess:
        return f"{process.pid}, which has just ended"


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"no {what} within {seconds:g} s"
        time.sleep(0.05)


def kill_when(driver: subprocess.Popen, condition: Callable[[], bool], seconds: float = 600) -> None:
    """SIGKILL the driver once the condition holds, then what it leaves behind: its own Ray, by pid."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, f"the driver ended by itself with {driver.returncode}"
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGSTOP)  # to look for its children takes a while
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(children, timeout=60)
