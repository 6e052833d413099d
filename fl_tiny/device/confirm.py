# SPDX-License-Identifier: Apache-2.0
"""Whether a release that is being tried stays: it reached its gateway, or, without one before, was healthy for long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from fl_tiny import statedir
from fl_tiny.device import host
from fl_tiny.device.bootfiles import BootFiles
from fl_tiny.device.bootstate import Phase
from fl_tiny.device.machine import Machine, Record, has_reached
from fl_tiny.device.update import boot_files
from fl_tiny.protocol.codepoints import Code

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0


class Verdict(Enum):
    """What is to be done about a release that is being tried."""

    STAY = "stay"
    WAIT = "wait"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Patience:
    """within_s: time to reach the gateway.   offline_s: of health, where the release before reached none either."""

    within_s: float = 900.0
    offline_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Signs:
    """What is seen of a release. up_s: since it was first looked at; healthy_s: since its daemon runs without a break,
    or needs none since nobody has enrolled it."""

    reached: bool
    up_s: float
    healthy_s: float


def verdict(signs: Signs, had_gateway: bool, patience: Patience) -> Verdict:
    """Does the release stay? had_gateway: the release before had reached its gateway."""
    if signs.reached or (not had_gateway and signs.healthy_s >= patience.offline_s):
        return Verdict.STAY
    return Verdict.LEAVE if signs.up_s >= patience.within_s else Verdict.WAIT


def confirm(
    machine: Machine,
    directory: Path,
    patience: Patience,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    reboot: Callable[[], None] = host.reboot,
) -> str:
    """Watch a try to its end and return what became of it; without one, clean up behind a fall back."""
    files = boot_files(machine)
    if files.booted is None:
        return "no slots"
    record = machine.record() or Record("", "", "installed")
    if files.phase() is not Phase.TRYING:
        return _after(machine, files, record)
    started = healthy = now()
    while True:
        if not statedir.is_running(directory) and (directory / statedir.DATABASE).exists():
            healthy = now()
        signs = Signs(has_reached(directory, machine), now() - started, now() - healthy)
        said = verdict(signs, record.reached, patience)
        if said is Verdict.STAY:
            files.confirm()
            machine.keep(replace(record, state="confirmed", why=""))
            log.info("release confirmed slot=%s release=%s", files.booted, record.release)
            return "confirmed"
        if said is Verdict.LEAVE:
            why = f"it did not reach its gateway within {patience.within_s:.0f} s"
            if not record.reached:
                why = f"it was not healthy for {patience.offline_s:.0f} s"
            machine.keep(replace(record, why=why))
            log.error("release left slot=%s why=%r", files.booted, why)
            reboot()
            return "left"
        sleep(LOOK_EVERY_S)


def _after(machine: Machine, files: BootFiles, record: Record) -> str:
    """No try is on: note how the last one ended. A cut before the note was kept is met by what runs now."""
    stands = files.phase()
    files.settle()
    for path in machine.work.glob("*.raucb"):  # an installation was cut; the daemon fetches it again
        path.unlink()
    release = machine.release()
    no_update = stands is Phase.SETTLED and not record.release
    if stands is Phase.STAGED or record.state != "installed" or release is None or no_update:
        return stands.value
    if stands is Phase.SETTLED and record.release == release.number:
        machine.keep(replace(record, state="confirmed", why=""))
        return "confirmed"
    why = record.why or "it did not come up"
    machine.keep(replace(record, state="fell back", code=int(Code.CANARY), why=why))
    log.error("release fell back release=%s why=%r", record.release, why)
    return "fell back"
