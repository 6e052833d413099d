# SPDX-License-Identifier: Apache-2.0
"""Buildah and podman on a machine without systemd, registry or cgroups of its own; everything below build/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build/containers"
BASE = "localhost/fl-tiny-base:bookworm"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
CA = Path("/etc/ssl/certs/ca-certificates.crt")
NEEDED = ("buildah", "podman", "crun", "mmdebstrap")
# Podman 4.3 stops at a cgroup v2 beside v1 and at ulimits above the machine's; neither is ours to change for good. Crun
# gives a container's stdin to its user: a null device of our own, else the machine's would belong to uid 9470.
ALONE = """
umount /sys/fs/cgroup/unified 2>/dev/null
own=$(mktemp -d); mount -t tmpfs tmpfs "$own"; mknod -m 666 "$own/null" c 1 3
mount --bind "$own/null" /dev/null; umount -l "$own"; rmdir "$own"
exec podman "$@"
"""
LIMITS = ("--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--network=host")
HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")


def missing() -> list[str]:
    """The tools that are not there; empty when containers can be built and run."""
    found = [tool for tool in NEEDED if shutil.which(tool) is None]
    return found if os.geteuid() == 0 else [*found, "root"]


def environment() -> dict[str, str]:
    """Storage below build/, on any file system; the machine's own containers are not touched."""
    CACHE.mkdir(parents=True, exist_ok=True)
    conf = CACHE / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{CACHE}/storage"\nrunroot = "{CACHE}/run"\n')
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(conf), "BUILDAH_ISOLATION": "chroot"}


def podman(*args: object, code: int | None = 0, stdin: str = "", patience: float = 120) -> str:
    """The stdout of a podman command."""
    words = ["unshare", "-m", "sh", "-c", ALONE, "podman", *map(str, args)]
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, env=environment(), check=False, timeout=patience
    )
    assert code is None or done.returncode == code, f"podman {args}: exit {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def run(*args: object, stdin: str = "", code: int = 0) -> str:
    """``podman run`` as this machine allows it, and as deploy/container/ confines it."""
    return podman("run", "--rm", *(("-i",) if stdin else ()), *LIMITS, *HARDENED, *args, stdin=stdin, code=code)


def report(*args: object, **options: Any) -> Any:
    return json.loads(run(*args, "--json", **options))


def build(*arches: str) -> None:
    """Both images for these architectures, upon a base of Debian's packages."""
    if podman("image", "exists", BASE, code=None) or BASE not in podman("images", "--format={{.Repository}}:{{.Tag}}"):
        _make_base()
    done = subprocess.run(
        [ROOT / "scripts/container", "-b", BASE, *arches],
        capture_output=True,
        text=True,
        env=environment() | ({"PIP_CERT": str(CA)} if CA.exists() else {}),
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    podman("image", "prune", "--force")  # what an earlier build named so


def _make_base() -> None:
    """What docker.io/library/debian:bookworm-slim would be, made of the machine's Debian mirror."""
    tar = CACHE / "base.tar"
    source = [str(SOURCES)] if SOURCES.exists() else []  # without one mmdebstrap knows where Debian is
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-pip,ca-certificates", "bookworm", tar]
    subprocess.run([*command, *source], check=True, timeout=600, capture_output=True)
    podman("import", "--quiet", tar, BASE)
    tar.unlink()
