# SPDX-License-Identifier: Apache-2.0
"""Names where they select and where they are shown, and peers that are listed and revoked, over real processes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import time

import pytest

from fl_tiny.errors import RemoteError
from fl_tiny.net.coap import Client

from .fleet import COMMAND, Fleet, cli, stop
from .test_identity import has_session

TRICK = "\x1b[2Jkit\u202echen\nINFO all is well"


def test_a_name_that_fits_two_devices_selects_none_and_the_ids_are_said(fleet: Fleet) -> None:
    gateway = fleet.gateway("--interval", 3600)
    for place in ("a", "b"):
        code = cli("gateway", "pair", fleet.gw)["code"]
        cli("device", "enroll", fleet.root / place, "--code", code, "--name", "kitchen")
    ids = [row["id"] for row in cli("gateway", "devices", fleet.gw)]
    for command in ("revoke", "release", "forget"):
        line = cli("gateway", command, fleet.gw, "kitchen", code=65)
        assert all(one in line for one in ids)
    code = cli("gateway", "pair", fleet.gw)["code"]
    cli("device", "enroll", fleet.root / "c", "--code", code, "--name", ids[0][:6])  # as another's id begins
    line = cli("gateway", "revoke", fleet.gw, ids[0][:6], code=65)
    assert ids[0] in line and cli("gateway", "devices", fleet.gw)[2]["id"] in line
    assert "no device" in cli("gateway", "revoke", fleet.gw, ids[0].upper(), code=65)
    assert cli("gateway", "revoke", fleet.gw, ids[0])["id"] == ids[0]
    assert [row["state"] for row in cli("gateway", "devices", fleet.gw)] == ["revoked", "active", "active"]
    code = cli("gateway", "pair", fleet.gw)["code"]
    for name in (ids[1], TRICK, "kitchen "):
        assert "is no name for a device" in cli(
            "device", "enroll", fleet.root / "d", "--code", code, "--name", name, code=78
        )
    assert stop(gateway) == 0


def test_what_an_older_ledger_holds_moves_no_cursor(fleet: Fleet) -> None:
    fleet.gateway("--interval", 3600)
    fleet.device("board", samples=0)
    with contextlib.closing(sqlite3.connect(fleet.gw / "state.db")) as db:
        db.execute("UPDATE device SET name=?", (TRICK,))
        db.commit()
    words = [*COMMAND, "gateway", "devices", str(fleet.gw)]
    told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    assert len(told.splitlines()) == 2 and "\x1b" not in told and "\u202e" not in told
    assert "\\x1b[2Jkit\\u202echen\\nINFO all is well" in told


def test_a_peer_is_listed_and_loses_its_session_when_it_is_revoked(fleet: Fleet) -> None:
    fleet.gateway("--interval", 3600)
    made = {name: cli("gateway", "pair", fleet.gw, "--peer", name) for name in ("kept", "lost")}
    rows = [{"name": name, "identity": f"peer:{name}"} for name in ("kept", "lost")]
    assert cli("gateway", "peer", "list", fleet.gw) == rows

    async def revoked() -> tuple[float, bool, bool]:
        clients = [
            await Client.connect("127.0.0.1", fleet.port, one["identity"], one["key"].encode()) for one in made.values()
        ]
        for client in clients:
            assert (await client.request("GET", ("d",))).code == "2.05"
        await asyncio.to_thread(cli, "gateway", "peer", "revoke", fleet.gw, "lost")
        asked = time.monotonic()
        while has_session(clients[1]) and time.monotonic() - asked < 10:
            await asyncio.sleep(0.02)
        took, kept = time.monotonic() - asked, has_session(clients[0])
        with pytest.raises(RemoteError):
            await clients[1].request("GET", ("d",))
        served = (await clients[0].request("GET", ("d",))).code == "2.05"
        for client in clients:
            await client.close()
        return took, kept, served

    took, kept, served = asyncio.run(revoked())
    assert took < 2 and kept and served
    assert cli("gateway", "peer", "list", fleet.gw) == rows[:1]
    assert "no peer" in cli("gateway", "peer", "revoke", fleet.gw, "lost", code=65)
