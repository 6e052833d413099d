# SPDX-License-Identifier: Apache-2.0
"""Alpine: a signed repository, real apk, real init and OpenRC; with a CPython for musl a device trains there.

The grade of what passes here: installs on Alpine 3.23, runs on a CPython 3.11 that we built for its musl.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.fleet import MODEL, Fleet, cli

from . import debian, musl_python
from .alpine import INSIDE, KEY, OUTSIDE, ROOT, Machine, alpine_root, apk, build, indexed, pack, trust

STATE = "/var/lib/fl-tiny/device"
ABSENT = ("py3-numpy=2.3.5-r0", "py3-cbor2=5.7.1-r0", "py3-pynacl=1.6.1-r0", *musl_python.ABSENT)
STAND_IN = "#!/bin/sh\n# STUB for tests: no Python, a process that goes on until it is ended\nexec sleep 1000\n"


@pytest.fixture(scope="module", autouse=True)
def alpine() -> Path:
    needed = ("qemu-utils", "qemu-user-static", "e2fsprogs", "openssl", "iproute2")
    subprocess.run([ROOT / "scripts/setup", "tflite,gateway,dev", *needed], check=True, capture_output=True)
    try:
        return alpine_root.base()
    except alpine_root.Missing as missing:
        pytest.skip(f"no Alpine root: {missing}")


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A place below build/, on the disk: a root holds device nodes, which a noexec or nodev /tmp refuses."""
    place = alpine_root.CACHE / "tests"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def repository(work: Path) -> Path:
    build(work / "repository")
    return work / "repository"


@pytest.fixture(scope="module")
def stubs(work: Path) -> Path:
    """A repository of what Alpine has and this machine has not, under the names and versions of Alpine 3.23."""
    tree = work / "stub"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/python3").write_text(STAND_IN)
    (tree / "usr/bin/python3").chmod(0o755)
    tool = alpine_root.copy(work / "tool")
    pack(tool, work / "stubs", tree, "python3", "3.12.12-r0")
    for package in ABSENT:
        name, _, version = package.partition("=")
        pack(tool, work / "stubs", None, name, version)
    shutil.copytree(work / "stubs/x86_64", work / "stubs/aarch64")
    return indexed(work / "stubs")


@pytest.fixture
def root(work: Path, repository: Path, stubs: Path) -> Iterator[Path]:
    """An Alpine root that knows both repositories and trusts their key."""
    place = alpine_root.copy(work / "root")
    shutil.copytree(repository, place / "repository")
    shutil.copytree(stubs, place / "stubs")
    (place / "etc/apk/repositories").write_text("/repository\n/stubs\n")
    trust(place, repository / "keys" / f"{KEY.name}.pub")
    yield place
    shutil.rmtree(place)


def test_the_sums_of_an_apkbuild_are_those_of_its_files() -> None:
    for file in (ROOT / "alpine").glob("*/APKBUILD"):
        sums = dict(reversed(line.split()) for line in re.findall(r"^[0-9a-f]{128}  .*$", file.read_text(), re.M))
        source = re.search(r'(?ms)^source="(.*?)"', file.read_text())
        assert source
        local = [name for name in source[1].split() if "$" not in name]
        assert set(local) <= set(sums)
        for name in local:
            assert hashlib.sha512((file.parent / name).read_bytes()).hexdigest() == sums[name], name


def test_the_apkbuild_is_of_the_version_that_the_checkout_has() -> None:
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert version
    assert f"pkgver={version[1]}\n" in (ROOT / "alpine/fl-tiny/APKBUILD").read_text()


def test_alpines_own_shell_reads_every_script(alpine: Path) -> None:
    scripts = [path for path in (ROOT / "alpine").rglob("*") if path.is_file() and path.suffix != ".confd"]
    assert len(scripts) >= 8
    for path in [*scripts, ROOT / "scripts/abuild.ash"]:
        alpine_root.run(alpine, "ash", "-n", f"/source/{path.relative_to(ROOT)}", binds=[(ROOT, "/source")])


def test_both_architectures_have_the_same_signed_packages(repository: Path) -> None:
    names = {arch: sorted(path.name for path in (repository / arch).iterdir()) for arch in ("x86_64", "aarch64")}
    assert names["x86_64"] == names["aarch64"]
    for part in ("fl-tiny", "fl-tiny-openrc", "fl-tiny-gateway", "fl-tiny-gateway-openrc", "fl-tiny-doc"):
        assert f"{part}-0.1.0-r0.apk" in names["x86_64"]
    assert (repository / "x86_64/fl-tiny-0.1.0-r0.apk").stat().st_size < 1_500_000


