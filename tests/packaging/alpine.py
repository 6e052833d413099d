# SPDX-License-Identifier: Apache-2.0
"""A machine that runs Alpine: a real root, its own init as process 1, a network interface of its own, in namespaces."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import alpine_root  # noqa: E402 - a script, not a package

OUTSIDE, INSIDE, MASK = "10.87.0.1", "10.87.0.2", "255.255.255.252"
LINK = "flt-alpine"
BOOT_S = 60.0
KEY = alpine_root.CACHE / "fl-tiny-test.rsa"
_STUBBED = "STUB for tests: Alpine has this package, this machine does not"
_INTERFACES = (
    f"auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet static\n\taddress {INSIDE}\n\tnetmask {MASK}\n"
)
# Services of the carrier's disk that would touch the host's clock, modules or settings, or wait for its agent.
_LEFT_OUT = ("hwclock", "modules", "sysctl", "quicksand-guest-agent", "setup-dns", "dmesg", "devfs")
_START = """
mount --rbind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
for node in null.3 zero.5 full.7 random.8 urandom.9; do mknod -m 666 "$1/dev/${node%.*}" c 1 "${node#*.}"; done
ln -s /proc/self/fd "$1/dev/fd"
read -r go
exec chroot "$1" /sbin/init
"""


def apk(root: Path, *words: str, binds: alpine_root.Binds = (), code: int | None = 0) -> str:
    """What the root's own apk says on both streams."""
    done = alpine_root.run(root, "apk", *words, binds=binds, code=code)
    return done.stdout + done.stderr


def trust(root: Path, key: Path) -> None:
    shutil.copy(key, root / "etc/apk/keys" / key.name)


def pack(work: Path, out: Path, tree: Path | None, name: str, version: str, description: str = _STUBBED) -> None:
    """A package for the tests in the repository ``out``: empty, or what lies in ``tree``."""
    (out / "x86_64").mkdir(parents=True, exist_ok=True)
    words = ["--info", f"name:{name}", "--info", f"version:{version}", "--info", f"description:{description}"]
    words += ["--info", "arch:noarch", "--output", f"/out/x86_64/{name}-{version}.apk", "--sign-key", "/key.rsa"]
    shutil.copy(KEY, work / "key.rsa")
    binds = [(out, "/out"), *([(tree, "/tree")] if tree else [])]
    apk(work, "mkpkg", *words, *(["--files", "/tree"] if tree else []), binds=binds)


def build(out: Path, *options: str | Path) -> str:
    """What scripts/apk says when it has made a repository."""
    words = [ROOT / "scripts/apk", out, "--key", KEY, *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def indexed(out: Path) -> Path:
    """A signed index, by the script that a release uses."""
    words = [ROOT / "scripts/repo_apk", out, KEY]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    return out


class Machine:
    """Alpine that has booted; it ends, with all its processes and mounts, when ``end`` is called or the tests die."""

    def __init__(self, root: Path) -> None:
        self.root = root
        inittab = (root / "etc/inittab").read_text().splitlines(keepends=True)
        (root / "etc/inittab").write_text("".join(line for line in inittab if not line.startswith("tty")))
        (root / "etc/network/interfaces").write_text(_INTERFACES)
        for level in ("boot", "sysinit"):
            for service in _LEFT_OUT:
                (root / "etc/runlevels" / level / service).unlink(missing_ok=True)
        namespaces = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
        self.process = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-ec", _START, "sh", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self.init = self._first_child()
            self._boot()
        except BaseException:
            self.end()
            raise

    def sh(self, script: str, code: int | None = 0, stdin: str = "", timeout_s: float = 120) -> str:
        """Run a script as root on the machine; what it says on both streams."""
        words = ["nsenter", "--target", self.init, "--all", "--root", "--wd=/", "sh", "-c", script]
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s, env=clean
        )
        said = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"{script}: exit {done.returncode}\n{said}\n{self.log()}"
        return said

    def log(self) -> str:
        path = self.root / "var/log/messages"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, script: str, patience_s: float = 30.0) -> str:
        """Run a script again and again until it succeeds; what it says then."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            said = self.sh(f"({script}) && echo DONE", code=None)
            if said.rstrip().endswith("DONE"):
                return said
            time.sleep(0.3)
        raise AssertionError(f"never: {script}\n{said}\n{self.log()}")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # --kill-child: process 1 dies with it, and all others with that one
        self.process.communicate(timeout=10)
        until = time.monotonic() + 10
        while Path(f"/sys/class/net/{LINK}").exists() and time.monotonic() < until:
            time.sleep(0.1)  # the other end is in the namespace, which the kernel takes down in its own time

    def _first_child(self) -> str:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        until = time.monotonic() + 10
        while time.monotonic() < until and self.process.poll() is None:
            found = children.read_text().split()
            if found:
                return found[0]
            time.sleep(0.02)
        raise AssertionError("the namespaces were not made")

    def _boot(self) -> None:
        for words in (
            ("link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", self.init),
            ("addr", "add", f"{OUTSIDE}/30", "dev", LINK),
            ("link", "set", LINK, "up"),
        ):
            subprocess.run(["ip", *words], check=True, capture_output=True)
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.until(
            "[ -s /run/openrc/softlevel ] && grep -qx default /run/openrc/softlevel && ! pgrep -x openrc", BOOT_S
        )
