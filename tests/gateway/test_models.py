# SPDX-License-Identifier: Apache-2.0
"""A newer model at the gateway: for a share that grows, for all once it is carried, the same after a restart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny import statedir
from fl_tiny.errors import ConfigError
from fl_tiny.gateway import manifests, models, setup
from fl_tiny.gateway.manifests import Wanted, settle, sign
from fl_tiny.gateway.models import Models, in_share
from fl_tiny.gateway.store import Store
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.manifest import ManifestFile

BENCH = Path(__file__).parents[1] / "models/bench"
FIRST, SECOND = BENCH / "head_64x10.tflite", BENCH / "head_224-16-4.tflite"
SHARES = st.floats(0.001, 1.0)


@given(st.binary(min_size=16, max_size=16), SHARES, SHARES)
def test_a_larger_share_only_adds_devices(did: bytes, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert in_share(did, large) or not in_share(did, small)
    assert in_share(did, 1.0)


def test_a_share_is_about_that_share_of_the_devices() -> None:
    dids = [number.to_bytes(16, "big") for number in range(4000)]
    for share in (0.05, 0.2, 0.5):
        found = sum(in_share(did, share) for did in dids) / len(dids)
        assert abs(found - share) < 4 * (share * (1 - share) / len(dids)) ** 0.5


class Rig:
    def __init__(self, root: Path) -> None:
        self.gw = root / "gw"
        setup.initialise(self.gw, FIRST, None, Wanted(None))
        self.key = statedir.read_secret(self.gw, manifests.MODEL_KEY)
        self.seed = statedir.read_secret(self.gw, setup.GATEWAY_KEY)
        self.store = Store.open(self.gw / statedir.DATABASE)

    def models(self) -> Models:
        """As a gateway that has just been started."""
        found = Models(self.store, self.gw, self.seed)
        found.refresh()
        return found

    def publish(self, file: Path, counter: int, share: float) -> None:
        made = settle(file, None, Wanted(2 if file == SECOND else None), counter=counter)
        written = wire.decode(ManifestFile, sign(self.key, made), limit=ManifestFile.LIMIT)
        models.publish(self.gw, self.store, file, written, share)

    def device(self) -> bytes:
        seed = os.urandom(32)
        pk = signed.public_key(seed)
        did = signed.device_id(pk)
        token = os.urandom(8)
        self.store.add_pairings([(token, os.urandom(16))], 60.0)
        self.store.enrol(token, did, pk, os.urandom(32), None)
        self.store.activate(did)
        return did


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    with closing(found.store):
        yield found


def test_rounds_go_over_when_all_may_have_it_and_half_of_them_do(rig: Rig) -> None:
    dids = [rig.device() for _ in range(4)]
    running = rig.models()
    for did in dids:
        running.note(did, 1, None)
    rig.publish(SECOND, 2, 0.5)
    running = rig.models()
    told = {did: running.wanted(did) for did in dids}
    assert [did for did in dids if told[did]] == [did for did in dids if in_share(did, 0.5)]
    for did in dids:
        running.note(did, 2, None)
    assert not running.is_carried(dids), "half of the devices were meant to try it, not all to take it"

    rig.publish(SECOND, 2, 1.0)
    for holding in range(5):
        running = rig.models()
        for place, did in enumerate(dids):
            running.note(did, 2 if place < holding else 1, None)
        assert running.is_carried(dids) == (holding >= 2)
    assert not running.is_carried([]), "an empty house carries nothing"


def test_who_holds_what_is_the_same_after_a_restart_and_each_model_keeps_its_head(rig: Rig) -> None:
    old, new, refusing = (rig.device() for _ in range(3))
    running = rig.models()
    rig.publish(SECOND, 2, 1.0)
    running.refresh()
    running.note(old, 1, None)
    running.note(new, 2, None)
    running.note(refusing, 1, wire.Refusal(2, 21, "it says the same of every input"))
    before = rig.store.head()
    version = running.complete()
    for state in (running, rig.models()):
        head = rig.store.head()
        assert (head.number, head.digest) == (before.number + 1, version.digest)
        assert state.current.manifest.counter == 2 and state.staged is None
        assert state.trains(new) and not state.trains(old) and not state.trains(refusing)
        assert state.head(old, head).digest == before.digest and state.head_number(old, head.number) == before.number
        assert state.head(new, head).digest == head.digest
        assert state.wanted(old) is not None and state.wanted(refusing) is None and state.wanted(new) is None
        assert state.named(wire.name_of(state.current.manifest.digest)) == SECOND.read_bytes()
    assert rig.store.faults() == []
    rows = {row["id"]: row for row in setup.device_rows(rig.store)}
    assert "the same of every input" in rows[refusing.hex()]["trouble"] and rows[old.hex()]["trouble"] is None
    assert models.rollout(rig.store) == {"counter": 2, "share": 1.0, "holding": 1, "refused": 1}
    rig.publish(FIRST, 3, 0.001)  # back to the older model, under a higher counter
    assert rig.models().staged is not None


def test_a_counter_never_falls_and_a_share_never_shrinks_while_somebody_holds_it(rig: Rig) -> None:
    did = rig.device()
    with pytest.raises(ConfigError, match="not above"):
        rig.publish(SECOND, 1, 1.0)
    rig.publish(SECOND, 3, 0.5)
    with pytest.raises(ConfigError, match="on its way"):
        rig.publish(SECOND, 2, 0.5)
    rig.publish(SECOND, 3, 0.2)  # nobody has it yet
    rig.models().note(did, 3, None)
    with pytest.raises(ConfigError, match="only grows"):
        rig.publish(FIRST, 4, 0.1)
    rig.publish(FIRST, 4, 0.3)
