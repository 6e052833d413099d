# SPDX-License-Identifier: Apache-2.0
"""An earlier head published again: what goes with it, what is void, and a request that a gateway finds too late."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from inprocess import running

from fl_tiny import statedir
from fl_tiny.errors import DataError
from fl_tiny.gateway import heads, keys, setup
from fl_tiny.gateway.gather import Made, delta_to, make_version
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import OpenRound, Version
from fl_tiny.protocol import delta, signed, wire
from fl_tiny.protocol.aggregate import Published
from fl_tiny.protocol.update import HeadBody

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"
LATER = 4  # heads after the model's own


@pytest.fixture
def gw(tmp_path: Path) -> Path:
    """A gateway with some heads, each a little different from the one before, and a round that is open."""
    gw = tmp_path / "gw"
    setup.initialise(gw, MODEL, None, Wanted(None))
    with closing(Store.open(gw / statedir.DATABASE)) as store:
        seed = keys.seed_of(gw, store)
        manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
        for number in range(1, LATER + 1):
            base = store.head()
            codes = np.frombuffer(base.body, np.int8).copy()
            codes[number] += 1
            head = description(base)
            body = HeadBody(codes.tobytes(), head.scales)
            made = Made(Published(body, b"r" * 4), (0.1 * number,) * len(manifest.shapes), None,
                        delta_to(body, base, head.scales, manifest.shapes))  # fmt: skip
            store.open_round(OpenRound(bytes([number]) * 8, number, number - 1, 60.0, "train"))
            version = make_version(number, made, head.manifest, seed, None, store.epoch)
            store.publish(bytes([number]) * 8, version, 1.0, strategy={"velocity": b"v"})
        store.open_round(OpenRound(b"o" * 8, LATER + 1, LATER, 60.0, "train"))
        assert not store.faults()
    return gw


def description(version: Version) -> wire.Head:
    return wire.decode(wire.Head, signed.payload_of(version.signed))


def test_a_head_comes_back_with_its_steps_and_what_came_since_is_void(gw: Path) -> None:
    with closing(Store.open(gw / statedir.DATABASE)) as store:
        old, last = store.version(2), store.head()
        new = heads.roll_back(gw, 2)
        assert store.head() == new and new.number == LATER + 1
        assert (new.body, new.digest, new.steps) == (old.body, old.digest, old.steps)
        assert new.residual == b"" and store.version(LATER).residual == b""
        head = description(new)
        assert signed.verify(new.signed, store.get("gateway_pk"))
        assert head.since == new.number > description(last).rank[1], "residuals of every device are void"
        assert head.delta is not None and head.delta.base == last.digest
        assert store.strategy_state() == {} and store.opened() is None and store.get("rollback") is None
        assert store.rounds()[-1]["kind"] == "rollback" and not store.faults()
        assert store.since() == new.number and store.solved() is None, (
            "later heads say so, too; training stays as it is"
        )
        shapes = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest"))).shapes
        found = delta.difference(last.body, new.body, shapes)
        assert found and delta.applied(last.body, found[1], found[0], shapes) == new.body


def test_a_request_that_came_too_late_is_dropped_and_the_gateway_goes_on(gw: Path) -> None:
    async def story() -> None:
        async with running(gw) as (gateway, _):
            gateway.store.put(rollback=99)
            gateway._roll_back()
            assert gateway.store.get("rollback") is None and gateway.head.number == LATER
            gateway.store.put(rollback=1)
            gateway._roll_back()
            assert gateway.head.number == LATER + 1 and gateway.head.digest == gateway.store.version(1).digest
            promised = gateway.promised.delta(gateway.head, gateway.manifest)
            assert promised and len(promised) == description(gateway.head).delta.size  # type: ignore[union-attr]

    asyncio.run(story())


@pytest.mark.parametrize(("number", "why"), [(LATER, "in use"), (LATER + 1, "no head"), (-1, "no head")])
def test_a_head_that_is_not_there_or_in_use_is_refused(gw: Path, number: int, why: str) -> None:
    with pytest.raises(DataError, match=why):
        heads.roll_back(gw, number)
    with closing(Store.open(gw / statedir.DATABASE)) as store:
        assert store.head().number == LATER and store.opened() is not None and store.get("rollback") is None
