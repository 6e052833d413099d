# SPDX-License-Identifier: Apache-2.0
"""Whether the board can spare the means to train: memory, temperature, battery, load.

``read`` looks, ``lacking`` decides. A sensor that a board lacks decides nothing. Sources: the kernel's
accounting/psi.rst, driver-api/thermal/sysfs-api.rst and power/power_supply_class.rst (its Documentation folder).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_tiny.config import DeviceSettings
from fl_tiny.protocol.wire import Lack

SENSOR_LIMIT = 4096  # bytes read of one
# What was lacking is there again only when it is better than its limit by this much, so that nothing flutters.
MARGIN_C, MARGIN_PERCENT, MARGIN_SHARE = 5.0, 5.0, 0.1
ABSURD_C = 200.0  # a sensor that says more, or less than its negative, is broken


NOTHING = Lack(0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What training may take (docs/config.md). None: no limit.

    temperature: highest, degrees C.   battery: least, percent, while it discharges.
    memory_pressure: highest share of time, percent, in which some task waited for memory.   load: highest a processor.
    """

    temperature: float | None = None
    battery: float | None = None
    memory_pressure: float | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the board's sensors say, units as in ``Limits``; None where there is none. battery: None on mains power."""

    temperature: float | None = None
    battery: float | None = None
    memory_pressure: float | None = None
    load: float | None = None


def lacking(reading: Reading, limits: Limits, before: Lack = NOTHING) -> Lack:
    """What is lacking now. before: what was lacking at the last look, which must get better by a margin to count."""
    found = NOTHING
    for flag, over, margin in (
        (Lack.MEMORY, _over(reading.memory_pressure, limits.memory_pressure), MARGIN_PERCENT),
        (Lack.TEMPERATURE, _over(reading.temperature, limits.temperature), MARGIN_C),
        (Lack.BATTERY, _over(limits.battery, reading.battery), MARGIN_PERCENT),
        (Lack.LOAD, _over(reading.load, limits.load), MARGIN_SHARE * (limits.load or 0.0)),
    ):
        if over is not None and over > (-margin if flag in before else 0.0):
            found |= flag
    return found


def _over(more: float | None, less: float | None) -> float | None:
    return None if more is None or less is None else more - less


def read(root: Path = Path("/")) -> Reading:
    """What the sensors below ``root`` (its proc and sys) say now. Takes about a millisecond; raises nothing."""
    return Reading(_temperature(root), _battery(root), _memory_pressure(root), _load(root))


def _temperature(root: Path) -> float | None:
    """The hottest thermal zone."""
    found = [value / 1000 for value in _numbers(root, "sys/class/thermal", "thermal_zone*/temp")]
    return max((value for value in found if abs(value) < ABSURD_C), default=None)


def _battery(root: Path) -> float | None:
    """The lowest battery that feeds the board and discharges."""
    found = [
        _number(_text(supply / "capacity"))
        for supply in _folders(root / "sys/class/power_supply")
        if [_text(supply / name) for name in ("type", "status")] == ["Battery", "Discharging"]
        and _text(supply / "scope") != "Device"  # of a mouse, not of the board
    ]
    return min((value for value in found if value is not None), default=None)


def _memory_pressure(root: Path) -> float | None:
    """``some avg10`` of the kernel's pressure stall information."""
    for line in _text(root / "proc/pressure/memory").split("\n"):
        words = line.split()
        if words[:1] == ["some"] and len(words) > 1 and words[1].startswith("avg10="):
            return _number(words[1].removeprefix("avg10="))
    return None


def _load(root: Path) -> float | None:
    """The load average of a minute, a processor."""
    words = _text(root / "proc/loadavg").split()
    load = _number(words[0]) if words else None
    return None if load is None else load / (os.cpu_count() or 1)


def _numbers(root: Path, folder: str, pattern: str) -> Iterator[float]:
    for path in sorted((root / folder).glob(pattern)):
        value = _number(_text(path))
        if value is not None:
            yield value


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """What a sensor says; empty when it says nothing, as one whose driver is asleep."""
    try:
        with path.open("rb") as file:
            return file.read(SENSOR_LIMIT).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # false for not-a-number, too


def limits_of(settings: DeviceSettings) -> Limits:
    """What DIR/fl-tiny.toml lets training take."""
    s = settings
    return Limits(s.max_temperature, s.min_battery, s.max_memory_pressure, s.max_load)
