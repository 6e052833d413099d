# SPDX-License-Identifier: Apache-2.0
"""A card's fl-tiny.toml brought about at every boot: network, name, SSH; a device's settings and its pairing code.

The last good file is kept beside DIR, in ``board/``, which is root's alone: by it a board boots whose file is gone or
wrong. What is made of the Wi-Fi password stays there, and no secret in the file. Any step may be cut; it is done again.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_tiny import config, statedir
from fl_tiny.board import KEPT
from fl_tiny.device import mounts, netfiles
from fl_tiny.device.codefile import LIMIT, blanked
from fl_tiny.device.enrol import enrolled
from fl_tiny.device.layout import PENDING_CODE
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault, FlTinyError
from fl_tiny.files import overwrite, read_bounded, write_atomic

log = logging.getLogger(__name__)

BOARD = "board"  # beside DIR, 0700
HOSTNAME, KEYS = "fl-tiny/hostname", "fl-tiny/ssh/authorized_keys"  # below /run
OF_THE_BOARD = ("network", "ssh", "pairing_code")  # tables and keys that no device's settings keep
Table = dict[str, Any]


@dataclass(slots=True)
class Provisioned:
    """What was done. file: applied, missing, or wrong (then the last good one stands for it).   code: of a card."""

    file: str
    did: list[str] = field(default_factory=list)
    faults: list[FlTinyError] = field(default_factory=list)

    def attempt(self, what: str, step: Callable[[], bool]) -> bool:
        """One step; whether it was needed and done. A fault is noted: it must not keep the others from a board."""
        try:
            done = step()
        except FlTinyError as fault:
            self.faults.append(fault)
            return False
        except OSError as fault:
            self.faults.append(EnvironmentFault(f"{what}: {fault.strerror or fault}"))
            return False
        if done:
            self.did.append(what)
        return done


def provision(file: Path, directory: Path, root: Path) -> Provisioned:
    """Bring about what ``file`` says, for the device of ``directory``; the machine's own files lie below ``root``."""
    keep = directory.parent / BOARD / statedir.SETTINGS
    before = _last_good(keep)
    table, done = _read(file, before)
    settings = config.check(table, config.DeviceSettings, str(file))
    run = root / "run"
    done.attempt("network", lambda: _network(run, settings))
    done.attempt("name", lambda: _name(run, settings, root))
    done.attempt("ssh", lambda: _ssh(run, settings))
    if done.file != "applied":
        return done
    code, rest = settings.pairing_code, _to_keep(table, settings)
    earlier = len(done.faults)
    done.attempt("settings", lambda: _settle(directory, table, before))
    done.attempt("code", lambda: code is not None and _take_code(directory, code))
    done.attempt("kept", lambda: _keep(keep, rest, before))
    if len(done.faults) == earlier:  # what is erased is on the board's own disk
        done.attempt("erased", lambda: _erase(file, rest, code))
    return done


def _last_good(keep: Path) -> Table:
    """The settings that this board came up with last; none when there are none that can be read."""
    try:
        found = config.read_table(keep) if keep.exists() else {}
        config.check(found, config.DeviceSettings, str(keep))
    except (ConfigError, OSError) as fault:
        log.warning("kept settings are of no use why=%r", str(fault))
        return {}
    return found


def _read(file: Path, before: Table) -> tuple[Table, Provisioned]:
    """The settings to use: the file's, or the last good ones."""
    if not file.exists():
        log.info("no file of settings file=%s", file)
        return before, Provisioned("missing")
    try:
        table = config.read_table(file)
        network, last = table.get("network"), before.get("network")
        if isinstance(network, dict) and network.get("password") == KEPT:
            if not isinstance(last, dict) or last.get("ssid") != network.get("ssid") or "password" not in last:
                raise ConfigError(
                    f"{file}: network.password: {KEPT}, but this board keeps none for this network",
                    hint="write the password itself: it is moved to the board at the next start",
                )
            table = {**table, "network": {**network, "password": last["password"]}}
        config.check_whole(table, config.DeviceSettings, str(file))
    except ConfigError as fault:
        return before, Provisioned("wrong", faults=[fault])
    return table, Provisioned("applied")


