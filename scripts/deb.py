# SPDX-License-Identifier: Apache-2.0
"""The Debian packages: fl-tiny and fl-tiny-gateway for every board, fl-tiny-tflite for each kind of processor.

What distributions have is a dependency; what they lack lies in /usr/lib/fl-tiny, where no other program sees it.
usage: python3 scripts/deb.py OUT. Needs pip and git. The same commit gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/deb"
HOME = Path("usr/lib/fl-tiny")  # the launcher says so too
UNITS = Path("usr/lib/systemd/system")
LOCK = ROOT / "scripts/deb.lock"
# Architectures of Debian, and the newest platform that a wheel for them may ask for.
ARCHITECTURES = {"amd64": "manylinux2014_x86_64", "arm64": "manylinux_2_34_aarch64", "armhf": "manylinux_2_34_armv7l"}
PYTHON = "3.11"  # Debian 12; Ubuntu 22.04's numpy (1.21) is too old for tflite-runtime's wheel for 3.10


@dataclass(frozen=True, slots=True)
class Package:
    """A binary package. role: whose service it brings; empty: none.   enabled: units that wait for their files."""

    name: str
    summary: str
    arch: str = "all"
    role: str = ""
    depends: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    suggests: tuple[str, ...] = ()
    units: tuple[str, ...] = field(default=())
    enabled: tuple[str, ...] = field(default=())


def main() -> None:
    """Stage, pack, say what came out."""
    out = Path(sys.argv[1]).resolve()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or told("git", "log", "-1", "--format=%ct"))
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(WORK, ignore_errors=True)
    version = said("fl_tiny/__init__.py", "__version__")
    nfpm = unpacked("nfpm", WORK / "nfpm")["nfpm"]
    for package in packages(version):
        tree = WORK / f"{package.name}-{package.arch}"
        stage(package, tree)
        settle(tree, epoch)
        print(pack(package, tree, version, nfpm, out, epoch))


def packages(version: str) -> list[Package]:
    """All of them. Alternatives are for Ubuntu 22.04 (Python 3.10) and for the 64-bit time of newer releases."""
    device = Package(
        "fl-tiny",
        "federated learning of the last layers of int8 TFLite models: device and commands",
        role="device",
        depends=(
            "systemd",
            "python3 (>= 3.10)",
            "python3 (>= 3.11) | python3-tomli",
            "python3-numpy (>= 1:1.21)",
            "python3-cbor2 (>= 5.4)",
            "python3-nacl (>= 1.5)",
            "libssl3 | libssl3t64",
        ),
        recommends=("fl-tiny-tflite",),
        suggests=("python3-pil", "python3-soundfile", "python3-zeroconf"),
        units=(
            "fl-tiny-device.service",
            "fl-tiny-device.timer",
            "fl-tiny-device-once.service",
            "fl-tiny-provision.service",
            "fl-tiny-enroll.service",
            "fl-tiny-source.service",
            "fl-tiny-confirm.service",  # these three do nothing on a system without slots
            "fl-tiny-update.path",
            "fl-tiny-update.service",
        ),
        enabled=(
            "fl-tiny-device.service",
            "fl-tiny-provision.service",
            "fl-tiny-enroll.service",
            "fl-tiny-source.service",
            "fl-tiny-confirm.service",
        ),
    )
    gateway = Package(
        "fl-tiny-gateway",
        "federated learning of the last layers of int8 TFLite models: gateway service",
        role="gateway",
        depends=(f"fl-tiny (= {version})",),
        recommends=("python3-starlette", "python3-click", "python3-h11", "python3-segno"),
        units=("fl-tiny-gateway.service",),
        enabled=("fl-tiny-gateway.service",),
    )
    runtime = [
        Package(
            "fl-tiny-tflite",
            "tflite-runtime for fl-tiny, on distributions with Python 3.11",
            arch=arch,
            depends=("python3 (>= 3.11)", "python3 (<< 3.12)", "python3-numpy (>= 1:1.23)", "python3-numpy (<< 1:2)"),
        )
        for arch in ARCHITECTURES
    ]
    return [device, gateway, *runtime]


def stage(package: Package, tree: Path) -> None:
    """Lay out what the package puts on the board."""
    if package.name == "fl-tiny":
        shutil.copytree(ROOT / "fl_tiny", tree / HOME / "fl_tiny", ignore=shutil.ignore_patterns("__pycache__"))
        unpacked("aiocoap", tree / HOME)
        copied(ROOT / "deploy/deb/launcher", tree / "usr/bin/fl-tiny")
        for page in ("cli.md", "cli-gateway.md", "config.md", "install.md", "sources.md"):
            copied(ROOT / "docs" / page, tree / "usr/share/doc/fl-tiny" / page)
        copied(ROOT / "deploy/systemd/sysusers.d/fl-tiny.conf", tree / "usr/lib/sysusers.d/fl-tiny.conf")
        for folder in (ROOT / "deploy/systemd").glob("fl-tiny-*.service.d"):
            shutil.copytree(folder, tree / UNITS / folder.name)
        for script in ("bootloader", "pre-install"):
            copied(ROOT / "deploy/rauc" / script, tree / HOME / "rauc" / script)
    if package.role == "gateway":
        unpacked("uvicorn", tree / HOME)  # Debian 12's is too old for the page
    if package.role:
        tmpfiles = f"{package.name}.conf"
        copied(ROOT / "deploy/systemd/tmpfiles.d" / tmpfiles, tree / "usr/lib/tmpfiles.d" / tmpfiles)
    else:
        options = ("--python-version", PYTHON, "--platform", ARCHITECTURES[package.arch])
        unpacked("tflite-runtime", tree / HOME / f"py{PYTHON}", *options)
    for unit in package.units:
        copied(ROOT / "deploy/systemd" / unit, tree / UNITS / unit)
    copied(ROOT / "deploy/deb/copyright", tree / f"usr/share/doc/{package.name}/copyright")


def settle(tree: Path, epoch: int) -> None:
    """Make modes and times those of the commit, whatever the checkout's umask and date were."""
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.parent.name in ("bin", "rauc") else 0o644)
        os.utime(path, (epoch, epoch))


