"""vLLM's own OpenAI-compatible server as a process, on a free loopback port."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from benchmarks.common import Setting
from prm_ray.serve.server import free_port

_STARTS_WITHIN_SECONDS = 300


class VllmServer:
    def __init__(self, model: Path, setting: Setting):
        self._port = free_port()
        longest = setting.prompt + int(setting.response * (1 + setting.spread)) + 2
        self._words = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--served-model-name", "policy", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--dtype", setting.dtype, "--max-model-len", str(longest), "--enforce-eager"),
        ]
        cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2", "OMP_WAIT_POLICY": "PASSIVE"}
        self._env = os.environ | cpu | {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": str(setting.threads)}

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._words, env=self._env, stdout=sys.stderr)
        url = f"http://127.0.0.1:{self._port}"
        give_up = time.monotonic() + _STARTS_WITHIN_SECONDS
        while self._process.poll() is None and time.monotonic() < give_up:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    return url
            except httpx.TransportError:
                time.sleep(0.5)
        self._process.kill()
        raise RuntimeError("vLLM's server did not start")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(60)
