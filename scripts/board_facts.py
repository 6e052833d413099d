# SPDX-License-Identifier: Apache-2.0
"""Board files held against Debian's packages for arm64: options, modules, device trees and files that are not there.

usage: python3 scripts/board_facts.py [BOARD…]     downloads packages into build/facts (about 100 MB a suite); exits 1
when something is not there. For a board whose kernel is brought it says which options each kernel of Debian lacks.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/facts"
SUITES = ("bookworm", "trixie", "trixie-backports")
KERNEL = "linux-image-arm64"
READ = re.compile(r"(boot/config-.*|usr/lib/modules/[^/]+/(config|modules\.builtin))")  # files whose text is wanted


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a suite's kernel packages hold. config: options that are y or m, without CONFIG_."""

    version: str
    config: frozenset[str]
    modules: tuple[str, ...]
    built_in: tuple[str, ...]
    trees: frozenset[str]


def main() -> None:
    """Look at each board, print what is missing."""
    files = sorted((ROOT / "image/boards").glob("*.toml"))
    boards = {path.stem: tomllib.loads(path.read_text()) for path in files}
    missing = False
    for name in sys.argv[1:] or boards:
        board = boards[name]
        if board["kernel"].get("brought"):
            for suite in SUITES:
                lacking = [o for o in board["kernel"]["options"] if o not in kernel_of(suite).config]
                print(f"{name}: {suite}'s {kernel_of(suite).version} lacks {', '.join(lacking) or 'nothing'}")
        faults = list(faults_of(board))
        missing = missing or bool(faults)
        print("\n".join(f"{name}: {fault}" for fault in faults) or f"{name}: all there")
    sys.exit(missing)


def faults_of(board: dict[str, Any]) -> list[str]:
    """What a board file names and no package has."""
    kernel, firmware = board["kernel"], board.get("firmware", {})
    faults = []
    if not kernel.get("brought"):
        has = kernel_of(kernel.get("suite") or board["suite"])
        faults += [f"option {each}" for each in kernel.get("options", ()) if each not in has.config]
        for pattern in kernel.get("modules", ()):
            if not any(fnmatch.fnmatch(path, pattern) for path in has.modules + has.built_in):
                faults.append(f"module {pattern}")
        names = {path.rsplit("/", 1)[1].split(".ko")[0].replace("-", "_") for path in has.modules + has.built_in}
        faults += [f"initrd {each}" for each in kernel.get("initrd", ()) if each.replace("-", "_") not in names]
        faults += [f"device tree {each}" for each in kernel.get("device_trees", ()) if each not in has.trees]
    holds = {path for package in firmware.get("packages", ()) for path in inside(board["suite"], package)}
    faults += [f"file {each}" for each in firmware.get("files", {}) if each not in holds]
    faults += [f"package {each}" for each in firmware.get("root", ()) if not inside(board["suite"], each)]
    return faults


@cache
def kernel_of(suite: str) -> Kernel:
    """The kernel of a suite. 7.3 is cut into packages of config, image and modules; older ones are whole."""
    paths, config, built_in, seen, queue = [], "", "", set(), [KERNEL]
    while queue:
        package = queue.pop()
        if package in seen:
            continue
        seen.add(package)
        depends = shown(suite, package).get("Depends", "")
        queue += re.findall(r"\b(linux-(?:image|base|binary|modules)-[\w.+-]+)", depends)
        files = inside(suite, package)
        paths += files
        built_in += "".join(text for path, text in files.items() if path.endswith("/modules.builtin"))
        config += "".join(text for path, text in files.items() if text and not path.endswith("/modules.builtin"))
    return Kernel(
        shown(suite, KERNEL)["Version"],
        frozenset(re.findall(r"^CONFIG_(\w+)=[ym]$", config, re.MULTILINE)),
        tuple(path.split("/kernel/", 1)[1] for path in paths if "/kernel/" in path and ".ko" in path),
        tuple(line.removeprefix("kernel/") for line in built_in.split()),
        frozenset("/".join(path.split("/")[-2:]) for path in paths if path.endswith(".dtb")),
    )


@cache
def shown(suite: str, package: str) -> dict[str, str]:
    """The fields that a suite's list has of a package."""
    text = told(apt("apt-cache", suite), "show", "--no-all-versions", package)
    return dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE))


@cache
def deb(suite: str, package: str) -> Path:
    """A package's file, downloaded once a version."""
    name = shown(suite, package)["Filename"].rsplit("/", 1)[1]
    folder = WORK / suite / "debs"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{package}_*{name.rsplit('_', 1)[1]}")):
        told(apt("apt-get", suite), "download", package, cwd=folder)
    return next(folder.glob(f"{package}_*.deb"))


@cache
def inside(suite: str, package: str) -> dict[str, str]:
    """The paths of a package's files, those of READ with their text; /lib is /usr/lib, as it is on the board."""
    file = deb(suite, package)
    index = file.with_suffix(".json")
    if not index.exists():
        found = {}
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as unpacked,
            tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar,
        ):
            for member in tar:
                path = re.sub(r"^(\./)?(lib/)?", lambda m: "usr/lib/" if m[2] else "", member.name)
                data = tar.extractfile(member) if READ.fullmatch(path) and member.isfile() else None
                if not member.isdir():
                    found[path] = data.read().decode() if data else ""
        index.write_text(json.dumps(found))
    paths: dict[str, str] = json.loads(index.read_text())
    return paths


@cache
def apt(tool: str, suite: str) -> list[str]:
    """apt for arm64 and one suite alone, in a folder of its own; its lists are fetched the first time."""
    home = WORK / suite
    settings = home / "apt.conf"
    if not settings.exists():
        for name in (
            "lists/partial",
            "cache/archives/partial",
            "etc/preferences.d",
            "etc/apt.conf.d",
            "etc/trusted.gpg.d",
        ):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        line = f"deb [signed-by={key}] http://deb.debian.org/debian {suite} main non-free-firmware contrib\n"
        (home / "etc/sources.list").write_text(line)
        places = {
            "Dir::Etc": "etc",
            "Dir::State::lists": "lists",
            "Dir::State::status": "status",
            "Dir::Cache": "cache",
        }
        lines = [f'{name} "{home / where}";' for name, where in places.items()]
        settings.write_text("\n".join([*lines, 'APT::Architecture "arm64";', 'Acquire::Languages "none";', ""]))
        told(["env", f"APT_CONFIG={settings}", "apt-get"], "update", "-qq")
    return ["env", f"APT_CONFIG={settings}", tool]


def told(words: list[str], *more: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints. Exits with its complaint when it fails."""
    done = subprocess.run(
        [*words, *map(str, more)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        sys.exit(f"board-facts: {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
