# SPDX-License-Identifier: Apache-2.0
"""Debian roots with fl-tiny's packages in them: as a chroot, or booted by their own systemd in namespaces."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build/roots"
DEBS = ROOT / "build/debs"
NEEDED = ("mmdebstrap", "unshare", "nsenter", "dpkg-deb")
# What the packages depend on and recommend, so that nothing is fetched when they are installed.
BASE = "systemd,systemd-sysv,python3,python3-numpy,python3-cbor2,python3-nacl,libssl3"
WEB = "python3-starlette,python3-click,python3-h11,python3-segno"
PATIENCE_S = 60.0
NUMBERS = itertools.count()  # of machines, so that several can run at once
# A machine of its own: cgroups below ours, no device but the harmless ones, the kernel's settings out of reach.
BOOT = """
mount --make-rprivate /
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --bind -o ro "$1/proc/sys" "$1/proc/sys" && mount -o remount,bind,ro "$1/proc/sys"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
for node in null.3 zero.5 full.7 random.8 urandom.9 console.3; do  # never the host's own: services change their modes
    mknod -m 666 "$1/dev/${node%.*}" c 1 "${node#*.}"
done
mknod -m 666 "$1/dev/tty" c 5 0  # PrivateDevices= wants it, and a multiplexer
mkdir "$1/dev/shm" "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
cd "$1"
pivot_root . .  # not chroot: services that get namespaces of their own need a root that is a mount
umount -l .
exec chroot . /usr/bin/env -i container=fl-tiny-test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --system
"""


def missing() -> str:
    """Why Debian roots cannot be made here; empty when they can."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if os.geteuid() != 0:
        absent.append("root")
    return f"needs {', '.join(absent)}" if absent else ""


def cannot_run(arch: str) -> str:
    """Why programs for ``arch`` do not run here; empty when they do. Registers qemu-user where it is not yet."""
    if arch == "amd64":
        return ""
    formats = Path("/proc/sys/fs/binfmt_misc")
    line = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
    if not line.exists() or shutil.which("arch-test") is None:
        return f"{arch} needs qemu-user-static and arch-test"
    if not (formats / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", formats], check=False, timeout=10)
    if not (formats / "qemu-aarch64").exists():
        try:
            (formats / "register").write_text(line.read_text())
        except OSError as refused:
            return f"{arch} needs binfmt_misc: {refused}"
    return ""


def build_debs() -> Path:
    """The packages of this checkout, built by the project's own script."""
    subprocess.run([ROOT / "scripts/deb", DEBS], check=True, timeout=300, stdout=subprocess.DEVNULL)
    return DEBS


def make_root(target: Path, suite: str, arch: str = "amd64") -> Path:
    """A root of Debian ``suite`` at ``target``, from a cache below build/."""
    cached = CACHE / f"{suite}-{arch}.tar"
    if not cached.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = cached.with_suffix(".part.tar")
        include = f"--include={BASE},{WEB}"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--architectures={arch}", include, suite, draft]
        subprocess.run(command, check=True, timeout=1800)
        draft.rename(cached)
    target.mkdir(parents=True)
    subprocess.run(["tar", "-xf", cached, "-C", target, "--exclude=./dev/*"], check=True, timeout=300)
    shutil.copy("/dev/null", target / "etc/machine-id")
    return target


def command(root: Path, *words: object) -> list[str]:
    """What to start so that ``words`` run in a chroot that has /proc and a few devices; every mount ends with it."""
    script = (
        'mount -t proc proc "$1/proc"; mount -t tmpfs tmpfs "$1/dev"; '
        'for n in null.3 zero.5 urandom.9; do mknod -m 666 "$1/dev/${n%.*}" c 1 ${n#*.}; done; exec chroot "$@"'
    )
    return ["unshare", "-m", "-p", "-f", "--kill-child", "sh", "-ec", script, "sh", str(root), *map(str, words)]


def inside(root: Path, *words: object, code: int | None = 0, patience: float = PATIENCE_S) -> str:
    """What a command says in such a chroot."""
    return _ran(command(root, *words), code, patience)


def install(root: Path, *names: str, arch: str = "all") -> None:
    """Install packages of ours, those that are for ``arch``; dpkg refuses when the root lacks what they depend on."""
    shutil.rmtree(root / "debs", ignore_errors=True)
    (root / "debs").mkdir()
    found = [next(DEBS.glob(f"{name}_*_{arch}.deb")) for name in names]
    for path in found:
        shutil.copy(path, root / "debs")
    inside(root, "dpkg", "-i", *(f"/debs/{path.name}" for path in found), patience=300)


def openpgp_key(keys: Path) -> Path:
    """A secret key as ``scripts/repo`` wants it, in a folder of its own."""
    keys.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(keys), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "fl-tiny test", "ed25519", "sign", "never"], check=True, timeout=60)
    subprocess.run([*gpg, "--armor", "--export-secret-keys", "-o", keys / "key.asc"], check=True, timeout=60)
    subprocess.run(["gpgconf", "--homedir", keys, "--kill", "gpg-agent"], check=True, timeout=60)
    return keys / "key.asc"


