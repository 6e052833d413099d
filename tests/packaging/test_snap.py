# SPDX-License-Identifier: Apache-2.0
"""Snaps packed by ``snap pack``, looked at, and the amd64 payload run from its squashfs, outside confinement.

No store is in reach, so no snapd installs them: a stand-in snapctl drives the hooks, Python 3.12 is this machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import Fleet, cli
from tests.packaging.snaps import PATIENCE_S, Payload, opened, pack, python312

ROOT = Path(__file__).parents[2]
SIZE_LIMIT = 60_000_000  # bytes (issue 4)
ELF_MACHINE = {"amd64": 62, "arm64": 183}  # e_machine of the ELF header

needs_snap = pytest.mark.skipif(
    not (shutil.which("snap") and shutil.which("unsquashfs")), reason="not here: snapd, squashfs-tools"
)


def look_at(snap: Path, arch: str, place: Path) -> None:
    """Size, metadata and machine code of a packed snap are what they are to be."""
    assert snap.stat().st_size <= SIZE_LIMIT
    with opened(snap, place) as tree:
        meta = (tree / "meta/snap.yaml").read_text()
        for line in ("base: core24", "confinement: strict", f"- {arch}", "install-mode: disable"):
            assert line in meta
        assert {path.name for path in (tree / "meta/hooks").iterdir()} == {"install", "configure", "default-configure"}
        found = set()
        for path in tree.rglob("*.so*"):
            with path.open("rb") as file:
                found.add(struct.unpack("<18xH", file.read(20))[0])
        assert found == {ELF_MACHINE[arch]}


@pytest.fixture(scope="module")
def packed() -> Path:
    return pack("amd64")


@pytest.fixture(scope="module")
def amd64(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with opened(packed, tmp_path_factory.mktemp("snap") / "mounted") as tree:
        yield tree


@pytest.fixture
def payload(amd64: Path, tmp_path: Path) -> Payload:
    python = python312()
    if python is None:
        pytest.skip("not here: a Python 3.12, which core24 has; the payload is packed but not run")
    made = Payload(amd64, tmp_path, python)
    made.hook("install")
    return made


@needs_snap
def test_the_amd64_snap_is_small_and_holds_what_it_says(packed: Path, tmp_path: Path) -> None:
    look_at(packed, "amd64", tmp_path / "mounted")


@needs_snap
@pytest.mark.full
def test_the_arm64_snap_is_small_and_holds_what_it_says(tmp_path: Path) -> None:
    look_at(pack("arm64"), "arm64", tmp_path / "mounted")


@needs_snap
def test_snap_pack_refuses_metadata_that_snapd_would_refuse(amd64: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    shutil.copytree(amd64 / "meta", tmp_path / "bad/meta")
    meta = tmp_path / "bad/meta/snap.yaml"
    meta.write_text(meta.read_text().replace("restart-condition: on-failure", "restart-condition: often"))
    command = ["snap", "pack", "--check-skeleton", tmp_path / "bad"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode and "invalid restart condition" in done.stderr


@needs_snap
def test_hooks_pass_when_nothing_is_set_and_refuse_what_is_wrong(payload: Payload) -> None:
    payload.hook("default-configure")
    payload.hook("configure")
    assert payload.calls() == []
    payload.set(role="both")
    assert "role=both" in payload.hook("configure", code=1)
    payload.set(role="gateway", settings={"epochs": 0, "quorun": 1})
    for hook in ("default-configure", "configure"):
        told = payload.hook(hook, code=1)
        assert "epochs: 0 is not 1 to 100" in told and "did you mean quorum?" in told
    assert payload.calls() == [] and not (payload.common / "gateway/fl-tiny.toml").exists()


@needs_snap
def test_what_is_set_is_written_down_and_a_service_starts_only_with_what_it_needs(payload: Payload) -> None:
    payload.set(role="gateway", gateway="hub.lan:5684", settings={"code-minutes": 30, "preprocess": {"kind": "image"}})
    payload.hook("configure")
    assert payload.calls() == ["stop --disable fl-tiny.device"], "it is no gateway yet"
    written = (payload.common / "gateway/fl-tiny.toml").read_text()
    assert written == 'advertise = "hub.lan:5684"\ncode_minutes = 30\npreprocess = {kind = "image"}\n'
    model = ROOT / "fl_tiny/lab/data/watch.tflite"
    payload.set(role="gateway")
    (payload.common / "gateway/fl-tiny.toml").unlink()
    payload.fl_tiny("gateway", "init", payload.common / "gateway", "--model", model)
    payload.hook("configure")
    assert payload.calls()[1:] == ["stop fl-tiny.gateway", "start --enable fl-tiny.gateway"]


@needs_snap
def test_the_payload_enrols_by_a_file_and_trains_a_round(payload: Payload, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    device = payload.common / "device"
    try:
        fleet.gateway("--deadline", 60)
        cli("gateway", "pair", fleet.gw, "--out", tmp_path / "cards")
        card = next((tmp_path / "cards").rglob("fl-tiny.toml"))
        shutil.copy(card, payload.common / "card")
        payload.set(role="device", gateway=f"127.0.0.1:{fleet.port}")
        payload.hook("configure")
        assert payload.calls()[1:] == ["stop fl-tiny.device", "start --enable fl-tiny.device"]
        with service(payload):
            until = time.monotonic() + PATIENCE_S
            while not (device / "state.db").exists() or (payload.common / "card/fl-tiny.toml").exists():
                assert time.monotonic() < until, "the service did not enrol"
                time.sleep(0.2)
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in (device / "secret").iterdir())
        assert payload.fl_tiny("samples", "add", device, "--data", fleet.data("d", 60, 1))["added"] == 60
        payload.run(payload.tree / "bin/fl-tiny", "device", "run", device, "--rounds", 1)
        first = cli("gateway", "rounds", fleet.gw)[0]
        assert (first["state"], first["received"]) == ("published", 1)
        assert payload.fl_tiny("samples", "stats", device)["runtime"].startswith("numpy ")
    finally:
        fleet.end()


@contextlib.contextmanager
def service(payload: Payload) -> Iterator[None]:
    """The device's service, as snapd would start and stop it."""
    process = subprocess.Popen([payload.tree / "bin/fl-tiny-device"], env=payload.env, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_hooks_and_programs_can_be_started() -> None:
    for path in [*(ROOT / "snap/hooks").iterdir(), *(ROOT / "snap/local").iterdir()]:
        assert os.access(path, os.X_OK), path
