"""Object stores to test on: S3's protocol by moto, and a directory."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from moto.server import ThreadedMotoServer

from agentmem.store.objectstore import ObjectStore


class Place(NamedTuple):
    """Where an object store is, and what it takes to open it."""

    url: str
    options: dict[str, Any]

    def open(self, **more: Any) -> ObjectStore:
        return ObjectStore(self.url, **self.options, **more)

    def environment(self) -> dict[str, str]:
        """What an agent's process needs."""
        found = {"AGENTMEM_OBJECT_URL": self.url}
        if self.options:
            found |= {
                "AGENTMEM_OBJECT_ENDPOINT": str(self.options["endpoint"]),
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
            }
        return found


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of a server that speaks S3's protocol."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return Place(f"file://{tmp_path}/store", {})
    endpoint = request.getfixturevalue("s3")
    bucket = f"bucket-{abs(hash(tmp_path))}"
    made = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
    urllib.request.urlopen(made, timeout=10).close()
    options = {
        "endpoint": endpoint,
        "access_key_id": "test",
        "secret_access_key": "test",
        "region": "us-east-1",
    }
    return Place(f"s3://{bucket}/some/path", options)
