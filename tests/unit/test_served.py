"""Where workers and replicas look for a run's model."""

from pathlib import Path

from prm_ray.scoring.served import own_model
from prm_ray.tables import StageFolder
from tests.servedruns import make_run


def test_workers_get_the_path_of_the_config_not_where_a_link_of_the_drivers_machine_leads(tmp_path: Path) -> None:
    """As on a file server whose own `/shared` is a link to the folder that all others have mounted there."""
    exported, shared = tmp_path / "export", tmp_path / "shared"
    exported.mkdir()
    shared.symlink_to(exported)
    config = make_run(shared / "run")
    assert own_model(config).folder == str(StageFolder(shared / "run", "train").path)