def pack(package: Package, tree: Path, version: str, nfpm: Path, out: Path, epoch: int) -> Path:
    """Let nfpm make the .deb."""
    made = out / f"{package.name}_{version}_{package.arch}.deb"
    config = {
        "name": package.name,
        "arch": package.arch,
        "version": version,
        "maintainer": "fl-tiny developers <fl-tiny@localhost>",
        "description": package.summary,
        "license": "Apache-2.0",
        "section": "science",
        "priority": "optional",
        "depends": package.depends,
        "recommends": package.recommends,
        "suggests": package.suggests,
        "mtime": told("date", "-u", "-d", f"@{epoch}", "+%Y-%m-%dT%H:%M:%SZ"),
        "contents": [{"src": f"{tree}/", "dst": "/", "type": "tree"}],
        "scripts": scripts(package),
        "deb": {"compression": "xz"},
    }
    settings = WORK / f"{made.stem}.yaml"  # JSON is YAML
    settings.write_text(json.dumps(config))
    subprocess.run(
        [nfpm, "package", "--config", settings, "--packager", "deb", "--target", made],
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        stdout=subprocess.DEVNULL,
    )
    return made


def scripts(package: Package) -> dict[str, str]:
    """The maintainer scripts of a package that has a service, its names filled in."""
    found = {}
    for kind, file in {"postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"}.items():
        if package.role:
            text = (ROOT / "deploy/deb" / file).read_text()
            names = {"PACKAGE": package.name, "ROLE": package.role, "UNITS": " ".join(package.units)}
            names["ENABLED"] = " ".join(package.enabled)
            kept = ("device", "board", "spool", "update") if package.role == "device" else (package.role,)
            names["STATE"] = " ".join(f"/var/lib/fl-tiny/{name}" for name in kept)
            for name, value in names.items():
                text = text.replace(f"@{name}@", value)
            path = WORK / f"{package.name}.{file}"
            path.write_text(text)
            found[kind] = str(path)
    return found


def unpacked(name: str, target: Path, *options: str) -> dict[str, Path]:
    """A pinned wheel's files below ``target``; scripts, by name, made executable."""
    pins = [text for text in LOCK.read_text().replace("\\\n", "").split("\n") if text.startswith(f"{name}==")]
    wheels = WORK / "wheels" / "-".join((name, *options))
    wheels.mkdir(parents=True)
    lock = wheels / "lock"
    lock.write_text("\n".join(pins))
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*pip, "--only-binary", ":all:", "--require-hashes", "-r", lock, "-d", wheels, *options],
        check=True,
    )
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    found = {path.name: path for path in target.glob("*.data/scripts/*")}
    for path in found.values():
        path.chmod(0o755)
    return found


def copied(source: Path, target: Path) -> None:
    """Copy a file, its folders made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def said(file: str, name: str) -> str:
    """The text that a Python file gives to a name."""
    line = next(line for line in (ROOT / file).read_text().split("\n") if line.startswith(f"{name} = "))
    return line.split('"')[1]


def told(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


if __name__ == "__main__":
    main()
