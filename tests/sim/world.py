# SPDX-License-Identifier: Apache-2.0
"""A gateway and its devices in one thread on a clock of their own, over a network that loses, repeats and delays.

Both ends are the product's: ``Gateway`` and ``Resources`` over a real ledger, ``Agent`` over a device's database. In
place of a socket a message is handed over, or not, as drawn; in place of a training child codes are drawn. Time passes
when nothing else is left to do, so an hour costs what is done in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import selectors
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fl_tiny import statedir
from fl_tiny.device import agent, find, job
from fl_tiny.device.agent import Agent
from fl_tiny.device.budget import NOTHING
from fl_tiny.device.intake import Sample
from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway import setup
from fl_tiny.gateway.encodings import Encodings
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.resources import Resources
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.net.coap import Request, Response
from fl_tiny.protocol import wire
from fl_tiny.protocol.rounds import RoundSettings
from tests.inprocess import enrolled, running

MODEL = Path(__file__).parents[1] / "models/bench/head_224-16-4.tflite"
PARAMETERS = 224 * 16 + 16 + 16 * 4 + 4
FEATURES = 224
PATIENCE_S = 24.0  # three sessions of 8 s in a row without an answer (net/client.py)
ROUNDS = RoundSettings(deadline_s=120.0, interval_s=20.0)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Hasty(self))

    def time(self) -> float:
        return self.now


class _Hasty(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing is left to do, for ever"
            self._clock.now += timeout
        return found


class Network:
    """What becomes of a message. loss: share of requests, and of answers, that never come; as many come twice."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.loss = 0.0
        self.delay_s = 0.01

    async def pass_on(self) -> bool:
        """Take a message's time; False when it is lost."""
        await asyncio.sleep(self.rng.uniform(0.2, 1.8) * self.delay_s)
        return self.rng.random() >= self.loss

    def repeats(self) -> bool:
        """Does this message come twice?"""
        return self.rng.random() < self.loss


class Wire:
    """A device's session as ``Link`` uses it: net/client.py's surface over ``Network``."""

    def __init__(self, world: World, identity: str) -> None:
        self._world, self.identity = world, identity
        self.kept: Any = {}
        self._closed = False

    async def request(
        self, method: str, path: tuple[str, ...], payload: bytes = b"", form: int | None = None
    ) -> Response:
        asked = Request(method, path, payload, form, None, None, self.identity, self)
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while asyncio.get_running_loop().time() < end:
            answer = await self._once(asked)
            if answer is not None:
                return answer
            await asyncio.sleep(2.0)  # CoAP asks again; the request is idempotent
        raise EnvironmentFault("no answer")

    async def _once(self, asked: Request) -> Response | None:
        network = self._world.network
        arrives = await network.pass_on()
        gateway = self._world.resources
        if not arrives or gateway is None or gateway.key_of(self.identity) is None:
            return None
        handled = [asyncio.ensure_future(gateway.handle(asked)) for _ in range(1 + network.repeats())]
        await asyncio.wait(handled, timeout=PATIENCE_S)
        if not handled[-1].done() or gateway is not self._world.resources:
            return None  # it died over it
        return handled[-1].result() if await network.pass_on() else None

    async def get(self, path: tuple[str, ...], *, size_limit: int) -> Response:
        answer = await self.request("GET", path)
        assert len(answer.payload) <= size_limit
        return answer

    async def fetch(self, path: tuple[str, ...], *, size_limit: int) -> bytes:
        answer = await self.get(path, size_limit=size_limit)
        if answer.code != "2.05":
            raise RemoteError(answer.code)
        return answer.payload

    async def fetch_whole(self, path: tuple[str, ...], size: int) -> bytes:
        return await self.fetch(path, size_limit=size)

    async def put_all(
        self,
        path_of: Callable[[int], tuple[str, ...]],
        body: bytes,
        content_format: int,
        *,
        held: bytes = b"",
        check: Callable[[Response], None],
    ) -> None:
        for at in range(0, len(body), 1024):
            check(await self.request("PUT", path_of(at), body[at : at + 1024], content_format))

    def exporter(self, label: bytes, length: int) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None:
        self._closed = True

    def close(self) -> Any:
        """The gateway ends a session at once, a device waits for it."""
        self._closed = True
        return self.aclose()


