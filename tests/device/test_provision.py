# SPDX-License-Identifier: Apache-2.0
"""A card's settings on real files below a root folder; what they become is read by the programs that it is for."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e.fleet import Fleet, cli, stop

from fl_tiny import config
from fl_tiny.board import Network
from fl_tiny.device import netfiles
from fl_tiny.device.codefile import blanked
from fl_tiny.errors import ConfigError
from fl_tiny.protocol import pairing

CODE = pairing.to_text(pairing.PairingCode(b"\x01" * 8, b"\x02" * 16, "hub.local:5684"))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXwrLLkVKQQqRJl3ifIqVWMmV3MmnJ3u7K3oV1nVq0v me@desk"
CARD = f"""# my card
gateway = "hub.local"
pairing_code = "{CODE}"
max_samples = 100

[board]
name = "kitchen"

[network]
ssid = "Küche \\"2\\""
password = "pa\\"ss word"  # of the house
country = "DE"
address = "192.168.1.20/24"
gateway = "192.168.1.1"
dns = ["192.168.1.1", "fd00::1"]

[ssh]
authorized_keys = ["{KEY}"]

[source]
kind = "spool"
"""


class Card:
    """A board's root folder with a card in it."""

    def __init__(self, root: Path, text: str | None = CARD) -> None:
        self.root = root
        self.file, self.dir = root / "boot/fl-tiny.toml", root / "var/lib/fl-tiny/device"
        self.file.parent.mkdir(parents=True)
        if text is not None:
            self.file.write_text(text)

    def provision(self, code: int = 0) -> Any:
        return cli("device", "provision", self.file, self.dir, "--root", self.root, code=code)

    def run(self, name: str) -> str:
        return (self.root / "run" / name).read_text()

    @property
    def pending(self) -> str:
        return (self.dir / "secret/pairing_code").read_text()

    @property
    def kept(self) -> Path:
        return self.root / "var/lib/fl-tiny/board/fl-tiny.toml"


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path / "root")


def test_a_card_brings_network_name_ssh_settings_and_code(card: Card) -> None:
    assert card.provision() == {
        "file": "applied",
        "did": ["network", "name", "ssh", "settings", "code", "kept", "erased"],
    }
    assert card.run("fl-tiny/hostname") == "kitchen\n"
    assert card.run("fl-tiny/ssh/authorized_keys") == KEY + "\n"
    network = card.run("systemd/network/10-fl-tiny.network")
    for line in ("Type=wlan", "Address=192.168.1.20/24", "Gateway=192.168.1.1", "DNS=fd00::1"):
        assert f"\n{line}\n" in network
    wireless = card.root / "run/fl-tiny/wpa_supplicant-wlan0.conf"
    assert wireless.stat().st_mode & 0o777 == 0o600 and "    psk=" in wireless.read_text()
    own = config.read_table(card.dir / "fl-tiny.toml")
    assert own == {
        "gateway": "hub.local", "max_samples": 100, "board": {"name": "kitchen"}, "source": {"kind": "spool"}
    }  # fmt: skip
    assert CODE in card.pending and (card.dir / "secret/pairing_code").stat().st_mode & 0o777 == 0o600
    assert cli("config", "check", card.dir / "fl-tiny.toml") == {"ok": True, "role": "device"}


def test_no_secret_stays_on_the_card_and_all_else_does(card: Card) -> None:
    card.provision()
    left = card.file.read_text()
    assert len(left.encode()) == len(CARD.encode()), "it is written in place, so that no other cluster holds the old"
    for secret in (CODE, CODE.split(":")[2], "ss word"):
        assert secret not in left
    assert "# my card" in left and "# of the house" in left
    found = config.parse(left.encode(), "left")
    assert found["network"]["password"] == "kept" and "pairing_code" not in found
    assert card.kept.stat().st_mode & 0o777 == 0o600 and card.kept.parent.stat().st_mode & 0o777 == 0o700
    for path in (path for path in card.root.rglob("*") if path.is_file()):
        assert b"ss word" not in path.read_bytes(), "the password itself stays nowhere"
    assert CODE.split(":")[2] not in card.kept.read_text()


