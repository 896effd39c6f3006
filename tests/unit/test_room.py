"""Workers that have no room are said in one line and not waited for, on machines that are made up."""

from collections.abc import Callable

import pytest

from prm_ray.config import RunConfig
from prm_ray.errors import UserError
from prm_ray.serve import server
from prm_ray.stages import search
from prm_ray.stages.cluster import Wanted, check_room

Machines = Callable[..., None]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Puts Ray on machines of 8 CPUs, each with so many GPUs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("prm_ray.stages.cluster.start_ray", lambda config: None)
    monkeypatch.setattr(server, "start_ray", lambda config: None)

    def put(*gpus: int) -> None:
        nodes = [{"Alive": True, "Resources": {"CPU": 8.0} | ({"GPU": float(each)} if each else {})} for each in gpus]
        monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 64.0}}])

    return put


def has_room(*wanted: Wanted) -> bool:
    try:
        check_room(*wanted)
    except UserError:
        return False
    return True


def test_what_is_wanted_must_fit_at_the_same_time(machines: Machines):
    machines(1, 2)
    whole, pair, half = (Wanted("one", 1, gpus) for gpus in (1, 2, 0.5))
    assert has_room(whole, pair) and has_room(half, half, pair), "the pair is placed first: on the other machine"
    assert not has_room(pair, whole, half)
    assert not has_room(pair, pair) and not has_room(Wanted("one", 1, 3)), "its GPUs lie in one machine"
    assert has_room(Wanted("one", 0.5, 0.2, 15)) and not has_room(Wanted("one", 0.5, 0.2, 16))
    assert has_room(Wanted("one", 1, 0, 16)) and not has_room(Wanted("one", 1, 0, 17))


def test_parts_of_a_gpu_lie_on_one(machines: Machines):
    machines(2)
    assert has_room(*[Wanted("one", 1, gpus) for gpus in (0.6, 0.4, 0.6, 0.4)])
    assert not has_room(Wanted("one", 1, 0.6, num_workers=3)), "0.4 of either is left"
    assert has_room(*[Wanted("one", 1, gpus) for gpus in (0.6, 0.5, 0.4, 0.5)]), "0.4 goes beside 0.6"


def test_a_cluster_may_grow(machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    machines(1)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_room(Wanted("a generator", 1, 1), Wanted("a scorer", 1, 0.5, 2))
    assert [message for message in caplog.messages if "room" in message or "machines have" in message] == [
        "a generator needs 1 CPUs and 1 GPUs on one machine, at the same time a scorer needs 1 CPUs and 0.5 GPUs on "
        "one machine for each of 2 workers, the machines have 8 CPUs and 1 GPUs: waiting for the cluster to grow"
    ]


@pytest.mark.parametrize(
    ("generators", "scorers"), [((1, 1), (1, 1)), ((2, 0.5), (1, 0.5)), ((1, 0.6), (1, 0.5)), ((2, 0.6), (1, 0))]
)
def test_a_search_that_would_wait_for_ever_for_a_gpu_is_refused(
    generators: tuple[int, float], scorers: tuple[int, float], machines: Machines
):
    machines(1)
    settings = {
        "num_generators": generators[0],
        "gpus_per_generator": generators[1],
        "num_scorers": scorers[0],
        "gpus_per_scorer": scorers[1],
    }
    with pytest.raises(UserError, match=r"search\.gpus_per_generator\) needs .* search\.gpus_per_scorer\) needs"):
        search.run(RunConfig.model_validate({"search": settings}), None)  # type: ignore[arg-type]


def test_a_search_that_has_room_is_let_in(machines: Machines):
    for gpus, settings in [(1, (0.6, 0.3)), (1, (0, 1)), (0, (0, 0)), (2, (1, 1))]:
        machines(gpus)
        section = RunConfig().search.model_copy(
            update={"gpus_per_generator": settings[0], "gpus_per_scorer": settings[1]}
        )
        check_room(*search.wanted_workers(section))
    machines(2)
    pairs = {"num_generators": 2, "gpus_per_generator": 0.6, "num_scorers": 2, "gpus_per_scorer": 0.3}
    check_room(*search.wanted_workers(RunConfig().search.model_copy(update=pairs)))
    machines(1)
    more_than_fit = {"num_generators": 2, "gpus_per_generator": 1}
    check_room(*search.wanted_workers(RunConfig().search.model_copy(update=more_than_fit)))
    machines(0)
    many = RunConfig().search.model_copy(update={"num_generators": 50, "num_scorers": 50})
    check_room(*search.wanted_workers(many))


@pytest.mark.parametrize(
    ("gpus", "settings", "num_models", "named"),
    [
        (0, {"serve": {"gpus_per_replica": 1}}, 1, "a replica of serve (serve.num_replicas, serve.gpus_per_replica)"),
        (1, {"serve": {"gpus_per_replica": 1}}, 2, "and 1 GPUs on one machine for each of 2 workers"),
        (
            1,
            {"serve": {"gpus_per_replica": 0.5, "generator": "vllm"}, "generate": {"gpus_per_engine": 1}},
            1,
            "a generator of serve (serve.generator_replicas, generate.gpus_per_engine) needs 1 CPUs and 1 GPUs",
        ),
        (0, {"serve": {"num_replicas": 8}}, 1, "the ingress of serve needs 0.1 CPUs"),
    ],
)
def test_a_server_without_room_for_its_replicas_is_refused(
    gpus: int, settings: dict[str, dict[str, object]], num_models: int, named: str, machines: Machines
):
    machines(gpus)
    with pytest.raises(UserError) as caught:
        server._start_ray(RunConfig.model_validate(settings), num_models)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_has_room_is_let_in(machines: Machines, monkeypatch: pytest.MonkeyPatch):
    let_in: list[RunConfig] = []
    monkeypatch.setattr(server, "claim_cluster", let_in.append)
    for gpus, settings in [(0, {}), (1, {"serve": {"gpus_per_replica": 0.5, "num_replicas": 2}})]:
        machines(gpus)
        server._start_ray(RunConfig.model_validate(settings), 1)
    assert len(let_in) == 2
