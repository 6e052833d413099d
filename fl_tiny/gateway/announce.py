# SPDX-License-Identifier: Apache-2.0
"""A gateway announces itself by DNS-SD while it runs, where zeroconf is installed; whatever that does, rounds go on."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import AsyncIterator, Sequence

from fl_tiny import config
from fl_tiny.net.multicast import opened
from fl_tiny.net.udp import resolve
from fl_tiny.protocol.announced import SERVICE, mark_of, txt_of

log = logging.getLogger(__name__)

STOP_S = 2.0  # for saying goodbye
ANY = ("::", "0.0.0.0")  # noqa: S104 - compared with


def interface_of(bind: str) -> str | None:
    """The address of the one interface to announce on, "" for all; None when nobody else can reach ``bind``."""
    host = config.address(bind, 0)[0]
    if host in ANY:
        return ""
    try:
        return None if ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return None if host == "localhost" else ""


@contextlib.asynccontextmanager
async def announced(where: str, keys: Sequence[bytes], interface: str) -> AsyncIterator[None]:
    """Announce a gateway that devices reach at ``where``, until the block ends.

    keys: as in ``txt_of``.   interface: as in ``interface_of``.
    """
    task = asyncio.create_task(_announce(where, keys, interface))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=STOP_S)


async def _announce(where: str, keys: Sequence[bytes], interface: str) -> None:
    try:
        from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415 - only with the extra
    except ImportError:
        log.info("not announced: zeroconf is not installed")
        return
    try:
        host, port = config.address(where, 5684)
        hosts = [found[0] for found in await resolve(host, port)]
        # Two may have one key, such as an old gateway and the one restored from it: names must differ all the same.
        name = f"fl-tiny-{mark_of(keys[0])}-{os.urandom(4).hex()}"
        info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=port,
            properties=txt_of(keys),
            server=f"{name}.local.",
            parsed_addresses=hosts,
        )
        zeroconf = opened(interface or None)
        try:
            await (await zeroconf.async_register_service(info, allow_name_change=True))
            log.info("announced service=%s address=%s", SERVICE, where)
            await asyncio.Event().wait()
        finally:
            await zeroconf.async_close()
    except Exception as fault:  # a foreign library and any network: to be found is a comfort, rounds go on
        log.warning("not announced why=%r", str(fault))
