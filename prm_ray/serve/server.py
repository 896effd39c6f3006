"""Starts and stops the server: checks what can be checked on the driver, deploys, waits until it answers."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from types import FrameType

import ray
from ray import serve
from ray._private.worker import Worker
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig
from ray.util import list_named_actors

from prm_ray.config import RunConfig
from prm_ray.errors import StorageError, UserError
from prm_ray.objectstore import refusal_is_bad_input
from prm_ray.runlog import log
from prm_ray.scoring.served import ServedModel, served_models
from prm_ray.serve.address import base_url, check_address, head_elsewhere, is_loopback, proxy_location
from prm_ray.serve.claim import claim_cluster, give_up_claim
from prm_ray.serve.generation import generator_options
from prm_ray.serve.keys import read_keys
from prm_ray.serve.manifest import APP_NAME, INGRESS_CPUS, http_options, to_yaml
from prm_ray.serve.tracing import wants_traces
from prm_ray.settings import ServeSection
from prm_ray.stages.cluster import Wanted, check_room, start_ray
from prm_ray.stages.gpus import say_unused_gpus
from prm_ray.stages.pipeline import cause_in_traceback

_ANSWERS_WITHIN_SECONDS = 60
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
_QUIET_JSON = LoggingConfig(log_level="WARNING", enable_access_log=False, encoding="JSON")
"""Files of the application's replicas hold a JSON object a line, our requests among them; stderr stays plain."""


def print_manifest(config: RunConfig) -> None:
    """Raises `UserError` for an address that others reach, without keys; the files themselves are on the cluster."""
    _check_has_keys(config.serve)
    print(to_yaml(config), end="")


def run(config: RunConfig) -> None:
    """Serve the trained model of a run until Ctrl-C or SIGTERM (which `ray job stop` sends)."""
    models = _check(config)
    _start_ray(config, len(models))
    signal.signal(signal.SIGTERM, _interrupt)  # not before: Ray, when it starts, puts a handler of its own in its place
    url = _deploy(config, models)
    body = json.dumps({"query": "12 + 45", "documents": ["12 + 45 = 57", "12 + 45 = 58"]})
    log.info("serving at %s, stop with Ctrl-C; try:\n  curl %s/rerank --json '%s'", url, url, body)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        _drain(config.serve)
    finally:
        stop()


def start(config: RunConfig) -> str:
    """Deploy and return the base URL once the server answers.

    Raises `UserError`, before anything heavy starts where that is possible, if there is no trained model, the address
    cannot be used, or the model does not load.
    """
    models = _check(config)
    _start_ray(config, len(models))
    return _deploy(config, models)


def _start_ray(config: RunConfig, num_models: int) -> None:
    start_ray(config)
    if _joins_a_cluster():
        check_address(config.serve, head_elsewhere())
    say_unused_gpus(config, "serve")
    check_room(*_wanted(config, num_models))
    claim_cluster(config)


def _wanted(config: RunConfig, num_models: int) -> list[Wanted]:
    """What Serve would wait for without a word."""
    section, replicas = config.serve, "serve.num_replicas, serve.gpus_per_replica"
    wanted = [
        Wanted(f"a replica of serve ({replicas})", 1, section.gpus_per_replica, num_models * section.num_replicas)
    ]
    if section.generator == "vllm":
        what = "a generator of serve (serve.generator_replicas, generate.gpus_per_engine)"
        wanted.append(Wanted(what, 1, config.generate.gpus_per_engine, section.generator_replicas))
    return [*wanted, Wanted("the ingress of serve", INGRESS_CPUS, 0)]


