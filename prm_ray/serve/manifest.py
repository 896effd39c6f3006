"""The Serve config file of a run: what `serve deploy` and a KubeRay RayService take, in YAML."""

from __future__ import annotations

from typing import Any

from prm_ray.config import RunConfig
from prm_ray.serve.address import proxy_location
from prm_ray.settings import ServeSection

APP_NAME = "prm_ray"
INGRESS_CPUS = 0.1
_EXTRA_SECONDS = 10
"""That Serve waits longer than the application does, so that the application's own answer comes first."""


def http_options(section: ServeSection) -> dict[str, Any]:
    """Of Serve's proxies."""
    return {"host": section.host, "port": section.port, "request_timeout_s": seconds_to_answer(section)}


def seconds_to_answer(section: ServeSection) -> float:
    """How long Serve waits for the answer to a request; after it nobody does."""
    return section.longest_seconds + _EXTRA_SECONDS


def manifest(config: RunConfig) -> dict[str, Any]:
    """Of `config.serve`, with the run's settings as the application's arguments.

    The run's folder and the file of keys are read on the cluster, at the paths that the config gives.
    """
    return {
        "proxy_location": proxy_location(config.serve.host),
        "http_options": http_options(config.serve),
        "applications": [
            {
                "name": APP_NAME,
                "route_prefix": "/",
                "import_path": "prm_ray.serve.app:from_settings",
                "args": config.model_dump(mode="json", by_alias=True, exclude_unset=True),
            }
        ],
    }


def to_yaml(config: RunConfig) -> str:
    import yaml  # type: ignore[import-untyped]  # comes with Ray

    return yaml.safe_dump(manifest(config), sort_keys=False, allow_unicode=True)