class Trainer:
    """A training child's surface (device/child.py): drawn codes a moment later."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.words: asyncio.Queue[Any] = asyncio.Queue()
        self.lack = NOTHING
        self._task: asyncio.Task[None] | None = None

    @property
    def works(self) -> bool:
        return self._task is not None

    def look(self) -> Any:
        return NOTHING

    async def heard(self, seconds: float) -> Any:
        return await asyncio.wait_for(self.words.get(), seconds)

    def start(self, wanted: bytes) -> None:
        self._task = asyncio.ensure_future(self._work(wire.decode(job.Job, wanted, limit=job.FRAME_LIMIT)))

    async def _work(self, wanted: job.Job) -> None:
        await asyncio.sleep(1.0)
        if wanted.offer is not None:
            number = wire.decode(wire.Offer, wanted.offer).number
            codes = random.Random(number).randbytes(PARAMETERS).replace(b"\x80", b"\0")
            await self.words.put(job.Trained(codes, 10 + number % 7, bytes(2 * PARAMETERS)))
        if wanted.choose:
            await self.words.put(job.Chosen("previous", 0))
        await self.words.put(None)

    def ended(self) -> None:
        self._task = None

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()


class World:
    """One fleet. receipts: by device, (rid, SHA-256 of the update) of each that was said to be accepted."""

    def __init__(self, fleet: Path, root: Path, devices: list[bytes], seed: int) -> None:
        shutil.copytree(fleet, root, dirs_exist_ok=True)
        self.root, self.devices = root, devices
        self.loop = Clock()
        self.network = Network(seed)
        self.resources: Resources | None = None
        self.gateway: Gateway | None = None
        self.receipts: dict[bytes, list[tuple[bytes, bytes]]] = {did: [] for did in devices}
        self.faults: list[BaseException] = []
        self._tasks: dict[object, asyncio.Task[None]] = {}

    # ---- what a test does -----------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let everybody work so long; a fault of our own in any of them is raised here."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for name, task in self._tasks.items():
            if task.done() and not task.cancelled() and task.exception() is not None:
                raise AssertionError(f"{name!r} ended") from task.exception()

    def start_gateway(self) -> None:
        """A gateway's process begins."""
        store = Store.open(self.root / "gw" / statedir.DATABASE)
        seed = statedir.read_secret(self.root / "gw", setup.GATEWAY_KEY)
        models = Models(store, self.root / "gw", seed)
        self.gateway = Gateway(store, models, seed, ROUNDS, wire.Train(1, 16), 100, encodings=Encodings("int8"))
        self.resources = Resources(self.gateway)
        self._start("gateway", self.gateway.run(None))

    def kill_gateway(self) -> None:
        """It ends with all that it has not committed."""
        assert self.gateway is not None and self.resources is not None
        gateway, commits = self.gateway, self.resources._commits
        self.gateway = self.resources = None
        if commits._timer is not None:
            commits._timer.cancel()
        self._end("gateway")
        gateway.store.close()

    def start_device(self, did: bytes) -> None:
        """A device's daemon begins."""
        self._start(did, Agent(self.root / did.hex(), self._emit).run(once=False, rounds=None))

    def kill_device(self, did: bytes) -> None:
        """It ends, wherever it is."""
        self._end(did)

    def learn(self, did: bytes, count: int) -> None:
        """Samples come in, from a program beside the daemon."""
        with closing(DeviceStore.open(self.root / did.hex() / statedir.DATABASE)) as store:
            first = store.sample_count()[0]
            rows = (Sample(random.Random(n).randbytes(FEATURES), n % 4) for n in range(first, first + count))
            store.add_samples(rows, 500)

    def forget(self, did: bytes) -> None:
        """All its samples go, and an update that is owed with them."""
        with closing(DeviceStore.open(self.root / did.hex() / statedir.DATABASE)) as store:
            store.forget(None)

    # ---- what must hold -------------------------------------------------------------------------------------

    def wrong(self) -> list[str]:
        """What of I2 and I3 (docs/failures.md) does not hold now, and devices that believe in more than there is."""
        with closing(Store.open(self.root / "gw" / statedir.DATABASE)) as store:
            found, newest = store.faults(), store.head().number
            for did in self.devices:
                for rid, digest in self.receipts[did]:
                    entry = store.entry(rid, did)
                    if entry is None or hashlib.sha256(entry[0]).digest() != digest:
                        found.append(f"I3: a receipt of {did.hex()[:8]} without a row")
                with closing(DeviceStore.open(self.root / did.hex() / statedir.DATABASE)) as held:
                    if held.head().version > newest:
                        found.append("a device holds a head that was not published")
                    query = "SELECT count(*) FROM ledger WHERE did=? AND status=0"
                    taken = store._db.execute(query, (did,)).fetchone()[0]
                    if held.rounds > taken:
                        found.append(f"a device counts {held.rounds} rounds, the ledger took {taken}")
        return found

    def published(self) -> dict[int, set[bytes]]:
        """By number of a head, the devices whose updates are in it."""
        with closing(Store.open(self.root / "gw" / statedir.DATABASE)) as store:
            rows = store._db.execute("SELECT consumed_by, did FROM ledger WHERE consumed_by IS NOT NULL").fetchall()
        found: dict[int, set[bytes]] = {}
        for number, did in rows:
            found.setdefault(number, set()).add(did)
        return found

    def close(self) -> None:
        """End everybody."""
        for name in list(self._tasks):
            self._end(name)
        if self.gateway is not None:
            self.gateway.store.close()
        self.loop.close()

    def _start(self, name: object, work: Any) -> None:
        self._tasks[name] = self.loop.create_task(work)

    def _end(self, name: object) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        with suppress(asyncio.CancelledError, EnvironmentFault):
            self.loop.run_until_complete(task)

    def _emit(self, *_: Any) -> None:
        pass

    async def open_link(self, _directory: Path, store: DeviceStore, _settings: Any) -> tuple[Link, str]:
        """In place of device/find.py: a session, when the gateway is there and has the key."""
        did: bytes = store.get("did")
        if self.resources is None or self.resources.key_of(did.hex()) is None:
            await asyncio.sleep(1.0)
            raise EnvironmentFault("nobody answers")
        return _Noting(Wire(self, did.hex()), self.receipts[did]), "here"  # type: ignore[arg-type]


