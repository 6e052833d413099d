# SPDX-License-Identifier: Apache-2.0
"""Sensors as a board's kernel shows them, what is made of them, and a real child that waits for the means to go on."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.device import budget, child, job
from fl_tiny.device.budget import NOTHING, Limits, Reading
from fl_tiny.protocol.wire import Lack

LIMITS = Limits(temperature=85.0, battery=30.0, memory_pressure=25.0, load=2.0)
PATIENCE_S = 30.0


def sensors(root: Path, **files: str) -> Path:
    """A tree of sensors: ``thermal_zone0`` and so on as in sys, ``pressure`` and ``loadavg`` as in proc."""
    places = {
        "zone0": "sys/class/thermal/thermal_zone0/temp",
        "zone1": "sys/class/thermal/thermal_zone1/temp",
        "battery_type": "sys/class/power_supply/BAT0/type",
        "battery_status": "sys/class/power_supply/BAT0/status",
        "battery_capacity": "sys/class/power_supply/BAT0/capacity",
        "pressure": "proc/pressure/memory",
        "loadavg": "proc/loadavg",
    }
    for name, text in files.items():
        path = root / places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_board_with_every_sensor_is_read(tmp_path: Path) -> None:
    root = sensors(
        tmp_path,
        zone0="48312\n",
        zone1="61000\n",
        battery_type="Battery\n",
        battery_status="Discharging\n",
        battery_capacity="41\n",
        pressure="some avg10=12.34 avg60=1.00 avg300=0.00 total=1\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=1\n",
        loadavg="3.00 2.00 1.00 2/345 6789\n",
    )
    assert budget.read(root) == Reading(61.0, 41.0, 12.34, 3.0 / (os.cpu_count() or 1))


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_that_is_charged_limits_nothing(tmp_path: Path, status: str) -> None:
    root = sensors(tmp_path, battery_type="Battery", battery_status=status, battery_capacity="3")
    assert budget.read(root).battery is None


@pytest.mark.parametrize("text", ["", "nan", "-274000", "1e99", "\x00\xff", "999999"])
def test_a_broken_or_absent_sensor_decides_nothing(tmp_path: Path, text: str) -> None:
    root = sensors(tmp_path, zone0=text, pressure=text, loadavg=text)
    found = budget.read(root)
    assert found.temperature is None or -200 < found.temperature < 200
    assert budget.lacking(Reading(), LIMITS) == NOTHING == budget.lacking(budget.read(tmp_path / "none"), LIMITS)


def test_this_machine_can_be_read() -> None:
    assert budget.read().load is not None


READINGS = st.builds(
    Reading,
    temperature=st.none() | st.floats(-40, 150),
    battery=st.none() | st.floats(0, 100),
    memory_pressure=st.none() | st.floats(0, 100),
    load=st.none() | st.floats(0, 50),
)


@given(READINGS)
def test_what_lacks_stays_lacking_until_it_is_better_than_the_limit(reading: Reading) -> None:
    fresh = budget.lacking(reading, LIMITS)
    again = budget.lacking(reading, LIMITS, fresh)
    assert again == fresh, "the same reading gives the same word"
    assert fresh in budget.lacking(reading, LIMITS, Lack(15)), "a memory of lack never makes one go away"
    assert budget.lacking(reading, Limits()) == NOTHING


def test_the_limits_are_those_that_people_set() -> None:
    hot, cooler, cool = Reading(temperature=85.1), Reading(temperature=84.0), Reading(temperature=79.9)
    assert budget.lacking(hot, LIMITS) == Lack.TEMPERATURE
    assert budget.lacking(cooler, LIMITS) == NOTHING
    assert budget.lacking(cooler, LIMITS, Lack.TEMPERATURE) == Lack.TEMPERATURE
    assert budget.lacking(cool, LIMITS, Lack.TEMPERATURE) == NOTHING
    assert budget.lacking(Reading(battery=29.0), LIMITS) == Lack.BATTERY
    both = budget.lacking(Reading(memory_pressure=30.0, load=2.5), LIMITS)
    assert both.names() == ["memory", "load"]


# A child that says something every 50 ms and ends of itself: what stands still says nothing.
TALKER = """
import sys, time
from fl_tiny.device.job import Failed, frame
sys.stdin.buffer.read()
for at in range({words}):
    sys.stdout.buffer.write(frame(Failed(str(at)))); sys.stdout.buffer.flush(); time.sleep(0.05)
"""


def talking(monkeypatch: pytest.MonkeyPatch, words: int) -> None:
    """Let the child be a program that talks, and look at the sensors often."""
    program = TALKER.format(words=words)
    monkeypatch.setattr(child, "command", lambda directory, background: [sys.executable, "-c", program])
    monkeypatch.setattr(child, "LOOK_EVERY_S", 0.02)


async def started(root: Path) -> tuple[child.Child, child.Word]:
    """A child below the sensors of ``root``, and its first word."""
    made = child.Child(root, LIMITS, background=False, sensors=root)
    made.start(b"")
    return made, await said(made)


async def said(made: child.Child, patience: float = PATIENCE_S) -> child.Word:
    return await asyncio.wait_for(made.words.get(), patience)


def test_a_child_stands_still_while_the_board_is_too_hot_and_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking(monkeypatch, 20)
    sensors(tmp_path, zone0="60000")

    async def work() -> None:
        made, first = await started(tmp_path)
        assert isinstance(first, job.Failed)
        sensors(tmp_path, zone0="90000")
        words = [first]
        while not isinstance(word := await said(made), Lack):
            words.append(word)
        assert word == Lack.TEMPERATURE
        while not made.words.empty():  # what was on its way
            words.append(made.words.get_nowait())
        with pytest.raises(asyncio.TimeoutError):
            await said(made, 0.5)
        sensors(tmp_path, zone0="70000")
        assert await said(made) == NOTHING
        while (word := await said(made)) is not None:
            words.append(word)
        assert [word.why for word in words if isinstance(word, job.Failed)] == [str(at) for at in range(20)]

    asyncio.run(work())


def test_a_child_ends_when_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talking(monkeypatch, 10_000)
    sensors(tmp_path, pressure="some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")

    async def work() -> None:
        made, _ = await started(tmp_path)
        sensors(tmp_path, pressure="some avg10=60.00 avg60=0.00 avg300=0.00 total=0\n")
        last = None
        while (word := await said(made)) is not None:
            last = word
        assert last == Lack.MEMORY, "it did not fail: nothing is wrong with what it was at"

    asyncio.run(work())


def test_an_end_that_comes_together_with_a_word_is_an_end(tmp_path: Path) -> None:
    async def work() -> None:
        made = child.Child(tmp_path, LIMITS, background=False, sensors=tmp_path)
        for steps in range(4):  # of the loop, between the word and the end
            hearing = asyncio.ensure_future(made.heard(5))
            await asyncio.sleep(0.01)
            made.words.put_nowait(NOTHING)
            for _ in range(steps):
                await asyncio.sleep(0)
            if hearing.done():
                break
            hearing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hearing
            while not made.words.empty():
                made.words.get_nowait()
        assert steps > 0

    asyncio.run(work())


def test_an_agent_that_ends_takes_a_child_that_stands_still_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking(monkeypatch, 10_000)
    sensors(tmp_path, zone0="60000")

    async def work() -> None:
        made, _ = await started(tmp_path)
        sensors(tmp_path, zone0="90000")
        while not isinstance(await said(made), Lack):
            pass
        await asyncio.wait_for(made.end(), 5)

    asyncio.run(work())
    assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
