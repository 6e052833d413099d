# SPDX-License-Identifier: Apache-2.0
"""A CPython 3.11 for Alpine's musl, built from Debian's sources, and fl-tiny's packages for it: for tests alone."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from .alpine import KEY, ROOT, alpine_root, indexed, pack, trust
from .alpine import build as build_repository

PYTHON = alpine_root.CACHE / "python-musl"
ABSENT = ("py3-starlette=0.49.3-r0", "uvicorn=0.38.0-r0")  # stubs in every root of the tests
WHEELS = ("numpy==1.26.4", "cbor2==5.7.1", "pynacl==1.6.0", "cffi==2.0.0", "pycparser==2.23", "pytest==8.4.2")
WHEELS += ("hypothesis==6.148.2", "packaging==25.0")
CONTENTS = {  # what a package of the tests holds of those wheels
    "py3-numpy=1.26.4-r0": ("numpy", "numpy.libs", "numpy-*"),
    "py3-cbor2=5.7.1-r0": ("cbor2", "_cbor2*"),
    "py3-pynacl=1.6.0-r0": ("nacl", "cffi", "_cffi_backend*", "pycparser", "pynacl.libs", "cffi.libs"),
}


def is_built() -> bool:
    """Is there one, made by the script as it is now?"""
    stamp = subprocess.run(["cksum"], stdin=(ROOT / "scripts/musl-python").open(), capture_output=True, check=True)
    return (PYTHON / "stamp").exists() and (PYTHON / "stamp").read_bytes() == stamp.stdout


def build() -> Path:
    """Where it is; built first when it must be, which takes minutes."""
    if not is_built():
        subprocess.run([ROOT / "scripts/musl-python", PYTHON], check=True, timeout=3000)
    return PYTHON


def site() -> Path:
    """numpy and the rest for musl, from wheels, with pytest for the package's check()."""
    place = alpine_root.CACHE / f"site-{hashlib.sha256(repr(WHEELS).encode()).hexdigest()[:8]}"
    if not place.is_dir():
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", place]
        words += ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
        words += ["--abi=cp311", "--abi=abi3", "--abi=none", "--platform=musllinux_1_2_x86_64"]
        subprocess.run([*words, "--platform=musllinux_1_1_x86_64", "--platform=any", *WHEELS], check=True, timeout=600)
    return place


def repositories(work: Path) -> Path:
    """Below one folder: ``repository``, our packages for this CPython, and ``stubs``, what they need."""
    both = work / "musl"
    build_repository(both / "repository", "--musl", build())
    tool = alpine_root.copy(work / "musl-tool")
    pack(tool, both / "stubs", PYTHON, "python3", "3.11.2-r0", "CPython for tests, built from Debian's sources")
    for package, parts in CONTENTS.items():
        name, _, version = package.partition("=")
        tree = work / name / "usr/lib/python3.11/site-packages"
        tree.mkdir(parents=True)
        for found in [path for part in parts for path in site().glob(part)]:
            subprocess.run(["cp", "-a", found, tree], check=True)
        pack(tool, both / "stubs", work / name, name, version, "a wheel for tests")
    for package in ABSENT:
        name, _, version = package.partition("=")
        pack(tool, both / "stubs", None, name, version)
    indexed(both / "stubs")
    return both


def root(place: Path, both: Path) -> Path:
    """An Alpine root that trusts ``repositories`` and in which their packages run."""
    alpine_root.copy(place)
    shutil.copytree(both, place, dirs_exist_ok=True)
    (place / "etc/apk/repositories").write_text("/repository\n/stubs\n")
    trust(place, place / "repository/keys" / f"{KEY.name}.pub")
    return place