class _Noting(Link):
    """A link that notes each receipt a device gets to see."""

    def __init__(self, client: Any, receipts: list[tuple[bytes, bytes]]) -> None:
        super().__init__(client)
        self._receipts = receipts

    async def upload(self, message: bytes, codes: bytes, *, again: bool) -> wire.Receipt:
        receipt = await super().upload(message, codes, again=again)
        if receipt.status in (wire.Status.ACCEPTED, wire.Status.DUPLICATE):
            assert receipt.update == hashlib.sha256(message).digest()
            self._receipts.append((receipt.rid, receipt.update))
        return receipt


def fleet(root: Path, devices: int) -> list[bytes]:
    """A gateway's directory ``gw`` below ``root`` and one a device, named by its id, as enrolment leaves them."""
    setup.initialise(root / "gw", MODEL, None, setup.Wanted(2))

    async def enrol() -> list[bytes]:
        async with running(root / "gw") as (_, server):
            return [await enrolled(root / "gw", server.port, root / str(n)) for n in range(devices)]

    dids = asyncio.run(enrol())
    for n, did in enumerate(dids):
        (root / str(n)).rename(root / did.hex())
    return dids


@contextmanager
def alive(fleet_root: Path, root: Path, devices: list[bytes], seed: int) -> Iterator[World]:
    """A world whose time is everybody's."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(fleet_root, root, devices, seed)
        patch.setattr(time, "monotonic", world.loop.time)
        patch.setattr(agent, "Child", Trainer)
        patch.setattr(find, "open_link", world.open_link)
        try:
            yield world
        finally:
            world.close()