def test_the_next_boots_do_the_same_with_what_is_kept_and_write_nothing(card: Card) -> None:
    card.provision()
    wireless = card.run("fl-tiny/wpa_supplicant-wlan0.conf")
    shutil.rmtree(card.root / "run")
    lasting = [card.file, card.kept, card.dir / "fl-tiny.toml", card.dir / "secret/pairing_code"]
    before = [path.stat().st_mtime_ns for path in lasting]
    assert card.provision() == {"file": "applied", "did": ["network", "name", "ssh"]}
    assert card.run("fl-tiny/wpa_supplicant-wlan0.conf") == wireless
    assert [path.stat().st_mtime_ns for path in lasting] == before
    card.file.unlink()
    shutil.rmtree(card.root / "run")
    assert card.provision() == {"file": "missing", "did": ["network", "name", "ssh"]}
    assert card.run("fl-tiny/wpa_supplicant-wlan0.conf") == wireless


def test_a_wrong_file_is_told_whole_and_the_last_good_settings_stay(card: Card) -> None:
    card.provision()
    good = card.run("systemd/network/10-fl-tiny.network")
    card.file.write_text(CARD.replace("hub.local", "hub:x").replace("country = ", "contry = ").replace("ss w", "\\n"))
    line = card.provision(code=78)
    for word in ("'hub:x' is not an address", "did you mean network.country?", "network.password: what stands there"):
        assert word in line
    assert "word" not in line.split("password:")[1].split(";")[0].replace("what stands there", "")
    assert "last good settings" in line and card.run("systemd/network/10-fl-tiny.network") == good
    card.file.write_bytes(CARD.encode()[:300])
    assert "last good settings" in card.provision(code=78)
    assert card.run("fl-tiny/ssh/authorized_keys") == KEY + "\n"


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('password = "pa\\"ss word"', 'password = "kept"', "keeps none for this network"),
        (CODE, CODE[:-3], "check digit"),
        ('ssid = "Küche \\"2\\""', "", "there is no network.ssid"),
        ('address = "192.168.1.20/24"', "", "there is no network.address"),
        (KEY, KEY.replace("AAAAC3", "BBBBC3"), "ssh.authorized_keys"),
        ('"kitchen"', '"kitchen window"', "board.name"),
        ('kind = "spool"', 'kind = "radio"', "spool, camera or socket"),
        ('kind = "spool"', 'button = "gpiochip0:17"', "button_label"),
    ],
)
def test_each_fault_has_its_own_words_and_nothing_is_done(card: Card, old: str, new: str, word: str) -> None:
    assert old in CARD
    card.file.write_text(CARD.replace(old, new))
    assert word in card.provision(code=78)
    assert not (card.root / "run").exists() and not card.dir.exists()
    if "kept" not in new:  # what `config check` cannot know is what a board keeps
        assert word in cli("config", "check", card.file, "--role", "device", code=78)


def test_a_file_that_stays_on_its_card_does_not_undo_what_was_changed_on_the_board(card: Card) -> None:
    card.provision()
    own = card.dir / "fl-tiny.toml"
    own.write_text('gateway = "other.local"\n')
    assert card.provision()["did"] == ["network", "name", "ssh"]
    assert own.read_text() == 'gateway = "other.local"\n'
    card.file.write_text(card.file.read_text().replace("max_samples = 100", "max_samples = 200"))
    assert "settings" in card.provision()["did"]
    assert "max_samples = 200" in own.read_text()


def test_what_a_new_file_leaves_out_is_gone(card: Card) -> None:
    card.provision()
    card.file.write_text('gateway = "hub.local"\n')
    assert card.provision()["did"] == ["settings", "kept"]
    assert [path for path in (card.root / "run").rglob("*") if path.is_file()] == [card.root / "run/fl-tiny/hostname"]


def test_a_secret_that_cannot_be_erased_is_told_and_still_used(card: Card) -> None:
    card.file.write_text(CARD.replace(f'"{CODE}"', f'"""{CODE}"""'))
    assert "cannot be erased" in card.provision(code=65)
    assert CODE in card.pending and card.run("fl-tiny/wpa_supplicant-wlan0.conf")
    assert CODE in card.file.read_text()


def test_values_are_blanked_where_a_person_writes_them_and_the_rest_stays() -> None:
    for line in (b'pairing_code="FL1:x"', b"  pairing_code = 'FL1:x'  # c", b'a = 1\npairing_code = "FL1:x"\r\nb = 2'):
        made = blanked(line, "kept")
        assert b"FL1" not in made and len(made) == len(line)
    for line in (b'password = "12345678"', b"network.password='12345678'", b'password = "\\"\\\\345678"'):
        made = blanked(line, "kept")
        assert b"345678" not in made and b'"kept"' in made and len(made) == len(line)
    assert blanked(b'# no_password = "12345678"\n', "kept") == b'# no_password = "12345678"\n'