class Machine:
    """A root that its own systemd has booted; it ends, with all its processes, by ``end`` or with the tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cgroup = _cgroup()
        enter = f'echo $$ > {self.cgroup}/cgroup.procs; exec unshare -C -m -p -u -i -f --kill-child sh -ec "$0" sh "$1"'
        self.process = subprocess.Popen(
            ["sh", "-ec", enter, BOOT, str(root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self.init = until(self._first_child, "a first process")
            until(lambda: self.run("systemctl", "is-active", "multi-user.target", code=None) == "active\n", "a boot")
        except BaseException:
            self.end()
            raise

    def run(self, *command: object, code: int | None = 0) -> str:
        """What a command says in the machine."""
        enter = ["nsenter", "-t", str(self.init), "-m", "-p", "-C", "-u", "-i", "--root", "--wd"]
        return _ran([*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin", *command], code, PATIENCE_S)

    def report(self, *command: object) -> Any:
        """The JSON of a command of fl-tiny."""
        return json.loads(self.run("fl-tiny", *command, "--json"))

    def show(self, unit: str) -> dict[str, str]:
        """A unit's properties."""
        lines = self.run("systemctl", "show", unit).strip().split("\n")
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def pid(self, unit: str) -> int:
        """A service's main process as the machine numbers it, 0 for none."""
        return int(self.show(unit)["MainPID"])

    def signal(self, number: str, pid: int) -> None:
        """Send a signal to one process of the machine; never to 0, which is the whole group of the sender."""
        assert pid > 0, f"no process to send {number} to"
        self.run("sh", "-c", f"kill -{number} {pid}")

    def processes(self, text: str) -> list[str]:
        """Command lines in the machine that hold ``text``."""
        found = self.run("sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null")
        return [line for line in found.split("\n") if text in line and "/proc/[0-9]" not in line]

    def journal(self, unit: str) -> str:
        """What a unit has said."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, code=None)

    def end(self) -> None:
        """End it and give its cgroup back."""
        self.process.kill()  # and with it, by --kill-child, the first process and so all of them
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        deepest = sorted((p for p in [self.cgroup, *self.cgroup.rglob("*")] if p.is_dir()), reverse=True)
        for each in deepest:
            until(lambda each=each: _removed(each), f"an end of {each}")  # type: ignore[misc]

    def _first_child(self) -> int:
        assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in path.read_text().split():
            if "systemd" in Path(f"/proc/{pid}/cmdline").read_text():
                return int(pid)
        return 0


def until(done: Callable[[], Any], what: str, patience: float = PATIENCE_S) -> Any:
    """What ``done`` returns once it is true."""
    end = time.monotonic() + patience
    while True:
        found = done()
        if found:
            return found
        assert time.monotonic() < end, f"no {what} in {patience:.0f} s"
        time.sleep(0.1)


def _ran(words: list[Any], code: int | None, patience: float) -> str:
    process = subprocess.Popen(
        list(map(str, words)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a signal to a command's group must not reach the tests
    )
    try:
        out, err = process.communicate(timeout=patience)
    except BaseException:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        raise
    assert code is None or process.returncode == code, (
        f"{words[-6:]}: exit {process.returncode}: {out[-1500:]}{err[-3000:]}"
    )
    return out


def _cgroup() -> Path:
    """A cgroup of our own in the unified hierarchy, wherever this machine has it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().split("\n") if line]
    unified = next(Path(words[1]) for words in mounts if words[2] == "cgroup2")
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().split("\n") if line.startswith("0::"))
    made = unified / own.lstrip("/") / f"fl-tiny-test-{os.getpid()}-{next(NUMBERS)}"
    made.mkdir()
    return made


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