def test_building_twice_gives_the_same_bytes(work: Path, repository: Path) -> None:
    build(work / "again")
    for path in (repository / "x86_64").glob("fl-tiny*.apk"):
        # An RSA signature by the same key over the same bytes is the same.
        assert path.read_bytes() == (work / "again/x86_64" / path.name).read_bytes(), path.name


def test_apk_refuses_the_repository_without_its_key(root: Path) -> None:
    (root / "etc/apk/keys" / f"{KEY.name}.pub").unlink()
    said = apk(root, "add", "fl-tiny", code=None)
    assert "UNTRUSTED" in said and "fl-tiny (no such package)" in said
    assert "fl-tiny" not in apk(root, "info")


def test_apk_refuses_a_package_that_was_changed(root: Path) -> None:
    path = root / "repository/x86_64/fl-tiny-0.1.0-r0.apk"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    apk(root, "add", "fl-tiny", code=None)
    assert "fl-tiny\n" not in apk(root, "info")
    assert not (root / "usr/bin/fl-tiny").exists()


def test_installing_resolves_dependencies_and_makes_an_owned_state(root: Path) -> None:
    said = apk(root, "add", "fl-tiny")
    for name in ("python3", "py3-numpy", "py3-aiocoap", "fl-tiny-openrc"):
        assert f"Installing {name} (" in said
    assert "Installing fl-tiny-gateway" not in said
    assert (root / "usr/lib/python3.12/site-packages/fl_tiny/lab/data/watch.tflite").exists()
    shown = alpine_root.run(root, "stat", "-c", "%U:%G %a", STATE).stdout
    assert shown == "fl-tiny:fl-tiny 750\n"
    shown = alpine_root.run(root, "grep", "fl-tiny", "/etc/passwd").stdout
    assert shown.rstrip().endswith(":/sbin/nologin")
    assert "STUB" in alpine_root.run(root, "apk", "info", "-d", "py3-numpy").stdout


def test_the_gateways_package_brings_its_service_and_its_pages_libraries(root: Path) -> None:
    said = apk(root, "add", "fl-tiny-gateway")
    for name in ("fl-tiny", "fl-tiny-gateway-openrc", "py3-starlette", "uvicorn"):
        assert f"Installing {name} (" in said
    shown = alpine_root.run(root, "stat", "-c", "%U %a", "/var/lib/fl-tiny/gateway").stdout
    assert shown == "fl-tiny 750\n"


@pytest.mark.skipif(not shutil.which("apt-ftparchive"), reason="apt-ftparchive (apt-utils) is not installed")
def test_one_folder_of_a_release_is_signed_for_apt_and_for_apk(work: Path, repository: Path, root: Path) -> None:
    release = root / "release"
    shutil.copytree(repository, release)
    shutil.rmtree(release / "keys")
    for path in [*release.glob("*/APKINDEX.tar.gz"), root / "etc/apk/keys" / f"{KEY.name}.pub"]:
        path.unlink()
    for path in debian.build_debs().glob("*_all.deb"):
        shutil.copy(path, release)
    subprocess.run([ROOT / "scripts/repo", release, debian.openpgp_key(work / "keys"), KEY], check=True, timeout=120)
    subprocess.run(["gpgv", "--keyring", release / "fl-tiny.gpg", release / "InRelease"], check=True, timeout=60)
    assert "Package: fl-tiny-gateway" in (release / "Packages").read_text()
    (root / "etc/apk/repositories").write_text("/release\n/stubs\n")
    trust(root, release / "keys" / f"{KEY.name}.pub")
    assert "Installing fl-tiny-gateway (" in apk(root, "add", "fl-tiny-gateway")


