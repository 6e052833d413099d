# SPDX-License-Identifier: Apache-2.0
"""`image verify` on images with a disk and filesystems of the builder's own making: whole ones pass, hurt ones fail.

What is in them is made up, as little as passes; tests/boot verifies images that boot.
"""

from __future__ import annotations

import gzip
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
from e2e.fleet import COMMAND, cli

from fl_tiny.image import boards, build, disk, evidence, firmware, plan, verify

RECIPES = Path(__file__).parents[2] / "image"
NAME = "rpi-4"
BOARD, BASE = boards.load_board(RECIPES, NAME), boards.load_base(RECIPES)
TREE = struct.pack(">LL", 0xD00DFEED, 64) + bytes(56)
EFI = b"MZ" + bytes(58) + struct.pack("<L", 64) + b"PE\0\0" + struct.pack("<H", 0xAA64) + bytes(64)
LINUX = gzip.compress(bytes(56) + b"ARM\x64" + bytes(64))
TOOLS = ("mkfs.vfat", "mcopy", "mdel", "mke2fs", "mksquashfs", "unsquashfs", "genimage")
_absent = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
pytestmark = pytest.mark.skipif(bool(_absent), reason=f"{', '.join(_absent)} missing")


def put(folder: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


REQUIRED = (  # what a slot cannot boot, update or be a device without; a list of its own, not verify's
    "boot/vmlinuz", "boot/initrd.img", "boot/config-6.1", "usr/bin/fl-tiny", "usr/lib/fl-tiny/fl_tiny/__init__.py",
    "usr/lib/systemd/system/fl-tiny-device.service", "usr/lib/systemd/system/board-machine-id.service", "usr/bin/rauc",
    "etc/fl-tiny-release", "etc/machine-id", "usr/lib/clock-epoch",
)  # fmt: skip


@pytest.mark.parametrize("path", REQUIRED)
def test_nothing_that_a_slot_must_hold_is_left_unlooked_at(path: str) -> None:
    assert any(fnmatch(path, pattern) for pattern in verify.NEEDED)


def slot_files() -> dict[str, bytes | str]:
    """As little as a slot must hold."""
    modules = "usr/lib/modules/6.1/"
    patterns = BASE.kernel.modules + BOARD.kernel.modules
    return {
        **dict.fromkeys(REQUIRED, ""),
        **{f"{modules}kernel/{re.sub(r'.!t.', 'a', each).replace('*', 'x')}.ko": "" for each in patterns},
        modules + "modules.builtin": "".join(f"kernel/{n}.ko\n" for n in BASE.kernel.initrd + BOARD.kernel.initrd),
        "boot/vmlinuz": LINUX,
        "boot/config-6.1": "".join(f"CONFIG_{name}=m\n" for name in plan.options(BOARD, BASE)),
        "etc/shadow": "root:*:19000:0:99999:7:::\nfl-tiny:!:19000::::::\n",
        "etc/fl-tiny-release": f"COMPATIBLE={BOARD.compatible}\nRELEASE=2026.1\n",
        "usr/share/doc/firmware-brcm80211/copyright": "some",
        **{f"usr/lib/linux-image-6.1/{tree}": TREE for tree in BOARD.kernel.device_trees},
    }


def squashfs(folder: Path, files: dict[str, bytes | str]) -> Path:
    put(folder / "slot", files)
    made = folder / "slot.squashfs"
    subprocess.run(
        ["mksquashfs", folder / "slot", made, "-noappend", "-quiet", "-all-root"], check=True, capture_output=True
    )
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image in which nothing is missing."""
    folder = tmp_path_factory.mktemp("image")
    steps = plan.plan(BOARD, BASE, plan.Release("1", "1"))
    _, _, boot, data, table, _ = steps
    places = build.Places(RECIPES, folder, folder / "work", 1_700_000_000, lambda said: None, folder / "lock")
    tree = folder / "fat"
    put(tree, {"EFI/BOOT/BOOTAA64.EFI": EFI, **{target: TREE for _, target in boot.from_slot}})
    for _, target in boot.files:
        start = b"\x7fELF" if target.endswith(".elf") else b"\0\0\0\x14"
        put(tree, {target: start + bytes(2000)})
    for template, target in boot.templates:
        put(tree, {target: (RECIPES / "templates" / template).read_bytes()})
        build.fill(tree / target, dict(boot.words))
    shutil.copytree(RECIPES / "templates/fl-state", tree / "fl-state")
    build.make_fat(boot, tree, folder / "boot.vfat", 1_700_000_000)
    parts = {
        "boot": folder / "boot.vfat",
        "slot-a": squashfs(folder, slot_files()),
        "data": build.make_data(data, places),
    }
    build.make_disk(table, parts, folder / "board.img", places)
    return folder / "board.img"


def missing(image: Path) -> dict[str, tuple[str, ...]]:
    """What is missing, by check."""
    return {each.check: each.missing for each in verify.verify(image, BOARD, BASE) if each.missing}


def copy(image: Path, folder: Path) -> Path:
    made = folder / "hurt.img"
    subprocess.run(["cp", "--sparse=always", image, made], check=True)
    return made


def test_an_image_with_everything_passes_and_can_be_kept_as_a_record(whole: Path, tmp_path: Path) -> None:
    kept = tmp_path / "rpi-4.json"
    found = cli("image", "verify", whole, "--record", kept)
    assert found == cli("image", "verify", whole, "--board", NAME)
    assert {row["check"] for row in found} >= {
        "partitions",
        "boot files",
        "firmware",
        "slot",
        "kernel options",
        "modules",
    }
    assert all(row["state"] == "ok" and row["looked_at"] for row in found), found
    record = evidence.read(kept)
    assert (record.board, record.release, record.kernel) == (NAME, "2026.1", "6.1")
    assert record.image_sha256 == disk.sha256(whole) and record.image_mib == BOARD.disk.size_mib
    assert evidence.shown(record, tmp_path) == "builds"


def on_fat(path: str, content: bytes | str | None) -> Callable[[Path, Path], None]:
    """A file of FAT changed, or taken away."""

    def hurt(image: Path, folder: Path) -> None:
        where = ("-i", f"{image}@@{plan.ALIGN_MIB}M")
        if content is None:
            subprocess.run(["mdel", *where, f"::{path}"], check=True)
            return
        put(folder, {"new": content})
        subprocess.run(["mcopy", "-o", *where, folder / "new", f"::{path}"], check=True)

    return hurt


def at(part: str, offset: int, content: bytes) -> Callable[[Path, Path], None]:
    """Bytes of a partition changed; of the disk, when none is named."""

    def hurt(image: Path, folder: Path) -> None:
        with image.open("r+b") as file:
            file.seek(offset + (disk.read_table(image).parts[part].start if part else 0))
            file.write(content)

    return hurt


def in_slot(path: str, content: bytes | str | None) -> Callable[[Path, Path], None]:
    """A slot whose file is another one, or is not there."""

    def hurt(image: Path, folder: Path) -> None:
        files = {**slot_files(), path: content or ""}
        if content is None:
            del files[path]
        at("slot-a", 0, squashfs(folder, files).read_bytes())(image, folder)

    return hurt


CONFIG = (RECIPES / "templates/config-rpi.txt").read_text()
LESS = slot_files()["boot/config-6.1"]
TREE_NAME = BOARD.kernel.device_trees[0]
HURTS = {
    "another disk's signature": (at("", 440, b"abcd"), "partitions", "disk signature"),
    "FAT16's type": (at("", 446 + 4, b"\x06"), "partitions", "type 0xc"),
    "another label of FAT": (at("boot", 71, b"NO NAME    "), "filesystems", "FL-TINY"),
    "no ext4": (at("data", 1024, bytes(1024)), "filesystems", "fl-data"),
    "no state of slots": (on_fat("fl-state/tried/env", None), "boot files", "fl-state/tried/env"),
    "GRUB's menu of another board": (on_fat("grub/grub.cfg", "root=PARTUUID=00000000-02"), "boot files", "PARTUUID"),
    "a GRUB for x86": (on_fat("EFI/BOOT/BOOTAA64.EFI", EFI.replace(b"\x64\xaa", b"\x64\x86")), "firmware", "BOOTAA64"),
    "an empty start4.elf": (on_fat("start4.elf", b""), "firmware", "start4.elf"),
    "no config.txt": (on_fat("config.txt", None), "firmware", "arm_64bit=1"),
    "a kernel that is not there": (on_fat("config.txt", CONFIG + "kernel=kernel8.img\n"), "firmware", "kernel8.img"),
    "32 bits for this model alone": (on_fat("config.txt", CONFIG + "[pi4]\narm_64bit=0\n"), "firmware", "arm_64bit=1"),
    "half a device tree": (on_fat(TREE_NAME.split("/")[1], TREE[:40]), "firmware", "a device tree"),
    "a device tree of another kernel": (
        on_fat(f"dtb/{TREE_NAME}", TREE[:-1] + b"\1"), "device trees", f"dtb/{TREE_NAME} on FAT",
    ),
    "no slot": (at("slot-a", 0, bytes(4096)), "slot", "no squashfs"),
    "no tree in the slot": (in_slot(f"usr/lib/linux-image-6.1/{TREE_NAME}", None), "device trees", "in the slot"),
    "no service": (in_slot("usr/lib/systemd/system/fl-tiny-device.service", None), "slot", "fl-tiny-device.service"),
    "no Wi-Fi firmware": (in_slot("usr/share/doc/firmware-brcm80211/copyright", None), "slot", "firmware-brcm80211"),
    "a kernel for x86": (in_slot("boot/vmlinuz", b"MZ" + bytes(600)), "slot", "a Linux for arm64"),
    "a kernel cut short": (in_slot("boot/vmlinuz", LINUX[:20]), "slot", "a Linux for arm64"),
    "a password": (in_slot("etc/shadow", "root:*:1::::::\npi:$y$abc:1::::::\n"), "slot", "but pi"),
    "an open root": (in_slot("etc/shadow", "root::1::::::\n"), "slot", "no password"),
    "a host key for all": (in_slot("etc/ssh/ssh_host_ed25519_key", "key"), "slot", "host key"),
    "a kernel without its card": (
        in_slot("boot/config-6.1", str(LESS).replace("CONFIG_MMC_SDHCI_IPROC=m\n", "")),
        "kernel options", "CONFIG_MMC_SDHCI_IPROC",
    ),
    "no driver of the card in the initrd": (
        in_slot("usr/lib/modules/6.1/modules.builtin", "kernel/fixed.ko\n"), "modules", "sdhci_iproc for the initrd",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HURTS)
def test_a_hurt_image_fails_by_what_it_lacks(whole: Path, tmp_path: Path, name: str) -> None:
    hurt, check, what = HURTS[name]
    image = copy(whole, tmp_path)
    hurt(image, tmp_path)
    found = missing(image)
    assert check in found and any(what in each for each in found[check]), found


def test_the_command_ends_with_1_and_its_record_shows_nothing(whole: Path, tmp_path: Path) -> None:
    image = copy(whole, tmp_path)
    on_fat("config.txt", None)(image, tmp_path)
    words = (*COMMAND, "image", "verify", image, "--board", NAME, "--record", tmp_path / "kept.json")
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "config.txt on FAT" in done.stdout
    assert evidence.shown(evidence.read(tmp_path / "kept.json"), tmp_path) == "drafted"


def test_an_image_of_another_board_is_told(whole: Path, tmp_path: Path) -> None:
    other = subprocess.run(
        [*COMMAND, "image", "verify", str(whole), "--board", "rpi-3"], capture_output=True, text=True, check=False
    )
    assert other.returncode == 1 and "a release for fl-tiny-rpi-3" in other.stdout
    image = copy(whole, tmp_path)
    with image.open("r+b") as file:
        file.seek(440)  # of an MBR: its signature
        file.write(b"\1\2\3\4")
    assert "04030201" in cli("image", "verify", image, code=65)


def test_settings_of_the_firmware_hold_for_the_models_that_they_name() -> None:
    text = "a=1\n# b=2\n[pi4]\na=2\nkernel=x\n[pi5]\na=3\n[all]\nc = 4\n"
    assert firmware.pi_settings(text, "bcm2711") == {"a": "2", "kernel": "x", "c": "4"}
    assert firmware.pi_settings(text, "bcm2712") == {"a": "3", "c": "4"}
    assert firmware.pi_settings(text, "bcm2837") == {"a": "1", "c": "4"}
