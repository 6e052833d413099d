# SPDX-License-Identifier: Apache-2.0
"""A gateway that bends its plan to see single samples in sums, against real devices (docs/privacy.md, "Floors")."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.fleet import Fleet, cli

from fl_tiny import statedir
from fl_tiny.device import child
from fl_tiny.device.agent import Agent
from fl_tiny.device.enrol import enrol
from fl_tiny.gateway import setup
from fl_tiny.gateway.gather import ExactOptions
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.resources import Resources
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.learn import gram
from fl_tiny.net.coap import Limits, Server
from fl_tiny.protocol import consent, wire
from fl_tiny.protocol.rounds import RoundSettings

PATIENCE_S = 60.0
WIDTH = 224  # of the sums that this model's exact start asks for: 450 samples are the fewest
Bend = Callable[[wire.Offer], wire.Offer]
# The child as it was: it sums the youngest samples that the offer takes, whatever their number and class.
OLD_CHILD = """
import numpy as np
from fl_tiny.device import training, worker
from fl_tiny.learn import gram
from fl_tiny.device.job import Trained
def sums(samples, base, offer, floors=None):
    made = gram.Plan(offer.gram.layer, offer.gram.width, offer.gram.outputs, offer.gram.seed, offer.gram.shift)
    rows = np.flatnonzero(~samples.held)[-offer.max_samples:]
    found = gram.summed(samples.spec, samples.parameters(base), made, samples.features[rows], samples.labels[rows])
    return Trained(gram.to_bytes(found), found.samples)
worker.client_sums = sums
worker.main()
"""


@pytest.fixture
def no_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices as they were before the floors."""
    monkeypatch.setattr(consent, "_not_allowed", lambda *_: "")
    monkeypatch.setattr("fl_tiny.device.left.Left.summed", lambda self: None)
    monkeypatch.setattr("fl_tiny.device.left.Left.digest", lambda self, manifest: None)
    monkeypatch.setattr(child, "command", lambda directory, background: [sys.executable, "-c", OLD_CHILD, directory])


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    yield found
    found.end()


@dataclass
class Attacker:
    """A gateway under an attacker's hands. seen: the sums that came.   said: why a device would not."""

    gateway: Gateway
    port: int
    seen: list[gram.Sums] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def ask(self, device: Path, bend: Bend = lambda offer: offer) -> None:
        """Open a round with a bent plan, see what the device sends for it, and end the round as if it had failed."""
        gateway, offer, done = self.gateway, type(self.gateway).offer, asyncio.Event()
        gateway.offer = lambda did: bend(offer(gateway, did))  # type: ignore[method-assign]
        gateway._open(time.monotonic())
        rid = gateway.rounds.rid
        assert rid is not None

        def heard(event: str, facts: dict[str, Any]) -> None:
            if facts.get("state") == "declined":
                self.said.append(facts.get("why", ""))
            if event == "update" or facts.get("state") == "declined":
                done.set()

        (device / "fl-tiny.toml").write_text(f'gateway = "127.0.0.1:{self.port}"\nlan_timing = true\n')
        run = asyncio.create_task(Agent(device, heard).run(once=False, rounds=None))
        try:
            await asyncio.wait_for(done.wait(), PATIENCE_S)
        finally:
            run.cancel()
            await asyncio.wait([run])
        bodies = [entry.codes for entry in gateway.store.accepted(rid)]
        self.seen += [gram.from_bytes(body, WIDTH, 4) for body in bodies if body is not None]
        gateway.store.abort(rid, "the attacker has what it wants", 1.0)
        gateway.rebuild()


@contextlib.asynccontextmanager
async def attacker(gw: Path) -> AsyncIterator[Attacker]:
    store = Store.open(gw / statedir.DATABASE)
    seed = statedir.read_secret(gw, setup.GATEWAY_KEY)
    rounds = RoundSettings(min_updates=9)  # with one device it never closes by itself
    gateway = Gateway(
        store, Models(store, gw, seed), seed, rounds, wire.Train(1, 16), 65_535, ExactOptions(True, min_samples=1)
    )
    resources = Resources(gateway)
    limits = Limits(pairings_per_s=1000.0, handshakes_per_s=1000)
    server = await Server.start(resources.handle, resources.key_of, "127.0.0.1:0", limits=limits)
    try:
        yield Attacker(gateway, server.port)
    finally:
        resources.close()
        await server.close()
        store.close()


def samples_of(device: Path) -> set[bytes]:
    """The features that the device stores: what the attacker is after."""
    with sqlite3.connect(device / "state.db") as db:
        return {bytes(row[0]) for row in db.execute("SELECT features FROM sample")}


def as_codes(numbers: np.ndarray) -> bytes:
    """Sums that are a sample, as its codes; others as nothing."""
    return numbers[:WIDTH].astype(np.int8).tobytes() if np.abs(numbers).max() < 2**15 else b""


def shown(device: Path, sums: gram.Sums) -> set[bytes]:
    """Stored samples that stand in sums: as all of them, or as the only one of a class."""
    vectors = [sums.gram[-1], *sums.moments.T]
    return samples_of(device) & {as_codes(np.asarray(vector)) for vector in vectors}


def attack(fleet: Fleet, plan: Callable[[Attacker, Path], Any], samples: int = 620) -> tuple[Attacker, Path]:
    """Enrol a device with samples and let the attacker carry out a plan."""
    device = fleet.root / "victim"

    async def run() -> Attacker:
        async with attacker(fleet.gw) as found:
            code = setup.new_codes(fleet.gw, 1, 600)[0]
            await enrol(device, code, f"127.0.0.1:{found.port}", "victim")
            await asyncio.to_thread(cli, "samples", "add", device, "--data", fleet.data("victim", samples, 1))
            await plan(found, device)
            return found

    return asyncio.run(run()), device


