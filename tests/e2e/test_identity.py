# SPDX-License-Identifier: Apache-2.0
"""Who a device is, over real processes: whose models it takes, its code, copies of it, its revocation, its next key."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from fl_tiny.errors import EnvironmentFault
from fl_tiny.net.coap import Client
from fl_tiny.protocol import wire

from .fleet import Fleet, cli, stop


def test_a_device_takes_the_model_key_it_was_told_and_no_other(fleet: Fleet) -> None:
    fleet.gateway()
    code = cli("gateway", "pair", fleet.gw)["code"]
    wrong = "ab" * 32
    line = cli("device", "enroll", fleet.root / "d", "--code", code, "--model-key", wrong, code=69)
    assert wrong in line and fleet.init["model_key"] in line
    cli("device", "status", fleet.root / "d", code=78)
    cli("device", "enroll", fleet.root / "d", "--code", code, "--model-key", fleet.init["model_key"])
    told = cli("device", "status", fleet.root / "d")["model_key"]
    assert told == {"sha256": fleet.init["model_key"], "from": "pinned"}
    trusting = fleet.device("t", samples=0)
    assert "gateway's word" in cli("device", "status", trusting)["model_key"]["from"]
    assert all(d["state"] == "active" for d in cli("gateway", "devices", fleet.gw))


def test_a_code_in_a_file_is_erased_when_the_device_is_enrolled(fleet: Fleet) -> None:
    fleet.gateway()
    cards = fleet.root / "cards"
    cli("gateway", "pair", fleet.gw, "--count", 3, "--out", cards)
    cards = [cards / f"00{n}/fl-tiny.toml" for n in (1, 2, 3)]
    cards[0].write_text("lan_timing = true\n" + cards[0].read_text() + "# end\n")
    cli("device", "enroll", fleet.root / "a", "--code-file", cards[0])
    assert cards[0].read_text() == "lan_timing = true\n# end\n"

    own = fleet.root / "b/fl-tiny.toml"  # as on an image: the code lies in the settings
    own.parent.mkdir()
    shutil.copy(cards[1], own)
    cli("device", "enroll", own.parent)
    assert own.read_text() == ""
    shutil.copy(cards[2], own)  # a card that was put in again: enrolled already, so the code goes
    run = fleet.run(own.parent)
    run.event("connected")
    assert own.read_text() == "" and stop(run) == 0

    torn = fleet.root / "torn.toml"
    torn.write_text(cards[2].read_text()[:40])
    assert "pairing code" in cli("device", "enroll", fleet.root / "c", "--code-file", torn, code=69)
    assert "no pairing code" in cli("device", "enroll", fleet.root / "c", code=78)
    cli("device", "enroll", fleet.root / "c", "--code-file", cards[2])


def test_a_copy_of_a_device_puts_both_into_quarantine_until_the_operator_says_so(fleet: Fleet) -> None:
    fleet.gateway("--interval", 3600)
    board, copy = fleet.device("board", samples=0), fleet.root / "copy"
    shutil.copytree(board, copy)
    for directory in (board, copy):
        (directory / "fl-tiny.toml").write_text("lan_timing = true\n")
    first = fleet.run(board)
    first.event("connected")
    second = fleet.run(copy, "--once")
    assert second.wait(40) == 69, "two starts of one number are two boards"
    until = time.monotonic() + 40
    while not cli("device", "status", board)["trouble"]:
        assert time.monotonic() < until, "".join(first.log)
        time.sleep(0.3)
    for directory in (board, copy):
        assert "two copies" in cli("device", "status", directory)["trouble"]
    row = cli("gateway", "devices", fleet.gw)[0]
    assert row["state"] == "quarantined" and "two copies" in row["trouble"]
    stop(first)
    assert cli("gateway", "release", fleet.gw, "board") == {"id": row["id"], "state": "active"}
    back = fleet.run(board)
    back.event("connected")
    assert cli("device", "status", board)["trouble"] is None and stop(back) == 0


def test_an_old_card_image_is_told_from_the_device_it_was(fleet: Fleet) -> None:
    fleet.gateway("--interval", 3600)
    board, image = fleet.device("board", samples=0), fleet.root / "image"
    shutil.copytree(board, image)
    for _ in range(3):
        run = fleet.run(board)
        run.event("connected")
        assert stop(run) == 0
    assert fleet.run(image, "--once").wait(40) == 69
    assert "restored image" in cli("device", "status", image)["trouble"]
    assert cli("gateway", "devices", fleet.gw)[0]["state"] == "quarantined"


def test_a_revoked_device_loses_its_idle_session_within_seconds(fleet: Fleet) -> None:
    fleet.gateway("--interval", 3600)
    directories = [fleet.device(name, samples=0) for name in ("lost", "kept")]

    async def idle() -> tuple[float, bool]:
        links = [await as_device(fleet, directory) for directory in directories]
        asked = time.monotonic()
        await asyncio.to_thread(cli, "gateway", "revoke", fleet.gw, "lost")
        while has_session(links[0]) and time.monotonic() - asked < 10:
            await asyncio.sleep(0.05)
        took, kept = time.monotonic() - asked, has_session(links[1])
        for link in links:
            await link.close()
        return took, kept

    took, kept = asyncio.run(idle())
    assert took < 4, "the command itself takes a part of it"
    assert kept


async def as_device(fleet: Fleet, directory: Path) -> Client:
    """A session of a device that says nothing after it has registered."""
    did = bytes.fromhex(cli("device", "status", directory)["id"])
    client = await Client.connect("127.0.0.1", fleet.port, did.hex(), (directory / "secret/psk").read_bytes())
    assert (await client.request("POST", ("d",), wire.encode(wire.Register(did, (1,))), 60)).code == "2.04"
    return client


def has_session(client: Client) -> bool:
    try:
        return bool(client.exporter(b"EXPORTER-test", 16))
    except EnvironmentFault:
        return False


def test_a_device_gets_a_new_key_and_goes_on_as_the_same(fleet: Fleet) -> None:
    fleet.gateway("--interval", 0, "--rounds", 2)
    directory = fleet.device("d")
    before = {name: (directory / "secret" / name).read_bytes() for name in ("device.key", "psk")}
    old = fleet.root / "old"
    shutil.copytree(directory, old)
    told = cli("device", "rekey", directory)
    assert told == {"id": cli("device", "status", directory)["id"], "generation": 1}
    for name, data in before.items():
        assert (directory / "secret" / name).read_bytes() != data
    assert sorted(p.name for p in (directory / "secret").iterdir()) == ["device.key", "psk"]
    assert fleet.run(old, "--once").wait(40) == 69, "the old PSK opens nothing any more"
    run = fleet.run(directory, "--rounds", 1)
    assert run.wait() == 0
    assert cli("device", "rekey", directory)["generation"] == 2
    rows = cli("gateway", "devices", fleet.gw)
    assert [(r["id"], r["state"], r["last_round"]) for r in rows] == [(told["id"], "active", 1)]
