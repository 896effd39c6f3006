"""A server of the S3 protocol on the loopback address, with an empty bucket."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prm_ray.objectstore import file_system, location


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment by which this process and those it starts find the server."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    S3FileSystem.clear_instance_cache()  # one that an earlier test has made knows of no server
    try:
        yield environment
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.stop()
        S3FileSystem.clear_instance_cache()  # they keep the address of the server that is gone


def new_bucket() -> Path:
    bucket = location(f"s3://bucket-{uuid.uuid4().hex[:12]}")
    file_system(bucket)[0].mkdir(str(bucket))
    return bucket


def names_in(folder: Path) -> set[str]:
    """Of all objects below an address."""
    fs, root = file_system(folder)
    return {name.removeprefix(f"{root}/") for name in fs.find(root)}