def _joins_a_cluster() -> bool:
    """Only there the head may be another machine. A Ray of our own need not start for the address to be checked."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _check(config: RunConfig) -> list[ServedModel]:
    with refusal_is_bad_input():
        models = served_models(config)
        check_keys(config.serve)
        wants_traces(config.serve.otlp_endpoint)
        if config.serve.generator == "vllm":
            generator_options(config)
    if not _joins_a_cluster():
        check_address(config.serve, None)
    return models


def _deploy(config: RunConfig, models: list[ServedModel]) -> str:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    url = base_url(config.serve, head_elsewhere())
    was_there = bool(serve.status().proxies)
    if not was_there:
        _print_own_workers_only()
    try:
        serve.start(
            proxy_location=proxy_location(config.serve.host),
            http_options=http_options(config.serve),
            logging_config=_QUIET,
        )
        _load(config, models)
        _wait_until_it_answers(url)
    except BaseException:  # also interrupted while loading or waiting: leave nothing running
        _take_back(was_there)
        raise
    return url


def _load(config: RunConfig, models: list[ServedModel]) -> None:
    from prm_ray.serve.app import build  # loads torch, which a wrong config should not wait for

    log.info("loading %s", ", ".join(f"{model.facts.name} ({model.folder})" for model in models))
    try:
        serve.run(build(config), name=APP_NAME, route_prefix="/", logging_config=_QUIET_JSON)
    except StorageError:  # of this process, which looks at the models once more
        raise
    except (RuntimeError, RayServeException) as error:
        text = f"{error}\n{_replica_messages()}"
        reason = _last_error(text)
        raise cause_in_traceback(text) or UserError(
            f"a model did not load ({', '.join(model.folder for model in models)}): {reason}"
        ) from None


def _take_back(was_there: bool) -> None:
    """Undo a start. A Serve that was there before may have applications of others."""
    if not was_there:
        stop()
        return
    with suppress(TimeoutError):  # Serve goes on ending its replicas
        serve.delete(APP_NAME)
    give_up_claim()


def _print_own_workers_only() -> None:
    """Serve, whenever it connects, has Ray print here what the workers of all jobs of the cluster print.

    That is for a Serve that another job has started: its replicas count as that job's. Of one that starts here all are
    this job's own.
    """
    Worker._filter_logs_by_job = property(lambda _: True, lambda _, value: None)


def _drain(section: ServeSection) -> None:
    """Let requests end, as long as one may take; a second Ctrl-C stops at once."""
    try:
        log.info("stopping: requests that were let in are answered first")
        serve.get_app_handle(APP_NAME).drain.remote().result(timeout_s=section.longest_seconds)
    except (KeyboardInterrupt, TimeoutError, RayServeException, RayError) as error:
        log.warning("stopped before all requests were answered (%s)", type(error).__name__)
        _abandon_requests()


def _abandon_requests() -> None:
    """End the replicas with what they work on: Serve would wait for them as long as a request may take."""
    for actor in list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{APP_NAME}#"):
            with suppress(ValueError):  # it has just ended
                ray.kill(ray.get_actor(**actor))


def stop() -> None:
    """Shut Serve down, on this cluster as a whole. Ray itself goes on."""
    serve.shutdown()
    give_up_claim()


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_keys(section: ServeSection) -> None:
    """Raises `UserError` for a file without valid keys, or for none where others than this machine are listened to."""
    _check_has_keys(section)
    if section.api_keys_file is not None:
        read_keys(section.api_keys_file)


def _check_has_keys(section: ServeSection) -> None:
    if section.api_keys_file is None and not is_loopback(section.host):
        raise UserError(
            f"serve.host {section.host!r} is reached from other machines: serve.api_keys_file must name a file "
            "with API keys (prm-ray key NAME --file FILE makes one)"
        )


def _wait_until_it_answers(url: str) -> None:
    """The proxy may lag behind the application a moment; an older Serve on this cluster keeps its own address."""
    give_up = time.monotonic() + _ANSWERS_WITHIN_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as reply:
                reply.read()
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > give_up:
                raise UserError(
                    f"{url}/readyz does not answer ({error}): does another Serve run on this cluster?"
                ) from None
            time.sleep(0.2)


def _replica_messages() -> str:
    """What the deployments say about themselves: here, not in the exception, lies a replica's traceback."""
    applications = serve.status().applications.values()
    return "\n".join(state.message for app in applications for state in app.deployments.values())


def _last_error(text: str) -> str:
    """The line that names the error in the last traceback of the text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt): ", line)), lines[0])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
