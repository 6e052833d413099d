# SPDX-License-Identifier: Apache-2.0
"""zeroconf, where it is installed, opened on the interfaces that there are."""

from __future__ import annotations

from typing import Any


def opened(interface: str | None) -> Any:
    """An AsyncZeroconf on the interface with an address, or on all; where those cannot be listed, on the default one.

    Listing takes netlink, which a hardened service may not have. Raises: ImportError; OSError when none can be used.
    """
    from zeroconf import InterfaceChoice  # noqa: PLC0415 - only with the extra
    from zeroconf.asyncio import AsyncZeroconf  # noqa: PLC0415

    if interface is not None:
        return AsyncZeroconf(interfaces=[interface])
    try:
        return AsyncZeroconf(interfaces=InterfaceChoice.All)
    except OSError:
        return AsyncZeroconf(interfaces=InterfaceChoice.Default)
