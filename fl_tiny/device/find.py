# SPDX-License-Identifier: Apache-2.0
"""A session with the gateway at the address that is known, and when that fails at one that the network proposes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fl_tiny import config
from fl_tiny.device import newkey
from fl_tiny.device.link import Link
from fl_tiny.device.proposals import OUTPUT_LIMIT, from_lines, in_order, is_loopback
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.protocol.announced import mark_of

log = logging.getLogger(__name__)

DEFAULT_PORT = 5684  # coaps, RFC 7252 section 6.2
TRIES = 3  # of the known address, in a row
LOOK_S = 5.0  # the child's time, its start included

Address = tuple[str, int]


async def open_link(directory: Path, store: DeviceStore, settings: config.DeviceSettings) -> tuple[Link, str]:
    """An enrolled device's session, and where. An address that was proposed is kept once there is one over it.

    Raises: as ``Link.open``, of the known address.
    """
    where: str = settings.gateway or store.get("gateway")
    missed: int = store.get("missed") or 0  # on the disk: each run of `--once` tries once

    async def opened(address: Address) -> Link:
        return await newkey.open_link(directory, store, settings, address)

    try:
        link = await opened(config.address(where, DEFAULT_PORT))
    except (EnvironmentFault, RemoteError):
        if missed < TRIES:
            missed += 1
            _note(store, missed=missed)
        mark = mark_of(store.get("gateway_pk"))
        found = await elsewhere(settings.discovery, mark, where, opened) if missed >= TRIES else None
        if found is None:
            raise
        log.info("gateway found gateway=%s instead_of=%s", found[1], where)
        _note(store, gateway=found[1], missed=missed if settings.gateway else 0)
        return found
    if missed:
        _note(store, missed=0)
    return link, where


async def elsewhere(
    asked: str, mark: str | None, failed: str | None, opened: Callable[[Address], Awaitable[Link]]
) -> tuple[Link, str] | None:
    """The first proposed address over which a session opens; None when there is none.

    asked: the setting ``discovery``.   mark, failed: as in ``proposals.in_order``.
    """
    for where in await _look(asked, mark, failed):
        try:
            return await opened(config.address(where, DEFAULT_PORT)), where
        except (EnvironmentFault, RemoteError) as fault:
            log.info("proposal fails gateway=%s why=%r", where, str(fault))
    return None


async def _look(asked: str, mark: str | None, failed: str | None) -> list[str]:
    if asked == "off":
        return []
    if asked == "any" and failed and is_loopback(config.address(failed, DEFAULT_PORT)[0]):
        return []  # a gateway on this machine does not move
    if importlib.util.find_spec("zeroconf") is None:
        log.info("no discovery: zeroconf is not installed, see docs/install.md")
        return []
    output = await _child([] if asked == "any" else [asked])
    addresses = in_order(from_lines(output), mark, failed, random.Random())  # noqa: S311 - hides nothing
    log.info("gateways proposed addresses=%d", len(addresses))
    return addresses


async def _child(arguments: list[str]) -> bytes:
    """What the child prints, up to its time and to a bound."""
    output = bytearray()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fl_tiny.device.discover", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # of the library, at a stranger's will
        )
    except OSError as fault:
        log.warning("no discovery why=%r", str(fault))
        return b""
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_read(process, output), LOOK_S)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
    return bytes(output)


async def _read(process: asyncio.subprocess.Process, output: bytearray) -> None:
    assert process.stdout is not None
    while len(output) < OUTPUT_LIMIT and (more := await process.stdout.read(OUTPUT_LIMIT - len(output))):
        output += more
    await process.wait()  # to kill one that has just ended would take its exit code from asyncio, which then warns


def _note(store: DeviceStore, **facts: Any) -> None:
    """Keep facts where the disk has room: a session is worth more than a note of it."""
    with contextlib.suppress(EnvironmentFault):
        store.put(**facts)
