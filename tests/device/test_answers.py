# SPDX-License-Identifier: Apache-2.0
"""A device's answers to an offer reach its gateway, also when the session is lost just then."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inprocess import enrolled, running

from fl_tiny import statedir
from fl_tiny.device.agent import Agent
from fl_tiny.device.store import DeviceStore, Sample
from fl_tiny.gateway import setup
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.net.coap import Request, Response
from fl_tiny.protocol import wire
from fl_tiny.protocol.wire import Said

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"
PATIENCE_S = 40.0


def answers_of_a_device(root: Path, lost: Said, saw: Callable[[Path, dict[str, Any]], None]) -> list[int]:
    """What a gateway hears of a device with samples, until it hears the answer ``lost``.

    Each session in which that answer comes ends in its place, until the device gives up and connects anew.
    saw: told of each of the device's events.
    """
    setup.initialise(root / "gw", MODEL, None, Wanted(None))
    said: list[int] = []
    connected = 0

    async def run() -> None:
        async with running(root / "gw") as (gateway, server):
            device = root / "dev"
            await enrolled(root / "gw", server.port, device)
            (device / "fl-tiny.toml").write_text("lan_timing = true\n")
            store = DeviceStore.open(device / statedir.DATABASE)
            store.add_samples([Sample(os.urandom(64), i % 10) for i in range(60)], 100)
            store.close()
            take = server._handler

            async def handler(request: Request) -> Response:
                if (request.method, request.path) == ("POST", ("o",)):
                    answer = wire.decode(wire.Answer, request.payload)
                    if answer.said == lost and connected < 2:
                        server.drop_identity(request.identity)
                        return Response("5.00")
                    said.append(answer.said)
                return await take(request)

            server._handler = handler
            gateway._open(time.monotonic())

            def heard(event: str, facts: dict[str, Any]) -> None:
                nonlocal connected
                connected += event == "connected"
                saw(device, facts)

            agent = Agent(device, heard)
            run = asyncio.create_task(agent.run(once=False, rounds=None))
            end = time.monotonic() + PATIENCE_S
            while lost not in said and time.monotonic() < end:
                await asyncio.sleep(0.1)
            run.cancel()
            await asyncio.wait([run])

    asyncio.run(run())
    return said


def test_a_join_that_was_lost_with_its_session_is_said_again(tmp_path: Path) -> None:
    assert answers_of_a_device(tmp_path, Said.JOIN, lambda device, facts: None) == [Said.JOIN]


def test_that_training_failed_is_said_when_there_is_a_session_again(tmp_path: Path) -> None:
    def saw(device: Path, facts: dict[str, Any]) -> None:
        if facts.get("state") == "joined":
            (device / "model/base.tflite").write_bytes(b"no model any more")

    assert answers_of_a_device(tmp_path, Said.NO_BUDGET, saw) == [Said.JOIN, Said.NO_BUDGET]
