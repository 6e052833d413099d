# SPDX-License-Identifier: Apache-2.0
"""Settings put into images without mounting them, on a real partition table and FAT; read back by mtools itself."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from e2e.fleet import MODEL, cli

from fl_tiny.errors import ConfigError, DataError
from fl_tiny.image import disk, provision

MIB = 1 << 20
TOOLS = ("mkfs.vfat", "mcopy", "mdir")
_absent = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
needs_tools = pytest.mark.skipif(bool(_absent), reason=f"{', '.join(_absent)} missing")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of four partitions, of which the first is a FAT of 36 MiB."""
    path = tmp_path / "board.img"
    fat = tmp_path / "fat"
    subprocess.run(["/usr/sbin/mkfs.vfat", "-F", "32", "-n", "FL-TINY", "-C", fat, str(36 * 1024)], check=True)
    sector = bytearray(512)
    sector[440:444] = bytes.fromhex("65d6a1e8")[::-1]
    for number, (start, size, kind) in enumerate([(4, 36, 0x0C), (40, 8, 0x83), (48, 8, 0x83), (56, 8, 0x83)]):
        entry = struct.pack("<B3xB3xLL", 0, kind, start * MIB // 512, size * MIB // 512)
        sector[446 + 16 * number : 462 + 16 * number] = entry
    sector[510:] = b"\x55\xaa"
    with path.open("wb") as file:
        file.write(sector)
        file.seek(4 * MIB)
        file.write(fat.read_bytes())
        file.truncate(64 * MIB)
    return path


def read(image: Path) -> str:
    words = ["mcopy", "-n", "-i", f"{image}@@4M", "::fl-tiny.toml", "-"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@needs_tools
def test_settings_are_on_the_fat_partition_and_can_be_put_there_again(image: Path, tmp_path: Path) -> None:
    settings = tmp_path / "mine.toml"
    for port in (5684, 5685):
        settings.write_text(f'gateway = "192.168.1.10:{port}"\n')
        provision.provision(image, settings)
        assert read(image) == settings.read_text()
    assert disk.list_fat(image) == {"fl-tiny.toml"}
    assert image.stat().st_size == 64 * MIB


@needs_tools
def test_wrong_settings_never_reach_a_card(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    (tmp_path / "mine.toml").write_text('gatway = "here"\nmax_samples = 0\n')
    with pytest.raises(ConfigError, match=r"unknown key gatway.*max_samples"):
        provision.provision(image, tmp_path / "mine.toml")
    assert image.read_bytes() == before


@needs_tools
@pytest.mark.parametrize("content", [b"", b"\xfd7zXZ" + b"\0" * 600], ids=["empty", "compressed"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "board.img.xz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="xz -dk"):
        disk.read_table(path)


@needs_tools
def test_a_table_that_reaches_beyond_the_file_is_refused(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(60 * MIB)
    with pytest.raises(DataError, match="partition 4"):
        disk.read_table(image)


@needs_tools
def test_the_table_is_read_as_sfdisk_reads_it(image: Path) -> None:
    table = disk.read_table(image)
    assert table.signature == "65d6a1e8"
    assert table.parts["slot-b"] == disk.Part(48 * MIB, 8 * MIB, 0x83)
    if shutil.which("sfdisk", path="/usr/sbin:/sbin"):
        told = subprocess.run(["/usr/sbin/sfdisk", "-d", image], check=True, capture_output=True, text=True).stdout
        assert f"label-id: 0x{table.signature}" in told


@needs_tools
def test_many_boards_get_an_image_each_with_a_code_of_its_own(image: Path, tmp_path: Path) -> None:
    cli("gateway", "init", tmp_path / "gw", "--model", MODEL)
    cards = tmp_path / "cards"
    codes = {each["code"] for each in cli("gateway", "pair", tmp_path / "gw", "--count", 2, "--out", cards)}
    (tmp_path / "mine.toml").write_text('max_samples = 50\n[board]\nname = "kitchen"\n')
    settings = ("--config", tmp_path / "mine.toml")
    made = cli("image", "provision", image, *settings, "--batch", cards, "--out", tmp_path / "out")
    texts = [read(Path(path)) for path in made]
    assert {text.split('"')[1] for text in texts} == codes and all("kitchen" in text for text in texts)
    assert all(Path(path).stat().st_mode & 0o077 == 0 for path in made)
    assert not list(cards.glob("*/fl-tiny.toml")), "a code that is on a card lies nowhere else"
    assert "no codes" in cli("image", "provision", image, "--batch", cards, "--out", tmp_path / "out", code=65)