def test_settings_come_back_from_the_text_they_are_kept_as(card: Card) -> None:
    table = {**config.parse(CARD.encode(), "card"), "odd": 'a"\\\x7f\u00e4\n', "x": [1.5, True], "t": {"k": -3}}
    assert config.parse(config.to_text(table).encode(), "text") == table


def test_a_password_becomes_the_key_that_the_standard_says() -> None:
    """Source: IEEE 802.11-2020, J.4.2, test cases 1 and 2."""
    first = Network(ssid="IEEE", password="password")
    second = Network(ssid="ThisIsASSID", password="ThisIsAPassword")
    assert netfiles.key_of(first) == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert netfiles.key_of(second) == "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af"


# ---- what other programs say of it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        Network(ssid="home", password="12345678", country="DE", hidden=True),
        Network(ssid='K"ü', password='"\\"quo"ted#'),
        Network(ssid="home", password="ab" * 32, interface="wlp1s0"),
        Network(ssid="open"),
    ],
)
def test_wpa_supplicant_reads_what_is_written(tmp_path: Path, network: Network) -> None:
    program = shutil.which("wpa_supplicant", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        pytest.skip("wpa_supplicant is not installed")
    file = tmp_path / "wpa.conf"
    found = netfiles.files_of(network)
    text = found[netfiles.wpa_file(network)].replace("/run/wpa_supplicant", str(tmp_path / "control"))
    file.write_text(text)
    said = subprocess.run(
        [program, "-dd", "-c", file, "-i", "fl-none0", "-D", "wired"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    ).stdout
    assert network.ssid and network.ssid.encode().hex() in said.replace(" ", "").lower()
    for word in ("failed to parse", "unknown", "Invalid", "Failed to read or parse"):
        assert word not in said, said
    file.write_text(text.replace("}", "    psq=1\n}"))
    wrong = subprocess.run(
        [program, "-c", file, "-i", "fl-none0", "-D", "wired"], capture_output=True, text=True, timeout=20, check=False
    )
    assert "unknown" in wrong.stdout, "the program does look at what stands there"


def test_ssh_keygen_reads_the_keys(card: Card) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    card.provision()
    keys = card.root / "run/fl-tiny/ssh/authorized_keys"
    said = subprocess.run(["ssh-keygen", "-l", "-f", keys], capture_output=True, text=True, timeout=10, check=False)
    assert said.returncode == 0 and "me@desk" in said.stdout


# ---- cuts -------------------------------------------------------------------------------------------------------


def test_a_cut_anywhere_while_a_card_is_erased_loses_no_code_and_no_network(card: Card, tmp_path: Path) -> None:
    """Every mix of old and new sectors of the FAT image: the file is right or told of, the board keeps all."""
    if shutil.which("mcopy") is None or shutil.which("mkfs.vfat") is None:
        pytest.skip("needs mtools and dosfstools")
    padding = "# " + "." * 700 + "\n"  # code and password in different sectors, one of them across two
    text = padding[: 512 - 40] + "\n" + CARD.split("\n", 1)[1].replace("max_samples", padding + "max_samples")
    card.file.write_text(text)
    images = [tmp_path / "old.img", tmp_path / "new.img"]
    subprocess.run(["mkfs.vfat", "-C", images[0], "1440"], check=True, capture_output=True, timeout=10)
    subprocess.run(["mcopy", "-i", images[0], card.file, "::fl-tiny.toml"], check=True, timeout=10)
    whole = images[0].read_bytes()
    card.provision()
    at = whole.index(text.encode())  # the file lies in one piece, so what is written in place is written here
    erased = whole[:at] + card.file.read_bytes() + whole[at + len(text.encode()) :]
    sectors = [n for n in range(0, len(whole), 512) if whole[n : n + 512] != erased[n : n + 512]]
    assert len(sectors) >= 3
    wireless = card.run("fl-tiny/wpa_supplicant-wlan0.conf")
    for mask in range(1 << len(sectors)):
        mixed = bytearray(whole)
        for bit, n in enumerate(sectors):
            if mask >> bit & 1:
                mixed[n : n + 512] = erased[n : n + 512]
        images[1].write_bytes(mixed)
        shutil.rmtree(card.root / "run")
        subprocess.run(["mcopy", "-n", "-o", "-i", images[1], "::fl-tiny.toml", card.file], check=True, timeout=10)
        try:
            config.read_table(card.file)
        except ConfigError:
            assert "last good settings" in card.provision(code=78)
        else:
            assert card.provision()["file"] == "applied"
            assert CODE not in card.file.read_text() and "ss word" not in card.file.read_text()
        assert card.run("fl-tiny/wpa_supplicant-wlan0.conf") == wireless and CODE in card.pending


def test_a_cut_between_any_two_steps_is_finished_by_the_next_boot(tmp_path: Path) -> None:
    """Killed at each write: the next start ends where an undisturbed one does."""
    whole = Card(tmp_path / "whole")
    whole.provision()
    for n in range(1, 12):
        cut = Card(tmp_path / f"cut{n}")
        with contextlib.suppress(subprocess.CalledProcessError):
            kill_at_write(cut, n)
        cut.provision()
        for each in ("boot/fl-tiny.toml", "var/lib/fl-tiny/board/fl-tiny.toml", "var/lib/fl-tiny/device/fl-tiny.toml"):
            assert (cut.root / each).read_text() == (whole.root / each).read_text(), (n, each)
        assert cut.pending == whole.pending


def kill_at_write(card: Card, n: int) -> None:
    """Provision, and end the process as a cut does at its nth sync to the disk."""
    import sys

    code = (
        "import os, sys; left = [int(sys.argv.pop(1))]; real = os.fsync\n"
        "def sync(handle):\n left[0] -= 1\n os._exit(1) if not left[0] else real(handle)\n"
        "os.fsync = sync\nfrom fl_tiny.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["device", "provision", str(card.file), str(card.dir), "--root", str(card.root)]
    subprocess.run([sys.executable, "-c", code, str(n), *words], check=True, capture_output=True, timeout=30)


# ---- with a gateway ---------------------------------------------------------------------------------------------


def test_a_board_enrols_by_its_card_and_a_second_with_the_same_code_is_told_why_not(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet")
    try:
        gateway = fleet.gateway()
        code = cli("gateway", "pair", fleet.gw)["code"]
        cards = [
            Card(tmp_path / name, f'pairing_code = "{code}"\nlan_timing = true\n[board]\nname = "{name}"\n')
            for name in ("first", "second")
        ]
        for each in cards:
            each.provision()
        first, second = ([card.dir, "--code-file", card.dir / "secret/pairing_code", "--if-needed"] for card in cards)
        cli("device", "enroll", *first)
        assert cards[0].pending == ""
        line = cli("device", "enroll", *second, code=69)
        assert "--count" in line and cards[1].pending
        rows = cli("gateway", "devices", fleet.gw)
        assert [(row["name"], row["state"]) for row in rows] == [("first", "active")]
        cards[0].file.write_text(f'pairing_code = "{code}"\nlan_timing = true\n[board]\nname = "first"\n')
        assert cards[0].provision()["did"] == ["name", "erased"], "an enrolled device erases a code and ignores it"
        assert cards[0].pending == "" and code not in cards[0].file.read_text()
        assert stop(gateway) == 0
        told = [line for line in gateway.log if "device enrolled" in line or "enrolment refused" in line]
        assert len(told) == 2 and "name=first" in told[0] and "name=second" in told[1], "the operator sees both"
    finally:
        fleet.end()


def test_any_bytes_on_a_card_leave_the_board_as_it_was(card: Card) -> None:
    card.provision()
    good = card.file.read_bytes()
    wireless = card.run("fl-tiny/wpa_supplicant-wlan0.conf")
    from fl_tiny.device.provision import provision

    rng = random.Random(5)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([1, 1, 40])] = rng.randbytes(rng.choice([0, 1, 3]))
        card.file.write_bytes(data)
        done = provision(card.file, card.dir, card.root)
        assert done.file in ("applied", "wrong")
        if done.file == "wrong":
            assert done.faults and card.run("fl-tiny/wpa_supplicant-wlan0.conf")
        card.file.write_bytes(good)
        provision(card.file, card.dir, card.root)
        assert CODE in card.pending
    assert "psk=" in wireless
