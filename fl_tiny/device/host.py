# SPDX-License-Identifier: Apache-2.0
"""The board's own commands that an update needs: mount, rauc, systemctl; the one place here that starts them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.protocol.codepoints import Code
from fl_tiny.protocol.release import Release

log = logging.getLogger(__name__)

PATIENCE_S = 120.0


@contextlib.contextmanager
def writable(mount: Path) -> Iterator[None]:
    """``mount`` can be written within the block, if it is a mount that is read only otherwise."""
    changed = os.path.ismount(mount) and bool(os.statvfs(mount).f_flag & os.ST_RDONLY)
    if changed:
        _run("mount", "-o", "remount,rw", str(mount))
    try:
        yield
    finally:
        if changed:
            _run("mount", "-o", "remount,ro", str(mount))


def reboot() -> None:
    """Start the board anew, services ended first."""
    _run("systemctl", "reboot")


def info(bundle: Path, config: Path) -> Release:
    """What a bundle brings, once RAUC has checked its signature. Raises: DataError when it refuses."""
    done = _asked("rauc", f"--conf={config}", "info", "--output-format=json", str(bundle))
    if done.returncode:
        said = [line.rsplit(": ", 1)[-1] if "WARNING" in line else line for line in done.stderr.splitlines() if line]
        raise _refusal(bundle, (said or ["rauc info failed"])[-1])
    try:
        found = json.loads(done.stdout)
        return Release(str(found["compatible"]), str(found["version"]))
    except (ValueError, KeyError, TypeError) as cause:
        raise EnvironmentFault(f"rauc info said {done.stdout[:200]!r}") from cause


def install(bundle: Path, say: Callable[[int, str], None]) -> None:
    """Let RAUC verify a bundle and write it into the other slot; ``say`` is told percents and what is done.

    Raises: DataError with RAUC's reason when the bundle is refused, EnvironmentFault when RAUC cannot work.
    """
    command = ["rauc", "install", str(bundle)]
    _must_be("rauc")
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in (raw.strip() for raw in child.stdout):
            said.append(line)
            percent, _, done = line.partition("% ")
            if percent.isdecimal():
                say(int(percent), done)
    if child.returncode == 0:
        return
    for line in said:
        log.error("rauc refused line=%r", line)
    why = next((line.split(":", 1)[1].strip() for line in reversed(said) if line.startswith("LastError:")), "")
    if why and "No space left" not in why and "/dev/mapper" not in why:  # else it is the board's fault
        raise _refusal(bundle, why)
    raise EnvironmentFault(f"rauc install failed: {why or (said or ['it said nothing'])[-1]}", "rauc status")


def _refusal(bundle: Path, why: str) -> DataError:
    code = Code.SIGNATURE if "signature" in why.lower() else Code.CONFLICT  # RAUC's words; it has no codes
    return DataError(f"RAUC refuses {bundle}: {why}", hint="is it whole, of this fleet, for this board?", code=code)


def _run(*command: str) -> None:
    done = _asked(*command)
    if done.returncode:
        raise EnvironmentFault(f"{' '.join(command)}: {done.stderr.strip() or f'exit {done.returncode}'}")


def _asked(*command: str) -> subprocess.CompletedProcess[str]:
    _must_be(command[0])
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.SubprocessError) as cause:
        raise EnvironmentFault(f"cannot run {command[0]}: {cause}") from cause


def _must_be(tool: str) -> None:
    if shutil.which(tool) is None:
        hint = "apt install rauc rauc-service" if tool == "rauc" else ""
        raise EnvironmentFault(f"{tool} is not installed", hint)
