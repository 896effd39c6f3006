"""Which Ray a run works on."""

import pytest
import ray

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.stages.cluster import start_ray


def test_a_dashboards_address_is_no_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # a test before may have left one in this process
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match=r"RAY_ADDRESS 'http://127.0.0.1:8265' is a dashboard's, which prm-ray submit"):
        start_ray(RunConfig())
