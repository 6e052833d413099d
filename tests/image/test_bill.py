# SPDX-License-Identifier: Apache-2.0
"""What an image is made of: read from what apt says, told as SPDX and as licences, held to by a lock."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fl_tiny.errors import ConfigError, EnvironmentFault
from fl_tiny.image import bill, build

APT = """Package: zlib1g
Source: zlib
Version: 1:1.2.13.dfsg-1
Architecture: arm64
Homepage: http://zlib.net/
Description: compression library - runtime
 A continued line: with a colon
SHA256: aa11

Package: adduser
Version: 3.134
Architecture: all
SHA256: bb22
"""


@pytest.fixture
def packages(tmp_path: Path) -> list[bill.Package]:
    (tmp_path / "apt").write_text(APT)
    return bill.known(tmp_path / "apt")


def test_packages_are_read_as_apt_tells_of_them(packages: list[bill.Package]) -> None:
    assert [(p.name, p.version, p.arch, p.source, p.sha256) for p in packages] == [
        ("adduser", "3.134", "all", "", "bb22"),
        ("zlib1g", "1:1.2.13.dfsg-1", "arm64", "zlib", "aa11"),
    ]


def test_a_mirror_that_moved_on_is_named_package_by_package(tmp_path: Path, packages: list[bill.Package]) -> None:
    lock = tmp_path / "lock" / "board.toml"
    bill.write_lock(lock, packages)
    assert bill.differences(lock, packages) == ""
    newer = [
        bill.Package("zlib1g", "1:1.3", "arm64", sha256="cc33"),
        bill.Package("adduser", "3.134", "all", sha256="x"),
    ]
    said = bill.differences(lock, newer)
    assert said == "adduser 3.134, now 3.134 with another digest; zlib1g 1:1.2.13.dfsg-1, now 1:1.3"
    assert bill.differences(lock, packages[:1]) == "zlib1g 1:1.2.13.dfsg-1, now none"


def test_other_packages_than_the_locked_ones_are_said_and_refused_where_asked(
    tmp_path: Path, packages: list[bill.Package]
) -> None:
    said: list[str] = []
    places = build.Places(tmp_path, tmp_path, tmp_path, 0, said.append, tmp_path / "board.toml")
    build.mind_lock(packages, places)  # no lock yet
    with pytest.raises(ConfigError, match="--update-lock"):
        build.mind_lock(packages, replace(places, locked=True))
    build.mind_lock(packages, replace(places, update_lock=True))
    build.mind_lock(packages, replace(places, locked=True))
    assert said == []
    build.mind_lock(packages[1:], places)
    assert "adduser 3.134, now none" in said[0]
    with pytest.raises(EnvironmentFault, match=r"adduser 3\.134, now none.*without --locked"):
        build.mind_lock(packages[1:], replace(places, locked=True))


def test_a_file_that_is_no_lock_is_a_fault_of_the_operator(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("[else]\n")
    with pytest.raises(ConfigError, match="--update-lock"):
        bill.differences(tmp_path / "lock", [])


def test_the_bill_names_each_package_with_its_digest_and_its_licences(
    tmp_path: Path, packages: list[bill.Package]
) -> None:
    (tmp_path / "doc/zlib1g").mkdir(parents=True)
    (tmp_path / "doc/zlib1g/copyright").write_text("Files: *\nLicense: Zlib\n text\n\nLicense: GPL-2+\n")
    licences = bill.licences(tmp_path / "doc")
    assert licences == {"zlib1g": ["GPL-2+", "Zlib"]}
    found = json.loads(bill.as_spdx("fl-tiny-1-board", "2026-11-24T12:00:00Z", packages, licences))
    assert found["spdxVersion"] == "SPDX-2.3" and len({p["SPDXID"] for p in found["packages"]}) == 2
    (zlib,) = [p for p in found["packages"] if p["name"] == "zlib1g"]
    assert zlib["checksums"] == [{"algorithm": "SHA256", "checksumValue": "aa11"}]
    assert "GPL-2+, Zlib" in zlib["licenseComments"]
    assert bill.as_text(packages, licences).split("\n")[:2] == [
        "adduser  3.134  see its copyright file",
        "zlib1g  1:1.2.13.dfsg-1  GPL-2+, Zlib",
    ]