def test_an_upgrade_and_a_removal_leave_state_and_settings(work: Path, root: Path) -> None:
    build(work / "newer", "--version", "0.1.1")
    apk(root, "add", "fl-tiny")
    kept = root / STATE.lstrip("/") / "state.db"
    kept.write_bytes(b"what a board has learnt")
    settings = root / "etc/conf.d/fl-tiny-device"
    settings.write_text("directory=/elsewhere\n")
    shutil.copytree(work / "newer", root / "repository", dirs_exist_ok=True)
    said = apk(root, "upgrade")
    assert "Upgrading fl-tiny (0.1.0-r0 -> 0.1.1-r0)" in said
    assert (root / "usr/lib/python3.12/site-packages/fl_tiny-0.1.1.dist-info").is_dir()
    assert settings.read_text() == "directory=/elsewhere\n"
    said = apk(root, "del", "fl-tiny")
    assert "Purging fl-tiny (0.1.1-r0)" in said
    assert kept.read_bytes() == b"what a board has learnt"
    assert not (root / "usr/bin/fl-tiny").exists() and not (root / "etc/init.d/fl-tiny-device").exists()


def test_openrc_starts_watches_and_stops_the_service(root: Path) -> None:
    apk(root, "add", "fl-tiny")
    machine = Machine(root)
    try:
        machine.sh("rc-update add fl-tiny-device default")
        said = machine.sh("rc-service fl-tiny-device start 2>&1", code=1)
        assert "not enrolled" in said and "rc-service fl-tiny-device enroll" in said
        assert "stopped" in machine.sh("rc-service fl-tiny-device status 2>&1", code=3)
        machine.sh(f"echo STUB > {STATE}/state.db; echo 'respawn_delay=1' >> /etc/conf.d/fl-tiny-device")
        machine.sh("rc-service fl-tiny-device start")
        running = machine.until("pgrep -u fl-tiny -f 'sleep 1000'").split()[0]
        status = machine.sh(f"cat /proc/{running}/status")
        assert re.search(r"NoNewPrivs:\s+1", status) and re.search(r"CapEff:\s+0+\n", status)
        assert "started" in machine.sh("rc-service fl-tiny-device status 2>&1")
        machine.sh(f"kill -9 {running}")
        again = machine.until(f"pgrep -u fl-tiny -f 'sleep 1000' | grep -vx {running}").split()[0]
        assert again != running
        machine.sh("apk del fl-tiny")
        machine.until("! pgrep -u fl-tiny")
        machine.sh("rc-status default | grep fl-tiny", code=1)
    finally:
        machine.end()


def test_the_service_comes_up_with_the_machine(root: Path) -> None:
    apk(root, "add", "fl-tiny")
    (root / STATE.lstrip("/") / "state.db").write_text("STUB")
    alpine_root.run(root, "rc-update", "add", "fl-tiny-device", "default")
    machine = Machine(root)
    try:
        machine.until("pgrep -u fl-tiny -f 'sleep 1000'")
        assert "started" in machine.sh("rc-service fl-tiny-device status 2>&1")
    finally:
        machine.end()


@pytest.fixture(scope="module")
def musl(request: pytest.FixtureRequest) -> Path:
    """The CPython for musl: built once, since it takes minutes."""
    if not musl_python.is_built() and "not full" in request.config.getoption("-m"):
        pytest.skip(f"no CPython for musl yet: scripts/musl-python {musl_python.PYTHON.relative_to(ROOT)} builds it")
    return musl_python.build()


@pytest.fixture(scope="module")
def musl_repositories(work: Path, musl: Path) -> Path:
    return musl_python.repositories(work)


@pytest.fixture
def musl_root(work: Path, musl_repositories: Path) -> Iterator[Path]:
    """An Alpine root in which the packages can run."""
    place = musl_python.root(work / "musl-root", musl_repositories)
    yield place
    shutil.rmtree(place)


