# SPDX-License-Identifier: Apache-2.0
"""Leave out kernel modules that no pattern names and no named one needs.

usage: keep_modules.py DIR PATTERNS NAMES    DIR: lib/modules/VERSION. Patterns are of paths below DIR/kernel, names of
modules that must be there. What is neither a module nor built in is said aloud.
"""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path


def main() -> None:
    """Read modules.dep, keep what is wanted and what that needs, delete the rest."""
    base, patterns, names = Path(sys.argv[1]), *(Path(p).read_text().split() for p in sys.argv[2:4])
    needs = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, below = line.partition(":")
        needs[path] = below.split()
    built_in = [Path(p) for p in (base / "modules.builtin").read_text().split()]
    wanted = set()
    for pattern in patterns:
        found = fnmatch.filter(needs, f"kernel/{pattern}")
        if not found and not any(fnmatch.fnmatch(str(p), f"kernel/{pattern}") for p in built_in):
            print(f"compose: no module is {pattern}", file=sys.stderr)
        wanted.update(found)
    by_name = {_name(Path(path)): path for path in needs}
    for name in names:
        if name.replace("-", "_") in by_name:
            wanted.add(by_name[name.replace("-", "_")])
        elif name.replace("-", "_") not in map(_name, built_in):
            sys.exit(f"compose: the initrd needs the module {name}, which this kernel has not")
    for path in list(wanted):
        wanted.update(needs[path])
    for file in (base / "kernel").rglob("*"):
        if file.is_file() and str(file.relative_to(base)) not in wanted:
            file.unlink()
    for folder in sorted((p for p in (base / "kernel").rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


if __name__ == "__main__":
    main()