def _network(run: Path, settings: config.DeviceSettings) -> bool:
    wanted = netfiles.files_of(settings.network) if settings.network is not None else {}
    for path in [run / netfiles.NETWORK, *(run / "fl-tiny").glob("wpa_supplicant-*.conf")]:
        if str(path.relative_to(run)) not in wanted:
            path.unlink(missing_ok=True)
    for name, text in wanted.items():
        _put(run / name, text, 0o644 if name == netfiles.NETWORK else 0o600)
    return bool(wanted)


def _name(run: Path, settings: config.DeviceSettings, root: Path) -> bool:
    name = settings.board.name if settings.board is not None else None
    if name is None:
        return False
    _put(run / HOSTNAME, name + "\n", 0o644)
    if root == Path("/") and socket.gethostname() != name:
        socket.sethostname(name)
    return True


def _ssh(run: Path, settings: config.DeviceSettings) -> bool:
    keys = settings.ssh.authorized_keys if settings.ssh is not None else ()
    if not keys:
        (run / KEYS).unlink(missing_ok=True)
        return False
    _put(run / KEYS, "".join(f"{key.strip()}\n" for key in keys), 0o600)
    return True


def _put(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(path, text.encode(), mode)


def _settle(directory: Path, table: Table, before: Table) -> bool:
    """The device's own settings into DIR: when the file's are others than last time, or DIR has none. A file that
    stays on its card never undoes what was changed in DIR since."""
    own, last = ({k: v for k, v in found.items() if k not in OF_THE_BOARD} for found in (table, before))
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    with statedir.acting_as_owner(directory):
        path = directory / statedir.SETTINGS
        if (own == last or not own) and (path.exists() or not own):
            return False
        write_atomic(path, config.to_text(own).encode(), 0o640)
    return True


def _take_code(directory: Path, code: str) -> bool:
    """The code into DIR/secret, for ``device enroll``; an enrolled device ignores it."""
    with statedir.acting_as_owner(directory):
        if enrolled(directory) is not None:
            log.info("pairing code ignored why=%r", "the device is enrolled")
            return False
        statedir.create(directory)
        line = f'pairing_code = "{code}"\n'.encode()
        path = directory / statedir.SECRET / PENDING_CODE
        if path.exists() and read_bounded(path, LIMIT, DataError) == line:
            return False
        statedir.write_secret(directory, PENDING_CODE, line)
    return True


def _to_keep(table: Table, settings: config.DeviceSettings) -> Table:
    """What is kept of a card's settings: no code, and of a password what it is made into."""
    rest = {key: value for key, value in table.items() if key != "pairing_code"}
    if settings.network is not None and settings.network.password is not None:
        rest["network"] = {**rest["network"], "password": netfiles.key_of(settings.network)}
    return rest


def _keep(keep: Path, rest: Table, before: Table) -> bool:
    if rest == before:
        return False
    keep.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(keep, config.to_text(rest).encode(), 0o600)
    return True


def _erase(file: Path, rest: Table, code: str | None) -> bool:
    """Take code and password out of the file: both are on the board now. Raises: EnvironmentFault, DataError."""
    data = read_bounded(file, LIMIT, DataError)
    made = blanked(data, KEPT)
    wanted = dict(rest)
    if "password" in rest.get("network", {}):
        wanted["network"] = {**wanted["network"], "password": KEPT}
    if (code is not None and code.encode() in made) or config.parse(made, str(file)) != wanted:
        raise DataError(
            f"{file}: its pairing code or password cannot be erased",
            hint='write each as one line, KEY = "VALUE", and [network] as a table of its own',
        )
    if made == data:
        return False
    with mounts.writable(file):
        overwrite(file, data, made)
    log.info("secrets erased file=%s", file)
    return True
