# SPDX-License-Identifier: Apache-2.0
"""One board that takes releases, for all tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import guest
from . import rig as rigs

GRUB = "/usr/lib/grub/arm64-efi"


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rigs.Rig]:
    if why := rigs.missing():
        pytest.skip(f"no image to update here: {why}")
    made = rigs.Rig(tmp_path_factory.mktemp("update"))
    yield made
    made.end()


@pytest.fixture(scope="session")
def grub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRUB's modules for arm64: this machine's, else those that the builder has fetched for its images."""
    found = Path(os.environ.get("FL_TINY_GRUB_ARM64", GRUB))
    if found.exists():
        return found
    if why := guest.missing():
        pytest.skip(f"no GRUB to boot here: {why}")
    folder = tmp_path_factory.mktemp("grub")
    guest.build("qemu-arm64", folder / "out")
    package = sorted(guest.ROOT.glob("build/image/roots/*/fetched/grub-efi-arm64-bin_*.deb"))[-1]
    guest.run("dpkg-deb", "-x", package, folder / "package")
    return folder / f"package{GRUB}"
