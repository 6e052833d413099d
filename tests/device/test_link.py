# SPDX-License-Identifier: Apache-2.0
"""A head's way to a device: by a delta where there is one, whole where it leads elsewhere or is refused."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest

from fl_tiny.device.link import Link
from fl_tiny.device.store import HeldHead
from fl_tiny.errors import RemoteError
from fl_tiny.net.coap import Response
from fl_tiny.protocol import signed, update, wire
from fl_tiny.protocol.delta import difference

SEED = b"g" * 32
SHAPES = ((10, 64), (10,))
MANIFEST = b"m" * 32


class Gateway:
    """What a gateway would answer: a head, its body, its delta. Paths asked for are noted."""

    def __init__(self, old: bytes, new: update.HeadBody, delta: bytes) -> None:
        encoding, right = difference(old, new.body, SHAPES) or (wire.Encoding.INT4.value, b"")
        digest = hashlib.sha256(new.body).digest()
        said = wire.Delta(encoding, len(right), hashlib.sha256(old).digest())
        self._head = signed.sign(
            wire.encode(wire.Head(MANIFEST, 2, digest, len(new.body), new.scales, delta=said)), SEED
        )
        self._bodies = {"d": delta or right, "": new.body}
        self.asked: list[str] = []

    async def get(self, *_: object, size_limit: int) -> Response:
        assert size_limit == 4096
        return Response("2.05", self._head)

    async def fetch_whole(self, path: tuple[str, ...], _size: int) -> bytes:
        self.asked.append("d" if path[2:] == ("d",) else "")
        body = self._bodies[self.asked[-1]]
        if body == b"gone":
            raise RemoteError("4.04")
        return body


def heads() -> tuple[update.HeadBody, update.HeadBody]:
    rng = np.random.default_rng(1)
    base = update.encode_head([rng.normal(size=shape).astype(np.float32) for shape in SHAPES], update.ROOM)
    next_one = [tensor + np.float32(0.01) for tensor in update.decode_head(base, SHAPES)]
    return base, update.encode_next(base, next_one, SHAPES)


@pytest.mark.parametrize(
    ("held", "delta", "asked"),
    [
        ("base", b"", ["d"]),
        ("other", b"", [""]),  # several versions behind
        ("base", b"gone", ["d", ""]),
        ("base", b"\x88" * 40, ["d", ""]),  # no delta at all
        ("base", bytes(40), ["d", ""]),  # a delta that leads elsewhere
    ],
)
def test_a_head_comes_by_delta_or_whole(held: str, delta: bytes, asked: list[str]) -> None:
    base, new = heads()
    gateway = Gateway(base.body, new, delta)
    mine = HeldHead(1, b"", base.body if held == "base" else bytes(len(base.body)))
    link = Link(gateway)  # type: ignore[arg-type]
    got = asyncio.run(link.head(MANIFEST, len(base.body), signed.public_key(SEED), mine, SHAPES))
    assert got.body == new.body and got.version == 2 and gateway.asked == asked
