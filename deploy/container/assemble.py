# SPDX-License-Identifier: Apache-2.0
"""The files of an image for one architecture, put together from Debian's packages and wheels without running them.

usage: assemble.py ARCH device|gateway OUT      ARCH as in TARGETARCH; makes OUT/system and OUT/state
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DEBIAN = {"amd64": "amd64", "arm64": "arm64", "arm": "armhf"}
WHEELS = {"amd64": "x86_64", "arm64": "aarch64", "arm": "armv7l"}
GLIBC = ("2_34", "2_28", "2_17", "2014")  # manylinux tags that Debian 12's glibc 2.36 satisfies
PACKAGES = ("python3-minimal", "libpython3-stdlib", "python3-numpy", "python3-cbor2", "python3-nacl", "libssl3")
ROLE_PACKAGES = {"device": ("python3-pil", "libstdc++6"), "gateway": ()}
NOT_NEEDED = {  # what the packages name for their maintainer scripts, which do not run here
    "dpkg", "tar", "debconf", "perl-base", "media-types", "mailcap", "readline-common", "python3-pkg-resources",
    "libdb5.3", "libreadline8", "libtinfo6", "libncursesw6", "libtirpc3", "libtirpc-common", "libnsl2",
    "mime-support", "perl", "perl-modules-5.36", "libperl5.36", "libgdbm6", "libgdbm-compat4", "python3-cffi",
    "libraqm0", "libharfbuzz0b", "libfribidi0", "libgraphite2-3", "libfreetype6", "libpng16-16", "libbrotli1",
    "libglib2.0-0", "libmount1", "libblkid1", "libselinux1", "libpcre2-8-0", "libacl1",  # all for Pillow's fonts
    "libgssapi-krb5-2", "libkrb5-3", "libkrb5support0", "libk5crypto3", "libkeyutils1", "libcom-err2",
}  # fmt: skip
PRUNED = (
    "usr/share", "usr/include", "usr/sbin", "usr/games", "var", "usr/lib/*/gconv", "usr/lib/*/perl*", "usr/lib/valgrind",
    "usr/lib/python3/dist-packages/PIL/_imagingft*", "usr/lib/python3.*/lib2to3", "usr/lib/python3*/pydoc*", "usr/lib/python3*/turtle*", "usr/lib/python3*/ensurepip",
    "usr/lib/python3*/sqlite3/test", "usr/lib/python3*/lib-dynload/_test*", "usr/lib/python3*/lib-dynload/_curses*",
    "usr/lib/python3*/lib-dynload/readline*", "usr/lib/python3*/lib-dynload/nis*", "usr/lib/python3*/lib-dynload/_dbm*",
    "usr/lib/python3/dist-packages/numpy/**/tests", "usr/lib/python3/dist-packages/numpy/f2py",
    "usr/lib/python3/dist-packages/numpy/distutils", "usr/lib/python3.*/dist-packages",  # Debian's numpy is there twice
    "usr/lib/python3/dist-packages/numpy/core/include", "usr/lib/python3/dist-packages/numpy/**/*.pyi",
    "usr/lib/python3/dist-packages/bin", "usr/lib/python3*/**/*.pyc", "usr/lib/**/*.a", "usr/bin/*",
)  # fmt: skip
MERGED = ("bin", "sbin", "lib", "lib32", "lib64")
USER = "fl-tiny:x:9470:9470::/var/lib/fl-tiny:/usr/sbin/nologin\n"
SCRIPT = "#!/usr/bin/python3\nfrom fl_tiny.cli.main import entry\n\nentry()\n"


def main(arch: str, role: str, out: Path) -> None:
    """Make the image's files."""
    system, state = out / "system", out / "state"
    state.mkdir(parents=True)
    for name in MERGED:
        (system / "usr" / name).mkdir(parents=True)
        (system / name).symlink_to(f"usr/{name}")
    for package in _download(DEBIAN[arch], (*PACKAGES, *ROLE_PACKAGES[role]), out / "apt"):
        _unpack(package, system)
    for pattern in PRUNED:
        for path in sorted(system.glob(pattern), reverse=True):
            if not (path.parent.name == "bin" and path.name.startswith("python3")):
                _remove(path)
    _choose_blas(system)
    python = next(path.name for path in (system / "usr/lib").glob("python3.*"))
    _install(system, WHEELS[arch], role, python.removeprefix("python"))
    _settle(system)
    _compile(system, python)


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def _download(arch: str, packages: tuple[str, ...], work: Path) -> list[Path]:
    """The packages and what they need, for an empty machine of this architecture; apt's own sources and keys."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    apt = ["apt-get", "-q", f"-oAPT::Architecture={arch}", f"-oAPT::Architectures={arch}", "-oAPT::Sandbox::User=root"]
    apt += [f"-oDir::State={work}/state", f"-oDir::State::status={work}/status", f"-oDir::Cache={work}/cache"]
    apt += ["-oDebug::NoLocking=1", "-oAPT::Install-Recommends=0", "-oAcquire::Languages=none"]
    _run(*apt, "update")
    _run(*apt, "install", "--download-only", "--yes", *packages)
    found = sorted((work / "cache/archives").glob("*.deb"))
    return [path for path in found if path.name.split("_")[0] not in NOT_NEEDED]


def _unpack(package: Path, system: Path) -> None:
    """A package's files; dpkg-deb -x would put a folder in the place of the link /lib."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", system], stdin=tar.stdout, check=True)
    if tar.returncode:
        raise SystemExit(f"cannot unpack {package}")


