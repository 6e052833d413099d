# SPDX-License-Identifier: Apache-2.0
"""The device daemon against a gateway in this process, which says that the device is out where it is least awaited."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from inprocess import enrolled, running

from fl_tiny.device.agent import Agent
from fl_tiny.device.link import Link
from fl_tiny.errors import RemoteError
from fl_tiny.gateway import setup
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.protocol import wire
from fl_tiny.protocol.wire import Code

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"


def test_a_device_that_is_revoked_between_offer_and_answer_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That answer is the only one that says so: the session ends with it, and the next handshake gets an alert."""

    async def test() -> None:
        setup.initialise(tmp_path / "gw", MODEL, None, Wanted(None))
        async with running(tmp_path / "gw") as (gateway, server):
            device = tmp_path / "dev"
            did = await enrolled(tmp_path / "gw", server.port, device)
            (device / "fl-tiny.toml").write_text("lan_timing = true\n")
            heartbeat, answer = Link.heartbeat, Link.answer

            async def with_a_round(self: Link, beat: wire.Heartbeat) -> wire.Next:
                if gateway.rounds.rid is None:
                    gateway._open(time.monotonic())
                return await heartbeat(self, beat)

            async def too_late(self: Link, *words: Any) -> wire.Next:
                gateway.store.revoke(did)
                return await answer(self, *words)

            monkeypatch.setattr(Link, "heartbeat", with_a_round)
            monkeypatch.setattr(Link, "answer", too_late)
            agent = Agent(device, lambda event, facts: None)
            with pytest.raises(RemoteError) as fault:
                await asyncio.wait_for(agent.run(once=False, rounds=None), 10)
            assert fault.value.code == Code.REVOKED

    asyncio.run(test())