def only(count: int) -> Bend:
    return lambda offer: replace(offer, max_samples=count)


async def one_sample(found: Attacker, device: Path) -> None:
    await found.ask(device, only(1))


def test_one_sample_is_not_summed_for_a_plan_that_asks_for_it(fleet: Fleet) -> None:
    found, device = attack(fleet, one_sample)
    assert found.seen == [] and found.said[0].startswith("the plan takes 1 of")
    told = cli("device", "privacy", device)
    assert told["sent"] == [] and [row["why"] for row in told["refused"]] == found.said


@pytest.mark.usefixtures("no_floors")
def test_control_one_sample(fleet: Fleet) -> None:
    found, device = attack(fleet, one_sample)
    assert len(shown(device, found.seen[0])) == 1


async def two_windows(found: Attacker, device: Path) -> None:
    await found.ask(device, only(470))
    await found.ask(device, only(471))


def difference(found: Attacker, device: Path) -> set[bytes]:
    return samples_of(device) & {as_codes(np.asarray(found.seen[1].gram[-1] - found.seen[0].gram[-1]))}


def test_two_windows_that_differ_by_a_sample_are_not_summed(fleet: Fleet) -> None:
    found, _ = attack(fleet, two_windows)
    assert found.seen == [] and len(found.said) == 2


@pytest.mark.usefixtures("no_floors")
def test_control_two_windows(fleet: Fleet) -> None:
    found, device = attack(fleet, two_windows)
    assert len(difference(found, device)) == 1


async def plain(found: Attacker, device: Path) -> None:
    await found.ask(device)


def test_few_samples_are_not_summed(fleet: Fleet) -> None:
    found, _ = attack(fleet, plain, samples=84)
    assert found.seen == [] and "450 are the fewest" in found.said[0]


@pytest.mark.usefixtures("no_floors")
def test_control_few_samples(fleet: Fleet) -> None:
    found, _ = attack(fleet, plain, samples=84)
    assert found.seen[0].samples < 84


def test_a_class_with_one_sample_is_in_no_sums(fleet: Fleet, tmp_path: Path) -> None:
    found, device = attack(fleet, lambda a, d: with_a_rare_class(a, d, tmp_path))
    sums = found.seen[0]
    assert sums.samples >= 450 and sums.moments[-1].tolist()[3] == 0 and not sums.moments[:, 3].any()
    assert shown(device, sums) == set()


@pytest.mark.usefixtures("no_floors")
def test_control_a_class_with_one_sample(fleet: Fleet, tmp_path: Path) -> None:
    found, device = attack(fleet, lambda a, d: with_a_rare_class(a, d, tmp_path))
    assert len(shown(device, found.seen[0])) == 1


async def with_a_rare_class(found: Attacker, device: Path, root: Path) -> None:
    """Three classes as they are, and of the fourth one sample alone."""
    with sqlite3.connect(device / "state.db") as db:
        keep = db.execute("SELECT min(id) FROM sample WHERE label=3 AND held=0").fetchone()[0]
        db.execute("DELETE FROM sample WHERE label=3 AND id!=?", (keep,))
    data = np.load(root / "victim.npz")
    more = root / "more.npz"
    rows = data["y"] != 3
    flipped = (255 - (data["x"][rows].astype(np.int16) + 128) - 128).astype(np.int8)
    np.savez(more, x=flipped, y=data["y"][rows])
    await asyncio.to_thread(cli, "samples", "add", device, "--data", more)
    await found.ask(device)


async def a_second_set(found: Attacker, device: Path) -> None:
    """The same plan twice; in between one sample goes, as `samples forget` of a class with one sample does it."""
    await found.ask(device)
    with sqlite3.connect(device / "state.db") as db:
        db.execute("DELETE FROM sample WHERE id=(SELECT max(id) FROM sample WHERE held=0)")
    await found.ask(device)


def test_a_second_set_is_not_summed(fleet: Fleet) -> None:
    found, _ = attack(fleet, a_second_set)
    assert len(found.seen) == 1 and "sums of" in found.said[0]


@pytest.mark.usefixtures("no_floors")
def test_control_a_second_set(fleet: Fleet) -> None:
    found, _ = attack(fleet, a_second_set)
    first, second = found.seen
    lost = np.asarray(first.gram[-1] - second.gram[-1])
    assert lost[-1] == 1 and np.abs(lost[:WIDTH]).max() <= 128, "the sample that is gone, read from the difference"


def test_the_same_sums_may_be_asked_for_again_and_newer_samples_are_in_none(fleet: Fleet, tmp_path: Path) -> None:
    async def plan(found: Attacker, device: Path) -> None:
        await found.ask(device)
        more = await asyncio.to_thread(fleet.data, "more", 50, 7)
        await asyncio.to_thread(cli, "samples", "add", device, "--data", more)
        await found.ask(device)

    found, device = attack(fleet, plan)
    assert len(found.seen) == 2 and found.said == []
    assert (found.seen[0].gram == found.seen[1].gram).all() and (found.seen[0].moments == found.seen[1].moments).all()
    told = cli("device", "privacy", device)
    assert [row["kind"] for row in told["sent"]] == ["sums", "sums"] and told["summed"] == found.seen[0].samples
