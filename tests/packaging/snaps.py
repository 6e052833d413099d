# SPDX-License-Identifier: Apache-2.0
"""Snaps as ``scripts/snap`` packs them, opened, and run outside confinement as snapd would run them."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
SNAPCTL = """#!{python}
import json, pathlib, sys
place = pathlib.Path({place!r})
with (place / "calls").open("a") as log:
    print(*sys.argv[1:], file=log)
if sys.argv[1] == "get":
    settings = json.loads((place / "settings.json").read_text())
    print(json.dumps({{key: settings[key] for key in sys.argv[3:] if key in settings}}))
"""


def python312() -> str | None:
    """A Python of core24's version that works here."""
    places = [shutil.which("python3.12"), *map(str, Path.home().glob(".pyenv/versions/3.12.*/bin/python3.12"))]
    for place in places:
        if place and subprocess.run([place, "-c", ""], check=False, capture_output=True).returncode == 0:
            return place
    return None


def pack(arch: str) -> Path:
    done = subprocess.run(
        [ROOT / "scripts/snap", arch], capture_output=True, text=True, check=False, timeout=600, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ROOT / done.stdout.strip().split("\n")[-1].split()[0]


@contextlib.contextmanager
def opened(snap: Path, place: Path) -> Iterator[Path]:
    """The snap mounted as snapd would, or unpacked where the kernel has no squashfs."""
    place.mkdir()
    if subprocess.run(["mount", "-o", "loop,ro", snap, place], check=False, capture_output=True).returncode == 0:
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
    else:
        subprocess.run(["unsquashfs", "-q", "-n", "-f", "-d", place, snap], check=True, capture_output=True)
        yield place


class Payload:
    """A snap's files with what snapd would give them: SNAP, SNAP_COMMON, the base's Python, snapctl."""

    def __init__(self, tree: Path, root: Path, python: str) -> None:
        self.tree, self.root, self.common = tree, root, root / "common"
        base = root / "base"
        for folder in (base, self.common):
            folder.mkdir()
        (base / "python3").symlink_to(python)
        (base / "snapctl").write_text(SNAPCTL.format(python=sys.executable, place=str(root)))
        (base / "snapctl").chmod(0o755)
        self.set()
        self.env = {
            "PATH": f"{base}:{tree}/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{tree}/lib/python3.12/site-packages",
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "SNAP": str(tree),
            "SNAP_COMMON": str(self.common),
            "HOME": str(root),
        }

    def set(self, **settings: Any) -> None:
        (self.root / "settings.json").write_text(json.dumps(settings))
        (self.root / "calls").write_text("")

    def calls(self) -> list[str]:
        return [line for line in (self.root / "calls").read_text().splitlines() if not line.startswith("get")]

    def hook(self, name: str, code: int = 0) -> str:
        return self.run(self.tree / "meta/hooks" / name, code=code).stderr

    def run(self, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert done.returncode == code, f"{command}: {done.returncode}: {done.stderr}"
        return done

    def fl_tiny(self, *words: object) -> Any:
        return json.loads(self.run(self.tree / "bin/fl-tiny", *words, "--json").stdout)
