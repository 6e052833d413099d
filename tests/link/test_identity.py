# SPDX-License-Identifier: Apache-2.0
"""Codes on a bad network and under guessing, over real DTLS; a new model through a live fleet of twenty."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inprocess import running

from fl_tiny.device.enrol import enrol
from fl_tiny.device.link import Link
from fl_tiny.errors import FlTinyError
from fl_tiny.gateway import setup
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.net.sessions import HANDSHAKE_S
from fl_tiny.protocol import pairing
from tests.e2e.test_rollout import Rollout, new_model_through_a_fleet
from tests.net.relay import Faults, Relay

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"
BEHIND_S = HANDSHAKE_S + 2


@pytest.fixture
def gw(tmp_path: Path) -> Path:
    setup.initialise(tmp_path / "gw", MODEL, None, Wanted(None))
    return tmp_path / "gw"


def test_guesses_over_dtls_burn_a_code_for_its_own_device_too(gw: Path, tmp_path: Path) -> None:
    async def test() -> None:
        guessed, other = setup.new_codes(gw, 2, 600)
        code = pairing.from_text(guessed)
        async with running(gw) as (gateway, server):
            address = ("127.0.0.1", server.port)
            guesses = [Link.open(address, code.identity, os.urandom(16)) for _ in range(3)]  # two handshakes each
            told = await asyncio.gather(*guesses, return_exceptions=True)
            assert all(isinstance(t, FlTinyError) for t in told)
            until = time.monotonic() + BEHIND_S
            while gateway.store.pairing(code.token) is not None and time.monotonic() < until:
                await asyncio.sleep(0.2)
            assert gateway.store.pairing(code.token) is None
            with pytest.raises(FlTinyError, match="used or expired"):
                await enrol(tmp_path / "late", guessed, f"127.0.0.1:{server.port}", None)
            await enrol(tmp_path / "dev", other, f"127.0.0.1:{server.port}", None)

    asyncio.run(test())


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.full)])
def test_a_lossy_network_burns_no_code(gw: Path, count: int) -> None:
    """Handshakes with the right secret, 60 % of the datagrams lost.

    The negative control is in it: some handshakes do fail, so counting each of them would burn codes.
    """

    async def one(code: pairing.PairingCode, port: int, number: int) -> None:
        relay = Relay(port, Faults(lose=0.6), number)
        with contextlib.suppress(FlTinyError):
            await (await Link.open(("127.0.0.1", relay.port), code.identity, code.secret)).close()
        relay.close()

    async def test() -> list[bool]:
        codes = [pairing.from_text(code) for code in setup.new_codes(gw, count, 600)]
        failed: list[bool] = []
        async with running(gw) as (_, server):
            told = server.failed

            def failing(identity: str, wrong_key: bool) -> None:
                failed.append(wrong_key)
                told(identity, wrong_key)

            server.failed = failing  # type: ignore[method-assign]
            await asyncio.gather(*(one(code, server.port, n) for n, code in enumerate(codes)))
            await asyncio.sleep(BEHIND_S)
        return failed

    failed = asyncio.run(test())
    assert failed, "no handshake failed: the network was too good to show anything"
    assert not any(failed)


@pytest.fixture
def rollout(tmp_path: Path) -> Iterator[Rollout]:
    found = Rollout(tmp_path)
    yield found
    found.fleet.end()


@pytest.mark.parametrize("devices", [8, pytest.param(20, marks=pytest.mark.full)])
def test_a_new_model_runs_through_a_live_fleet(rollout: Rollout, devices: int) -> None:
    began = time.monotonic()
    new_model_through_a_fleet(rollout, devices, patience=300.0)
    print(
        f"Shows 10: {devices} devices: a bad model refused by each, a good one taken, {time.monotonic() - began:.0f} s"
    )
