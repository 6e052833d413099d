# SPDX-License-Identifier: Apache-2.0
"""Images of device and gateway: built by buildah, run by podman, a round between two of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import MODEL, Fleet
from tests.packaging import containers
from tests.packaging.containers import podman, report, run

VERSION = "0.1.0"
DEVICE, GATEWAY = (f"localhost/fl-tiny-{role}:{VERSION}" for role in ("device", "gateway"))
DIR = "/var/lib/fl-tiny"
SIZE_LIMIT = 120_000_000  # bytes of the device's image (issue 4)
PROBE = (
    "import sys, numpy, numpy.linalg, nacl.signing, cbor2, sqlite3, aiocoap; from fl_tiny.net.openssl import load;"
    "load(); numpy.linalg.solve(numpy.eye(2), numpy.ones(2)); print(*sys.version_info[:2])"
)
ROLE_PROBE = {
    "device": "import PIL.Image, tflite_runtime.interpreter",
    "gateway": "import fl_tiny.gateway.web, uvicorn, segno",
}

pytestmark = pytest.mark.skipif(bool(containers.missing()), reason=f"not here: {', '.join(containers.missing())}")


@pytest.fixture(scope="module")
def images() -> None:
    containers.build("amd64")


@contextlib.contextmanager
def volume() -> Iterator[str]:
    name = podman("volume", "create").strip()
    try:
        yield name
    finally:
        podman("volume", "rm", "--force", name, code=None)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def gateway(state: str, port: int) -> Iterator[str]:
    bind = f"--bind=127.0.0.1:{port}"
    options = ("--detach", *containers.LIMITS, *containers.HARDENED, "-v", f"{state}:{DIR}")
    name = podman("run", *options, GATEWAY, "gateway", "run", f"{DIR}/gateway", bind, "--deadline=60").strip()
    try:
        yield name
    finally:
        podman("rm", "--force", "--time=3", name, code=None)


def test_a_round_completes_between_two_containers_that_can_write_nothing_but_their_state(
    images: None, tmp_path: Path
) -> None:
    data = Fleet.data(_Files(tmp_path), "samples", 60, 1)  # type: ignore[arg-type]
    port = free_port()
    with volume() as hub, volume() as board:
        keep = ("-v", f"{hub}:{DIR}")
        model = ("-v", f"{MODEL}:/model.tflite:ro")
        make = (*keep, *model, GATEWAY, "gateway", "init", f"{DIR}/gateway", "--model=/model.tflite", "--if-needed")
        assert report(*make) == report(*make), "a second start of the same machine changes nothing"
        with gateway(hub, port) as name:
            code = json.loads(podman("exec", name, "fl-tiny", "gateway", "pair", f"{DIR}/gateway", "--json"))["code"]
            podman("healthcheck", "run", name)
            mine = ("-v", f"{board}:{DIR}", "-v", f"{data}:/data.npz:ro", DEVICE)
            where = f"--gateway=127.0.0.1:{port}"
            report(*mine, "device", "enroll", f"{DIR}/device", "--code=-", where, stdin=code)
            assert report(*mine, "samples", "add", f"{DIR}/device", "--data=/data.npz")["added"] == 60
            run(*mine, "device", "run", f"{DIR}/device", "--rounds=1")
            rounds = json.loads(podman("exec", name, "fl-tiny", "gateway", "rounds", f"{DIR}/gateway", "--json"))
            assert [(r["state"], r["received"]) for r in rounds if r["number"]][:1] == [("published", 1)]


class _Files:
    """Where ``Fleet.data`` puts its file."""

    def __init__(self, root: Path) -> None:
        self.root = root


def inspected(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(podman("image", "inspect", image))[0]
    return found


@pytest.mark.parametrize(("image", "role"), [(DEVICE, "device"), (GATEWAY, "gateway")])
def test_an_image_is_small_unprivileged_labelled_and_checks_its_health(images: None, image: str, role: str) -> None:
    found = inspected(image)
    config = found["Config"]
    assert found["Size"] < SIZE_LIMIT
    assert config["User"] == "9470:9470"
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION
    assert found["Healthcheck"]["Test"] == ["CMD", "fl-tiny", role, "status", f"{DIR}/{role}", "--running"]
    assert run("--entrypoint=python3", image, "-c", f"{PROBE}; {ROLE_PROBE[role]}") == "3 11\n"
    run("--entrypoint=sh", image, "-c", "true", code=127)  # no shell for an intruder either


def test_what_was_not_enrolled_ends_with_the_code_that_units_do_not_restart_on(images: None) -> None:
    run(DEVICE, code=78)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="not here: qemu-user-static")
def test_the_arm64_images_are_built_without_emulation_and_run_under_qemu() -> None:
    containers.build("arm64")
    for image, role in ((f"{DEVICE}-arm64", "device"), (f"{GATEWAY}-arm64", "gateway")):
        assert inspected(image)["Architecture"] == "arm64" and inspected(image)["Size"] < SIZE_LIMIT
        root = podman("image", "mount", image).strip()
        try:
            python = ["qemu-aarch64-static", "-L", root, f"{root}/usr/bin/python3.11"]
            code = f"{PROBE}; {ROLE_PROBE[role]}"
            done = subprocess.run([*python, "-c", code], capture_output=True, text=True, check=False, timeout=300)
            assert done.stdout == "3 11\n", done.stderr
        finally:
            podman("image", "unmount", image)
