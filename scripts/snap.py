# SPDX-License-Identifier: Apache-2.0
"""Snaps by the recipe of snap/snapcraft.yaml, from wheels, where snapcraft is not to be had; run by scripts/snap.

What snapcraft's python plugin makes is a venv upon the base's Python 3.12: so does this, for any architecture.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PYTHON = "3.12"  # core24's
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
TAGS = ("manylinux_2_39", "manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")  # core24: glibc 2.39
SCRIPT = "#!/usr/bin/env python3\nfrom fl_tiny.cli.main import entry\n\nentry()\n"
NOT_IN_META = ("platforms", "parts", "compression", "base", "license")


def main(arches: list[str]) -> None:
    """Pack a snap for each architecture; print where it is and its size."""
    recipe = yaml.safe_load((ROOT / "snap/snapcraft.yaml").read_text())
    for arch in arches or list(recipe["platforms"]):
        prime = ROOT / "build/snap" / arch
        shutil.rmtree(prime, ignore_errors=True)
        stage(prime, recipe["parts"], MACHINES[arch])
        write_meta(prime, recipe, arch)
        out = ROOT / "dist/snap" / f"fl-tiny_{recipe['version']}_{arch}.snap"
        out.parent.mkdir(parents=True, exist_ok=True)
        run("snap", "pack", "--check-skeleton", prime)
        run("snap", "pack", f"--compression={recipe['compression']}", f"--filename={out.name}", prime, out.parent)
        print(f"{out.relative_to(ROOT)} {out.stat().st_size}")


def stage(prime: Path, parts: dict[str, Any], machine: str) -> None:
    """The tree that the parts make."""
    site = prime / f"lib/python{PYTHON}/site-packages"
    wheels = ROOT / "build/snap/wheels"
    for old in wheels.glob("fl_tiny-*.whl"):
        old.unlink()
    run(*pip(), "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    ours = next(wheels.glob("fl_tiny-*.whl"))
    extras = parts["fl-tiny"]["python-packages"][0].removeprefix(".")
    platform = [f"--platform={tag}_{machine}" for tag in TAGS]
    options = [*platform, f"--python-version={PYTHON}", "--implementation=cp", "--only-binary=:all:", "--no-compile"]
    run(*pip(), "install", "-q", *options, "--target", site, f"{ours}{extras}")
    shutil.rmtree(site / "bin", ignore_errors=True)
    for pattern in parts["fl-tiny"]["prime"]:
        for path in sorted(prime.glob(pattern.removeprefix("-")), reverse=True):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make_venv(prime)
    for source, target in parts["local"]["organize"].items():
        shutil.copy(ROOT / parts["local"]["source"] / source, prime / target)


def make_venv(prime: Path) -> None:
    """What makes the base's Python find the site-packages beside it, in children too."""
    (prime / "bin").mkdir()
    (prime / "bin/python3").symlink_to(f"/usr/bin/python{PYTHON}")
    (prime / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")
    command = prime / "bin/fl-tiny"
    command.write_text(SCRIPT)
    command.chmod(0o755)


def write_meta(prime: Path, recipe: dict[str, Any], arch: str) -> None:
    """meta/snap.yaml and the hooks, as snapcraft writes them."""
    meta = {key: value for key, value in recipe.items() if key not in NOT_IN_META}
    meta |= {"base": recipe["base"], "license": recipe["license"], "architectures": [arch]}
    (prime / "meta").mkdir()
    (prime / "meta/snap.yaml").write_text(yaml.safe_dump(meta, sort_keys=False, allow_unicode=True))
    shutil.copytree(ROOT / "snap/hooks", prime / "meta/hooks")


def pip() -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