def test_a_device_on_alpine_trains_in_a_round_and_is_removed(work: Path, musl_root: Path) -> None:
    machine = Machine(musl_root)
    fleet = Fleet(work)
    try:
        gateway = fleet.gateway("--clients", 1, "--interval", 3600, bind=f"{OUTSIDE}:0")
        machine.sh("apk add fl-tiny && rc-update add fl-tiny-device default")
        assert "not enrolled" in machine.sh("rc-service fl-tiny-device start 2>&1", code=1)
        code = cli("gateway", "pair", fleet.gw)["code"]
        machine.sh("rc-service fl-tiny-device enroll", stdin=code)
        assert machine.sh(f"stat -c %U:%a {STATE}/secret/psk") == "fl-tiny:600\n"
        shutil.copy(fleet.data("alpine", 60, 0), musl_root / "var/tmp/samples.npz")
        added = machine.sh(f"fl-tiny samples add {STATE} --data /var/tmp/samples.npz --json 2>/dev/null")
        assert json.loads(added)["added"] == 60
        machine.sh("rc-service fl-tiny-device start")
        gateway.event("round", state="published", updates=1)
        published = cli("gateway", "rounds", fleet.gw)
        assert published[-1]["received"] == 1
        machine.until(f"fl-tiny device status {STATE} --json 2>/dev/null | grep -q '\"rounds\": 1'")
        assert "started" in machine.sh("rc-service fl-tiny-device status")
        resident = machine.sh("awk '/VmRSS/ {print $2}' /proc/$(pgrep -u fl-tiny -f 'device run')/status")
        installed = machine.sh("apk info -s fl-tiny py3-aiocoap")
        print(f"idle agent: {resident.strip()} KiB resident; {installed}")
        assert int(resident) < 32_000
        machine.end()
        machine = Machine(musl_root)  # as after a power cut
        machine.until("rc-service fl-tiny-device status | grep started")
        machine.sh("apk del fl-tiny")
        machine.until("! pgrep -u fl-tiny")
        machine.sh(f"[ ! -e /usr/bin/fl-tiny ] && [ -s {STATE}/state.db ]")
    finally:
        fleet.end()
        machine.end()


def test_a_gateway_on_alpine_serves_a_round_to_a_device_outside(work: Path, musl_root: Path) -> None:
    state = "/var/lib/fl-tiny/gateway"
    machine = Machine(musl_root)
    fleet = Fleet(work / "outside")
    try:
        machine.sh("apk add fl-tiny-gateway && rc-update add fl-tiny-gateway default")
        assert "no fleet" in machine.sh("rc-service fl-tiny-gateway start 2>&1", code=1)
        shutil.copy(MODEL, musl_root / "var/tmp/model.tflite")
        machine.sh(f"fl-tiny gateway init {state} --model /var/tmp/model.tflite")
        machine.sh("rc-service fl-tiny-gateway start")
        machine.until("grep 'server: listening' /var/log/messages")
        code = json.loads(machine.sh(f"fl-tiny gateway pair {state} --json 2>/dev/null"))["code"]
        device = work / "outside/device"
        cli("device", "enroll", device, "--code", code, "--gateway", INSIDE)
        cli("samples", "add", device, "--data", fleet.data("outside", 60, 0))
        assert fleet.run(device, "--rounds", 1).wait() == 0
        rounds = json.loads(machine.sh(f"fl-tiny gateway rounds {state} --json 2>/dev/null"))
        assert rounds[-1]["received"] == 1
    finally:
        fleet.end()
        machine.end()


@pytest.mark.full
def test_the_fast_tests_pass_on_musl(work: Path, musl: Path) -> None:
    said = build(work / "checked", "--musl", musl, "--check", musl_python.site())
    passed = re.search(r"fl-tiny: check\(\): (\d+) passed", said)
    assert passed and int(passed[1]) > 300, said
    assert (work / "checked/x86_64/fl-tiny-pyc-0.1.0-r0.apk").exists()


def test_the_packages_install_on_aarch64_under_qemu(work: Path, repository: Path, stubs: Path) -> None:
    try:
        alpine_root.register_qemu()
        place = alpine_root.copy(work / "aarch64-root", "aarch64")
    except alpine_root.Missing as missing:
        pytest.skip(f"no aarch64 here: {missing}")
    trust(place, repository / "keys" / f"{KEY.name}.pub")
    binds = [(repository, "/repository"), (stubs, "/stubs")]
    (place / "etc/apk/repositories").write_text("/repository\n/stubs\n")
    assert apk(place, "--print-arch") == "aarch64\n"
    assert "Installing fl-tiny-openrc (" in apk(place, "add", "fl-tiny", binds=binds)
    assert alpine_root.run(place, "stat", "-c", "%U %a", STATE).stdout == "fl-tiny 750\n"
    alpine_root.run(place, "rc-update", "add", "fl-tiny-device", "default")
    said = alpine_root.run(place, "rc-service", "fl-tiny-device", "describe")
    assert "Enrol this board" in said.stdout + said.stderr