def _choose_blas(system: Path) -> None:
    """The links that update-alternatives would make."""
    for library in system.glob("usr/lib/*/*/lib*.so.3"):
        if library.parent.name in ("blas", "lapack"):
            (library.parents[1] / library.name).symlink_to(f"{library.parent.name}/{library.name}")


def _install(system: Path, machine: str, role: str, version: str) -> None:
    site = system / "usr/lib/python3/dist-packages"
    options = ["--no-deps", "--no-compile", "--no-cache-dir", "--root-user-action=ignore", "--target", site]
    tags = [f"--platform=manylinux{'' if glibc == '2014' else '_'}{glibc}_{machine}" for glibc in GLIBC]
    tags += ["--implementation=cp", f"--python-version={version}", "--only-binary=:all:"]
    pinned, builder = ("pip3", "install", "-q", "--require-hashes"), system.parent / "builder"
    _run(*pinned, *options, *tags, "-r", HERE / f"{role}.txt")
    _run(*pinned, "--no-deps", "--target", builder, "--only-binary=:all:", "-r", HERE / "build.txt")
    _run("env", f"PYTHONPATH={builder}", "pip3", "install", "-q", *options, "--no-build-isolation", HERE)
    shutil.rmtree(site / "bin", ignore_errors=True)


def _settle(system: Path) -> None:
    """What a package's scripts and an installer would have written."""
    etc = system / "etc"
    shutil.rmtree(etc, ignore_errors=True)
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0::/:/usr/sbin/nologin\n" + USER)
    (etc / "group").write_text("root:x:0:\nfl-tiny:x:9470:\n")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")
    command = system / "usr/bin/fl-tiny"
    command.write_text(SCRIPT)
    command.chmod(0o755)
    for name in ("dev", "proc", "sys", "run", "tmp", "var/lib"):  # the state folder comes with its owner
        (system / name).mkdir(parents=True, exist_ok=True)
    (system / "tmp").chmod(0o1777)


def _compile(system: Path, python: str) -> None:
    """Byte code beside the sources, as the root is read-only; only by the same Python, whose format it is."""
    if python != f"python{sys.version_info[0]}.{sys.version_info[1]}":
        print(f"SKIPPED byte code: the image has {python}, the builder another", file=sys.stderr)
        return
    where = [system / "usr/lib" / python, system / "usr/lib/python3/dist-packages"]
    _run(sys.executable, "-m", "compileall", "-q", "-s", system, "--invalidation-mode=unchecked-hash", *where)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
