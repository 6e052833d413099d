# SPDX-License-Identifier: Apache-2.0
"""What must not work: wrong codes, wrong order, wrong bytes; each with its exit code and one line."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import pytest

from fl_tiny.net.coap import Client
from fl_tiny.protocol import cbor, signed, wire

from .fleet import MODEL, Fleet, cli, stop


def test_what_is_not_initialised_or_enrolled_says_so(tmp_path: Path) -> None:
    for args in (
        ("gateway", "run", tmp_path / "no"),
        ("gateway", "status", tmp_path / "no"),
        ("gateway", "pair", tmp_path / "no"),
        ("device", "run", tmp_path / "no"),
        ("device", "status", tmp_path / "no"),
        ("samples", "stats", tmp_path / "no"),
    ):
        assert "(" in cli(*args, code=78), "an error has a hint"
    assert not (tmp_path / "no").exists()


def test_a_gateway_is_never_initialised_over(fleet: Fleet) -> None:
    before = (fleet.gw / "state.db").read_bytes()
    cli("gateway", "init", fleet.gw, "--model", MODEL, code=78)
    assert (fleet.gw / "state.db").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1c\x00\x00\x00TFL3" + b"\xff" * 64, None])
def test_a_bad_model_makes_no_gateway(tmp_path: Path, content: bytes | None) -> None:
    model = tmp_path / "m.tflite"
    if content is not None:
        model.write_bytes(content)
    cli("gateway", "init", tmp_path / "gw", "--model", model, code=65)
    assert not (tmp_path / "gw").exists()


def test_labels_must_fit_the_model(tmp_path: Path) -> None:
    labels = tmp_path / "l.txt"
    labels.write_text("one\ntwo\n")
    cli("gateway", "init", tmp_path / "gw", "--model", MODEL, "--labels", labels, code=65)
    labels.write_text("wing\nring\nslope\nnegative\n")
    cli("gateway", "init", tmp_path / "gw", "--model", MODEL, "--labels", labels)


def test_a_second_daemon_is_refused(fleet: Fleet) -> None:
    fleet.gateway()
    assert "in use" in cli("gateway", "run", fleet.gw, "--bind", "127.0.0.1:0", code=78)
    directory = fleet.device("d", samples=0)
    fleet.run(directory).event("connected")
    assert "in use" in cli("device", "run", directory, code=78)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("quorom = 0.5", "quorum"),
        ("quorum = 2.0", "quorum"),
        ("deadline = 'soon'", "deadline"),
        ("x = [", "toml"),
        ("clients = true", "clients"),
    ],
)
def test_a_bad_setting_is_named(fleet: Fleet, text: str, names: str) -> None:
    (fleet.gw / "fl-tiny.toml").write_text(text)
    assert names in cli("gateway", "run", fleet.gw, "--bind", "127.0.0.1:0", code=78)


def test_a_pairing_code_enrols_one_device(fleet: Fleet, tmp_path: Path) -> None:
    fleet.gateway()
    code = cli("gateway", "pair", fleet.gw)["code"]
    cli("device", "enroll", tmp_path / "one", "--code", f"@{written(tmp_path / 'code', code)}")
    assert "code" in cli("device", "enroll", tmp_path / "two", "--code", "-", stdin=code, code=69)
    cli("device", "enroll", tmp_path / "one", "--code", code, code=78)
    for secret in (tmp_path / "one/secret").iterdir():
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "one/state.db").stat().st_mode) == 0o600


def test_a_wrong_code_opens_nothing(fleet: Fleet, tmp_path: Path) -> None:
    from fl_tiny.protocol.pairing import PairingCode, to_text

    fleet.gateway()
    unknown = to_text(PairingCode(os.urandom(8), os.urandom(16), f"127.0.0.1:{fleet.port}"))
    cli("device", "enroll", tmp_path / "d", "--code", unknown, code=69)
    cli("device", "enroll", tmp_path / "d", "--code", "FL1:NONSENSE", code=69)
    homeless = to_text(PairingCode(os.urandom(8), os.urandom(16)))
    assert "--gateway" in cli("device", "enroll", tmp_path / "d", "--code", homeless, code=78)
    assert not (tmp_path / "d").exists()


def test_codes_for_many_cards_are_files(fleet: Fleet, tmp_path: Path) -> None:
    fleet.gateway()
    made = cli("gateway", "pair", fleet.gw, "--count", 3, "--expires", "7d", "--out", tmp_path / "cards")
    assert len(made) == 3 and all(m["expires_s"] == 604_800 for m in made)
    cards = sorted((tmp_path / "cards").rglob("fl-tiny.toml"))
    assert len(cards) == 3
    cli("device", "enroll", tmp_path / "d", "--code", f"@{cards[1]}")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def identity_of(directory: Path) -> tuple[str, bytes, bytes]:
    did = cli("device", "status", directory)["id"]
    return did, (directory / "secret/psk").read_bytes(), (directory / "secret/device.key").read_bytes()


def test_a_hostile_enrolled_device_gets_refusals_and_the_round_goes_on(fleet: Fleet) -> None:
    """Malformed and oversized CBOR, an update of wrong shape, out of round, of another device: 4.xx each."""
    gateway = fleet.gateway("--interval", 0, "--rounds", 1, "--clients", 2, "--deadline", 60)
    honest, liar = fleet.device("honest"), fleet.device("liar", seed=1)
    did, psk, seed = identity_of(liar)
    run = fleet.run(honest, "--rounds", 1)
    answers = asyncio.run(attack(fleet.port, did, psk, seed))
    assert {code for code in answers if not code.startswith("4.")} == set(), answers
    assert gateway.wait() == 0 and run.wait() == 0
    assert [r["received"] for r in cli("gateway", "rounds", fleet.gw)] == [1]
    assert not any("Traceback" in line for line in gateway.log)


async def attack(port: int, did: str, psk: bytes, seed: bytes) -> list[str]:
    client = await Client.connect("127.0.0.1", port, did, psk, lan_timing=True)
    me = bytes.fromhex(did)
    try:
        register = wire.encode(wire.Register(me, (1,)))
        assert (await client.request("POST", ("d",), register, 60)).code == "2.04"
        codes = []
        for method, path, payload in (
            ("PUT", ("d",), b""),
            ("PUT", ("d",), b"\xa1\x00"),
            ("PUT", ("d",), b"\x81" * 900),
            ("PUT", ("d",), cbor.encode({0: 5, 1: 0, 2: 0, 3: 0})),
            ("POST", ("d",), wire.encode(wire.Register(b"x" * 16, (1,)))),
            ("POST", ("d",), wire.encode(wire.Register(me, (9,)))),
            ("POST", ("o",), wire.encode(wire.Answer(b"notround", 0))),
            ("PUT", ("u", "AAAAAAAAAAA", "0"), b"x" * 128),
            ("PUT", ("u", "AAAAAAAAAAA", "99999999999"), b"x" * 128),
            ("GET", ("u", "short"), b""),
            ("GET", ("nothing",), b""),
            ("DELETE", ("d",), b""),
            ("GET", ("m", "AAAAAAAAAAA"), b""),
        ):
            codes.append((await client.request(method, path, payload)).code)
        rid = await joined(client, me)
        head = wire.decode(wire.Head, signed.payload_of((await client.request("GET", ("m",))).payload))
        good = b"\x01" * 3000
        digest = hashlib.sha256(good).digest()
        sid = wire.name_of(digest)
        for update in (
            wire.Update(rid, me, head.digest, 10, digest, 3000),  # wrong shape
            wire.Update(rid, me, b"z" * 32, 10, digest, 3000),  # another base
            wire.Update(b"notround", me, head.digest, 10, digest, 3000),  # out of round
            wire.Update(rid, b"y" * 16, head.digest, 10, digest, 3000),  # another device
            wire.Update(rid, me, head.digest, 65_535, digest, 3000),  # too heavy
        ):
            message = signed.sign(wire.encode(update), seed)
            codes.append((await client.request("POST", ("u", sid), message, 18)).code)
        forged = signed.sign(wire.encode(wire.Update(rid, me, head.digest, 10, digest, 3000)), os.urandom(32))
        codes.append((await client.request("POST", ("u", sid), forged, 18)).code)
        codes.append((await client.request("PUT", ("u", sid, "100000"), b"x" * 128)).code)
        codes.append((await client.request("PUT", ("u", sid, "0"), b"x" * 100)).code)
        return codes
    finally:
        await client.close()


async def joined(client: Client, me: bytes) -> bytes:
    """Wait for a round and join it."""
    for _ in range(200):
        beat = wire.encode(wire.Heartbeat(0, 60))
        told = wire.decode(wire.Next, (await client.request("PUT", ("d",), beat, 60)).payload)
        if told.rid is not None:
            answer = await client.request("POST", ("o",), wire.encode(wire.Answer(told.rid, 0)), 60)
            assert answer.code == "2.04"
            return told.rid
        await asyncio.sleep(0.1)
    raise AssertionError("no round opened")


def test_a_device_with_a_wrong_key_gets_nothing(fleet: Fleet) -> None:
    gateway = fleet.gateway("--interval", 0)
    directory = fleet.device("d")
    (directory / "secret/psk").write_bytes(os.urandom(32))
    assert "key is wrong" in cli("device", "run", directory, "--once", code=69)
    assert stop(gateway) == 0
