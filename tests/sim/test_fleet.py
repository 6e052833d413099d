# SPDX-License-Identifier: Apache-2.0
"""Whatever is lost, repeated, killed or forgotten, and in whichever order: rounds go on, and each receipt was true."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fl_tiny.gateway.store import Store

from .world import World, alive, fleet

DEVICES = 3
WHO = st.integers(0, DEVICES - 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A fleet as enrolment leaves it; each example begins with a copy."""
    path = tmp_path_factory.mktemp("fleet")
    return path, fleet(path, DEVICES)


@contextmanager
def made(root: tuple[Path, list[bytes]], seed: int) -> Iterator[World]:
    """A fleet with samples, everybody awake."""
    with tempfile.TemporaryDirectory() as folder, alive(root[0], Path(folder), root[1], seed) as world:
        world.start_gateway()
        for did in world.devices:
            world.learn(did, 40)
            world.start_device(did)
        yield world


def machine(root: tuple[Path, list[bytes]]) -> type[RuleBasedStateMachine]:
    """The rules over one fleet."""

    class Fleet(RuleBasedStateMachine):
        @initialize(seed=st.integers(0, 2**32))
        def begin(self, seed: int) -> None:
            self.context = made(root, seed)
            self.world = self.context.__enter__()
            self.down: set[bytes] = set()

        def who(self, number: int) -> bytes:
            return self.world.devices[number]

        @rule(seconds=st.floats(0.01, 60))
        def time_passes(self, seconds: float) -> None:
            self.world.pass_time(seconds)

        @rule(loss=st.sampled_from([0.0, 0.1, 0.3, 1.0]), delay_s=st.sampled_from([0.001, 0.1, 1.0]))
        def the_network_changes(self, loss: float, delay_s: float) -> None:
            self.world.network.loss, self.world.network.delay_s = loss, delay_s

        @precondition(lambda self: self.world.gateway is not None)
        @rule()
        def the_gateway_is_killed(self) -> None:
            self.world.kill_gateway()

        @precondition(lambda self: self.world.gateway is None)
        @rule()
        def the_gateway_starts(self) -> None:
            self.world.start_gateway()

        @rule(number=WHO)
        def a_device_is_killed_or_starts(self, number: int) -> None:
            did = self.who(number)
            if did in self.down:
                self.world.start_device(did)
            else:
                self.world.kill_device(did)
            self.down ^= {did}

        @rule(number=WHO, count=st.integers(1, 30))
        def samples_come(self, number: int, count: int) -> None:
            self.world.learn(self.who(number), count)

        @rule(number=WHO)
        def samples_are_forgotten(self, number: int) -> None:
            self.world.forget(self.who(number))

        @invariant()
        def what_was_acknowledged_is_there(self) -> None:
            if hasattr(self, "world"):
                assert self.world.wrong() == []

        def teardown(self) -> None:
            if not hasattr(self, "world"):
                return
            try:
                self.recovers()
            finally:
                self.context.__exit__(None, None, None)

        def recovers(self) -> None:
            """With everybody awake and the network well, the next rounds count all devices."""
            world = self.world
            world.network.loss, world.network.delay_s = 0.0, 0.01
            if world.gateway is None:
                world.start_gateway()
            for did in self.down:
                world.start_device(did)
            for did in world.devices:
                world.learn(did, 40)
            before = max(world.published(), default=0)
            for _ in range(60):  # half an hour: the longest back-off is 900 s
                world.pass_time(30.0)
                after = {number: dids for number, dids in world.published().items() if number > before}
                if any(dids == set(world.devices) for dids in after.values()):
                    break
            else:
                pytest.fail(f"no round counts everybody: {after}")
            assert world.wrong() == []

    return Fleet


def run_examples(root: tuple[Path, list[bytes]], count: int) -> None:
    """Draw so many runs of the fleet. None is made smaller when it fails: its steps are printed, and it is short."""
    chosen = settings(
        max_examples=count,
        stateful_step_count=25,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    run_state_machine_as_test(machine(root), settings=chosen)


def test_whatever_happens_in_whichever_order(root: tuple[Path, list[bytes]]) -> None:
    run_examples(root, 20)


def test_a_quiet_fleet_publishes_a_head_every_interval(root: tuple[Path, list[bytes]]) -> None:
    with made(root, 1) as world:
        world.pass_time(600.0)
        assert world.wrong() == []
        counted = world.published()
        assert len(counted) >= 15 and all(dids == set(world.devices) for dids in counted.values())


def test_control_a_receipt_before_its_commit_is_seen(
    root: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that says accepted and forgets: the invariant must not hold."""
    with made(root, 1) as world:
        monkeypatch.setattr(Store, "receive", lambda self, rid, entries: {})
        world.pass_time(60.0)
        assert any(fault.startswith("I3") for fault in world.wrong())