def test_an_images_overlay_is_the_same_bytes_twice_and_starts_what_it_needs(work: Path, alpine: Path) -> None:
    made = work / "overlay"
    made.mkdir()
    binds = [(ROOT / "alpine", "/alpine"), (made, "/made")]
    script = "cd /made && ash /alpine/genapkovl-fl-tiny.sh board && sha256sum board.apkovl.tar.gz"
    place = alpine_root.copy(work / "overlay-root")
    sums = {
        alpine_root.run(place, "sh", "-ec", script, binds=binds, env={"TZ": zone}).stdout for zone in ("UTC", "X-5")
    }
    assert len(sums) == 1
    with tarfile.open(made / "board.apkovl.tar.gz") as overlay:
        found = {member.name: member for member in overlay.getmembers()}
        world = overlay.extractfile("etc/apk/world")
        assert world and "fl-tiny" in world.read().decode().split()
    assert "etc/.default_boot_services" in found and list(found) == sorted(found)
    assert {(member.uid, member.gid, member.mtime) for member in found.values()} == {(0, 0, 0)}
    for service, level in (("fl-tiny-data", "boot"), ("networking", "boot"), ("fl-tiny-device", "default")):
        assert found[f"etc/runlevels/{level}/{service}"].linkname == f"/etc/init.d/{service}"
    assert found["etc/init.d/fl-tiny-data"].mode == 0o755


@pytest.mark.parametrize(("arch", "rests_on"), [("aarch64", "rpi"), ("x86_64", "standard")])
def test_mkimage_finds_a_profile_for_both_architectures(alpine: Path, arch: str, rests_on: str) -> None:
    script = f"profile_{rests_on}() {{ apks=alpine-base; }}; ARCH={arch}; . /alpine/mkimg.fl_tiny.sh; profile_fl_tiny; "
    script += 'echo "$apks|$apkovl|$hostname|$arch"; ls "/alpine/$apkovl"'
    said = alpine_root.run(alpine, "ash", "-ec", script, binds=[(ROOT / "alpine", "/alpine")]).stdout
    apks, _, hostname, arches = said.splitlines()[0].split("|")
    assert {"alpine-base", "fl-tiny", "e2fsprogs"} <= set(apks.split()) and hostname == "fl-tiny" and arch in arches
    # Where mkimage looks for profiles: sed -n 's/^profile_\(.*\)() {$/\1/p' mkimg.*.sh
    assert re.search(r"(?m)^profile_fl_tiny\(\) \{$", (ROOT / "alpine/mkimg.fl_tiny.sh").read_text())


@pytest.fixture
def disk(work: Path) -> Iterator[Path]:
    """An empty block device of 32 MiB."""
    image = work / "data.img"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    yield Path(done.stdout.strip())
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)
    image.unlink()


def test_an_image_keeps_its_state_on_a_partition_and_touches_none_that_is_used(root: Path, disk: Path) -> None:
    shutil.copy(ROOT / "alpine/fl-tiny-data.initd", root / "etc/init.d/fl-tiny-data")
    (root / "etc/init.d/fl-tiny-data").chmod(0o755)
    (root / "etc/conf.d/fl-tiny-data").write_text("data_device=/dev/data\n")
    machine = Machine(root)
    try:
        machine.sh(f"mknod /dev/data b 7 {disk.name.removeprefix('loop')}")
        said = machine.sh("rc-service fl-tiny-data start 2>&1", code=1)
        assert "The package fl-tiny is not installed" in said
        machine.sh("apk add fl-tiny && printf used | dd of=/dev/data bs=1 seek=4096 conv=notrunc")
        said = machine.sh("rc-service fl-tiny-data start 2>&1", code=1)
        assert "holds data" in said
        assert machine.sh("dd if=/dev/data bs=1 skip=4096 count=4 2>/dev/null") == "used"
        machine.sh("dd if=/dev/zero of=/dev/data bs=4k count=4 conv=notrunc; rc-service fl-tiny-data start")
        assert "/var/lib/fl-tiny ext4" in machine.sh("cat /proc/mounts")
        assert machine.sh(f"stat -c %U:%a {STATE}") == "fl-tiny:750\n"
        machine.sh(f"echo kept > {STATE}/mark; rc-service fl-tiny-data stop; rc-service fl-tiny-data start")
        assert machine.sh(f"cat {STATE}/mark") == "kept\n"
        machine.sh("rc-service fl-tiny-data stop")
    finally:
        machine.end()
