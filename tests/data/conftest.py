"""Servers of datasets: a real S3 server, and a real web server that can be slow and break connections."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.http_server import Web


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Return the address of an empty bucket on a local S3 server."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    import boto3

    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    known = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in known}
    os.environ.update(known)
    s3fs.S3FileSystem.clear_instance_cache()  # of the stopped server of another module
    boto3.client("s3").create_bucket(Bucket="tokens")
    yield "s3://tokens"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """Return a web server of the folder `tmp_path / "web"`."""
    pytest.importorskip("aiohttp")
    (tmp_path / "web").mkdir()
    with Web(tmp_path / "web") as server:
        yield server
