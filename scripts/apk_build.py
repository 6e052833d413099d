# SPDX-License-Identifier: Apache-2.0
"""Signed Alpine packages and a signed repository from alpine/*/APKBUILD, built in an Alpine root; used by scripts/apk.

The root's own ash runs an APKBUILD's functions (scripts/abuild.ash), its own apk makes packages and indexes. The root
has no Python: one of this machine is lent to it, or the musl CPython of scripts/musl-python is put there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import alpine_root
from alpine_root import CACHE, ROOT, Missing

ARCHITECTURES = ("x86_64", "aarch64")  # the packages are pure Python: one build, a repository for each
TOOLS = ("gpep517==23", "installer==0.7.0", "setuptools==80.9.0", "wheel==0.45.1")
PACKAGES = ("py3-aiocoap", "fl-tiny")
# Debian's Python installs below /usr/local, Alpine's does not.
LENT = """import sysconfig
for asked in (sysconfig.get_path, sysconfig.get_paths):
    asked.__defaults__ = ("posix_prefix", *asked.__defaults__[1:])
"""


@dataclass(frozen=True, slots=True)
class Build:
    """What one run makes: where to, with which key, for which Python, of which version."""

    out: Path
    key: Path
    musl: Path | None
    site: Path | None
    python: str
    version: str | None


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/apk", description="Build signed .apk files and repositories.")
    parser.add_argument("out", type=Path, metavar="DIR", help="the repository: DIR/ARCH/*.apk, DIR/keys/*.rsa.pub")
    parser.add_argument("--key", type=Path, default=CACHE / "fl-tiny-test.rsa", help="RSA private key; made if absent")
    parser.add_argument("--musl", type=Path, metavar="DIR", help="a CPython by scripts/musl-python: build for that")
    parser.add_argument("--check", type=Path, metavar="SITE", help="run check() on it, with the packages in SITE")
    parser.add_argument("--python", default=alpine_root.PYTHON, help="Python of the Alpine that the packages are for")
    parser.add_argument("--version", help="another version than pyproject.toml's, such as 0.1.1, to try upgrades")
    parser.add_argument("--index-only", action="store_true", help="sign an index of the packages that lie in DIR")
    args = parser.parse_args()
    python = "3.11" if args.musl else args.python
    try:
        if args.index_only:
            make_key(args.key)
            index(args.out, args.key)
            return 0
        build(Build(args.out, args.key, args.musl, args.check, python, args.version))
    except (Missing, RuntimeError) as fault:
        print(f"apk: {fault}", file=sys.stderr)
        return 69
    return 0


def build(wanted: Build) -> None:
    """Build every package and the repositories. Raises: Missing, RuntimeError with the output of what failed."""
    make_key(wanted.key)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        root = alpine_root.copy(work / "root")
        binds = [*lend_python(root, wanted), (source_tree(work, wanted.version), "/source"), (work, "/work")]
        shutil.copy(wanted.key, work / "key.rsa")
        shutil.copy(public(wanted.key), root / "etc/apk/keys" / f"{wanted.key.name}.pub")
        (work / "apk").mkdir()
        for package in PACKAGES:
            one(root, package, binds, wanted)
        for arch in ARCHITECTURES:
            place = wanted.out / arch
            place.mkdir(parents=True, exist_ok=True)
            for apk in (work / "apk").iterdir():
                shutil.copy(apk, place)
    index(wanted.out, wanted.key)


def index(out: Path, key: Path) -> None:
    """A signed index of the packages of each architecture, and the public key beside them."""
    (out / "keys").mkdir(exist_ok=True)
    shutil.copy(public(key), out / "keys" / f"{key.name}.pub")
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        root = alpine_root.copy(Path(name) / "root")
        shutil.copy(public(key), root / "etc/apk/keys" / f"{key.name}.pub")
        shutil.copy(key, root / "key.rsa")
        for arch in sorted(path.name for path in out.iterdir() if path.name in ARCHITECTURES):
            script = (
                'cd /repository; apk mkndx --sign-key /key.rsa --output APKINDEX.tar.gz --pkgname-spec "$1" ./*.apk'
            )
            where = f"{arch}/${{name}}-${{version}}.apk"  # or apk would look for them below noarch/
            alpine_root.run(root, "sh", "-ec", script, "sh", where, binds=[(out.resolve() / arch, "/repository")])


def one(root: Path, package: str, binds: alpine_root.Binds, wanted: Build) -> None:
    """Run an APKBUILD in the root and assemble what it leaves."""
    trees = root / "out" / package
    trees.mkdir(parents=True)
    words = ["ash", "/source/scripts/abuild.ash", f"/source/alpine/{package}", f"/out/{package}"]
    env = {"SOURCE_DATE_EPOCH": epoch()}
    done = alpine_root.run(root, *words, *(["check"] if wanted.site else []), binds=binds, env=env)
    for line in (done.stdout + done.stderr).splitlines():
        if re.search(r"\d+ (passed|failed|skipped)", line):
            print(f"apk: {package}: check(): {line.strip(' =')}")
    if not wanted.site:
        print(
            f"apk: SKIPPED check() of {package}: it runs on the musl CPython, with --musl and --check", file=sys.stderr
        )
    for described in sorted(trees.glob(".*")):
        if described.is_file():
            assemble(root, trees / described.name[1:], described.read_text(), binds, wanted)


def assemble(root: Path, tree: Path, described: str, binds: alpine_root.Binds, wanted: Build) -> None:
    """One .apk file from a tree, what its APKBUILD says, and what abuild would add by looking at the tree."""
    info = [line for line in described.splitlines() if line.partition(":")[2]]
    for_python(tree, wanted.python)
    needed = [f"python3~{path.parent.name[6:]}" for path in tree.glob("usr/lib/python3*/site-packages")]
    if needed:
        info = [f"{line} {needed[0]}" if line.startswith("depends:") else line for line in info]
        info += [] if any(line.startswith("depends:") for line in info) else [f"depends:{needed[0]}"]
    fields = dict(line.split(":", 1) for line in info)
    commands = " ".join(f"cmd:{path.name}={fields['version']}" for path in sorted(tree.glob("usr/bin/*")))
    info += [f"provides:{commands}"] if commands else []
    if not any(tree.iterdir()) and fields["name"].endswith("-pyc"):
        return
    stamp = int(epoch())
    for path in [tree, *tree.rglob("*")]:
        os.utime(path, (stamp, stamp), follow_symlinks=False)
    words = ["apk", "mkpkg", "--sign-key", "/work/key.rsa", "--files", f"/{tree.relative_to(root)}"]
    words += ["--output", f"/work/apk/{fields['name']}-{fields['version']}.apk"]
    for line in info:
        words += ["--info", line]
    for script in sorted((ROOT / "alpine" / tree.parent.name).glob(f"{fields['name']}.*-*")):
        words += ["--script", f"{script.suffix[1:]}:/source/alpine/{tree.parent.name}/{script.name}"]
    alpine_root.run(root, *words, binds=binds, env={"SOURCE_DATE_EPOCH": epoch()})


def for_python(tree: Path, python: str) -> None:
    """Modules under the Python that they are for; bytecode of another version is of no use to it."""
    for found in list(tree.glob("usr/lib/python3.*")):
        if found.name == f"python{python}":
            continue
        for cache in list(found.rglob("__pycache__")):
            shutil.rmtree(cache)
        if any(path.is_file() for path in found.rglob("*")):
            found.rename(found.with_name(f"python{python}"))
        else:
            print(f"apk: SKIPPED {tree.name}: no Python {python} here compiles its bytecode", file=sys.stderr)
            shutil.rmtree(tree / "usr")


def lend_python(root: Path, wanted: Build) -> list[tuple[Path, str]]:
    """Make ``python3`` work in the root: the musl CPython, or this machine's with its own libc, through its loader."""
    tools = CACHE / "tools"
    if not tools.is_dir():
        _pip("--target", tools, *TOOLS)
    command = root / "usr/bin/python3"
    if wanted.musl:
        subprocess.run(["cp", "-a", f"{wanted.musl.resolve()}/usr/.", root / "usr"], check=True)
        (root / "usr/lib/python3.11/site-packages/tools.pth").write_text("/tools\n/site\n")
        return [(tools, "/tools"), (wanted.site.resolve() if wanted.site else tools, "/site")]
    own = Path(sys.base_prefix).resolve()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    loader = next(iter(sorted(Path("/lib64").glob("ld-linux-*.so.2"))), None)
    if loader is None:
        raise Missing("this machine's libc is not a glibc whose loader is known; give --musl")
    (root / "usr/lib/lent").mkdir()
    (root / "usr/lib/lent/sitecustomize.py").write_text(LENT)
    command.write_text(
        f"#!/bin/sh\nexport PYTHONHOME=/usr PYTHONPATH=/usr/lib/lent:/tools\n"
        f"exec /lent/libc/{loader.resolve().name} --argv0 /usr/bin/python3 --library-path /lent/libc:/lent/python/lib "
        f'/lent/python/bin/{name} "$@"\n'
    )
    command.chmod(0o755)
    libc = loader.resolve().parent
    return [(tools, "/tools"), (own, "/lent/python"), (libc, "/lent/libc"), (own / "lib" / name, f"/usr/lib/{name}")]


def source_tree(work: Path, version: str | None) -> Path:
    """The checkout's files that packages are made of, of another version when one is wanted."""
    source = work / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    if version:
        for path, key in ((source / "alpine/fl-tiny/APKBUILD", "pkgver="), (source / "pyproject.toml", "version = ")):
            quote = '"' if path.suffix else ""
            text = re.sub(rf"(?m)^{key}.*$", f"{key}{quote}{version}{quote}", path.read_text(), count=1)
            path.write_text(text)
    shutil.copy(sdist(), source / "alpine/py3-aiocoap")
    return source


def sdist() -> Path:
    """The sources that alpine/py3-aiocoap names; its APKBUILD holds their sum."""
    wanted = re.search(r"(?m)^pkgver=(.*)$", (ROOT / "alpine/py3-aiocoap/APKBUILD").read_text())
    assert wanted
    kept = CACHE / "sources" / f"aiocoap-{wanted[1]}.tar.gz"
    if not kept.exists():
        _pip_words = ("download", "--no-deps", "--no-binary", ":all:", "--dest", kept.parent, f"aiocoap=={wanted[1]}")
        _run_pip(*_pip_words)
    return kept


def make_key(key: Path) -> None:
    """An RSA key for tests and developers where none is given."""
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        print(f"apk: making {key}, a key that nobody trusts yet", file=sys.stderr)
        subprocess.run(["openssl", "genrsa", "-out", key, "4096"], check=True, capture_output=True)
        key.chmod(0o600)


def public(key: Path) -> Path:
    """The public half of a private key, beside it."""
    half = key.with_name(f"{key.name}.pub")
    if not half.exists():
        subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", half], check=True, capture_output=True)
    return half


def epoch() -> str:
    """SOURCE_DATE_EPOCH: given, or the time of the checkout's commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return given or subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True).strip()


def _pip(*words: str | Path) -> None:
    _run_pip("install", "--no-compile", *words)


def _run_pip(*words: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"pip failed: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
