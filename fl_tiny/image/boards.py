# SPDX-License-Identifier: Apache-2.0
"""Board files and what all boards share, from TOML into checked dataclasses; every fault at once, with its place."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import fl_tiny
from fl_tiny.errors import ConfigError
from fl_tiny.files import read_bounded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

S = TypeVar("S")
LIMIT = 65_536  # bytes of a board file
SUITES = ("bookworm", "trixie")
CHAINS = ("uefi", "u-boot", "firmware")  # who starts the boot loader of the slots: docs/porting.md
CLAIMS = ("drafted", "builds", "boots", "trains")  # each includes those before it, and is shown by a log
ALIGN_MIB = 4  # before the first partition, and what sizes are multiples of


def _rule(said: str, holds: Callable[[Any], bool], default: Any = MISSING, **more: Any) -> Any:
    """A field with a rule on its value, or on each of its values."""
    return field(default=default, metadata={"said": said, "holds": holds}, **more)


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: re.fullmatch(pattern, value) is not None


def _one_of(names: tuple[str, ...]) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(names)}", lambda value: value in names


PACKAGE = ("the name of a Debian package", _matches(r"[a-z0-9][a-z0-9.+-]+"))
INSIDE = ("a path inside, without ..", lambda v: bool(v) and not v.startswith("/") and ".." not in v.split("/"))
UNIT = ("the name of a systemd unit", _matches(r"[\w:.@\\-]+\.(service|timer|mount|automount|socket|path|target)"))
OPTION = ("the name of a kernel option without CONFIG_", _matches(r"[A-Z0-9_]+"))
MODULE = ("the name of a kernel module", _matches(r"[\w-]+"))
SIZE = (f"a multiple of {ALIGN_MIB} from 16 to 16384", lambda v: 16 <= v <= 16_384 and v % ALIGN_MIB == 0)


@dataclass(frozen=True, slots=True)
class Boot:
    """How a board comes to run the boot loader of the slots. config: the Pi firmware's file, from templates/."""

    chain: str = _rule(*_one_of(CHAINS))
    loader: str = _rule(*PACKAGE, "grub-efi-arm64-bin")
    config: str = _rule(*INSIDE, "")


@dataclass(frozen=True, slots=True)
class Disk:
    """Sizes of the disk and its partitions; what is left over is the data partition, which grows at first boot."""

    size_mib: int = _rule(*SIZE)
    boot_mib: int = _rule(*SIZE)
    slot_mib: int = _rule(*SIZE)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: its package, required options of its config, modules kept and loaded, device trees it must have.

    brought: no package of Debian serves; the operator gives one by --kernel.
    """

    package: str = _rule(*PACKAGE, "")
    suite: str = _rule("the suite, or SUITE-backports", _matches(r"[a-z]+(-backports)?"), "")
    brought: bool = False
    options: tuple[str, ...] = _rule(*OPTION, ())
    modules: tuple[str, ...] = _rule(*INSIDE, ())
    initrd: tuple[str, ...] = _rule(*MODULE, ())
    device_trees: tuple[str, ...] = _rule(*INSIDE, ())


@dataclass(frozen=True, slots=True)
class Firmware:
    """What is not ours and not the kernel: packages in the root, and packages whose files go onto the FAT partition."""

    root: tuple[str, ...] = _rule(*PACKAGE, ())
    packages: tuple[str, ...] = _rule(*PACKAGE, ())
    files: dict[str, str] = _rule(*INSIDE, default_factory=dict)  # noqa: RUF009 - _rule is dataclasses.field
    source: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader should know before buying or flashing."""

    memory_mib: int = _rule("from 64 to 1048576", lambda v: 64 <= v <= 1 << 20)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Board:
    """A board file. claim: what a kept log shows of this board's image; log: that log, from the top of the checkout."""

    boot: Boot
    disk: Disk
    kernel: Kernel
    limits: Limits
    name: str = _rule("letters, digits and dashes", _matches(r"[a-z0-9][a-z0-9-]{1,39}"))
    title: str = _rule("a title of at most 60 characters", lambda v: 0 < len(v) <= 60)
    suite: str = _rule(*_one_of(SUITES))
    compatible: str = _rule("letters, digits and dashes", _matches(r"[a-z0-9][a-z0-9-]{1,63}"))
    console: tuple[str, ...] = _rule("a console such as ttyS1,115200", _matches(r"tty[A-Z0-9]+(,\d+)?"))
    claim: str = _rule(*_one_of(CLAIMS))
    log: str = ""
    firmware: Firmware = field(default_factory=Firmware)


@dataclass(frozen=True, slots=True)
class Slim:
    """Paths, with wildcards, that a root is left without."""

    remove: tuple[str, ...] = _rule(*INSIDE)


@dataclass(frozen=True, slots=True)
class Base:
    """What all images share; its kernel's lists come before those of the board."""

    kernel: Kernel
    slim: Slim
    packages: tuple[str, ...] = _rule(*PACKAGE)
    enable: tuple[str, ...] = _rule(*UNIT)
    mask: tuple[str, ...] = _rule(*UNIT)


def find_recipes(given: Path | None) -> Path:
    """The folder ``image`` of a checkout. Raises: ConfigError when there is none."""
    found = given or Path(fl_tiny.__file__).parents[1] / "image"
    if not (found / "base.toml").is_file():
        hint = "give the folder image of a checkout of fl-tiny by --recipes"
        raise ConfigError(f"{found} holds no base.toml", hint)
    return found


def names(recipes: Path) -> list[str]:
    """The boards that there are."""
    return sorted(path.stem for path in (recipes / "boards").glob("*.toml"))


def load_board(recipes: Path, name: str) -> Board:
    """One board. Raises: ConfigError with every fault, or when there is no such board."""
    path = recipes / "boards" / f"{name}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(recipes), 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"boards are {', '.join(names(recipes))}"
        raise ConfigError(f"no board {name}", hint)
    board = check({"name": name, **_table(path)}, Board, str(path))
    faults = _odd(board)
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults), hint="docs/porting.md explains each key")
    return board


def load_base(recipes: Path) -> Base:
    """What all boards share. Raises: ConfigError with every fault."""
    path = recipes / "base.toml"
    return check(_table(path), Base, str(path))


def check(table: dict[str, Any], cls: type[S], where: str) -> S:
    """``table`` as ``cls``. Raises: ConfigError that lists every fault with its key."""
    made, faults = _read(table, cls, "")
    if made is None:
        raise ConfigError(f"{where}: " + "; ".join(faults), hint="docs/porting.md explains each key")
    return made


def _odd(board: Board) -> list[str]:
    """Faults between keys of one board."""
    disk, kernel, boot = board.disk, board.kernel, board.boot
    faults = []
    least = ALIGN_MIB + disk.boot_mib + 2 * disk.slot_mib + 16
    if disk.size_mib < least:
        faults.append(f"disk.size_mib: {disk.size_mib} is less than the partitions and 16 of data take, {least}")
    if bool(kernel.package) == kernel.brought:
        faults.append("kernel: needs either a package or brought = true")
    if kernel.suite and not kernel.suite.startswith(board.suite):
        faults.append(f"kernel.suite: {kernel.suite} is not of {board.suite}")
    if (board.claim == "drafted") == bool(board.log):
        faults.append(f"log: the claim {board.claim} is shown by {'no log yet' if board.log else 'a log'}")
    if boot.chain != "uefi" and not board.firmware.files:
        faults.append(f"firmware.files: the chain {boot.chain} needs files on the FAT partition")
    if board.firmware.files and not board.firmware.packages and boot.chain != "uefi":
        faults.append("firmware.packages: no package has the files")
    return faults


def _read(table: Any, cls: type[S], at: str) -> tuple[S | None, list[str]]:
    if not isinstance(table, dict):
        return None, [f"{at.rstrip('.') or 'file'}: {table!r} is not a table"]
    hints = get_type_hints(cls)
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    faults = [_unknown(f"{at}{key}", [f"{at}{name}" for name in known]) for key in table if key not in known]
    values: dict[str, Any] = {}
    for name, each in known.items():
        if name not in table:
            if each.default is MISSING and each.default_factory is MISSING:
                faults.append(f"{at}{name} is missing")
            continue
        hint = hints[name]
        if is_dataclass(hint):
            values[name], more = _read(table[name], cast(type[Any], hint), f"{at}{name}.")
            faults += more
            continue
        fault = _fault(table[name], hint, each.metadata)
        faults += [f"{at}{name}: {fault}"] if fault else []
        values[name] = tuple(table[name]) if isinstance(table[name], list) else table[name]
    return (None if faults else cls(**values)), faults


def _fault(value: Any, hint: Any, metadata: Any) -> str:
    """What is wrong with a value; empty when nothing is."""
    kinds = {"tuple": list, "dict": dict}
    kind = kinds.get(getattr(hint, "__name__", ""), hint)
    parts = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else [value]
    inner = str if kind in (list, dict) else kind
    if type(value) is not kind or any(type(part) is not inner for part in parts):
        wanted = {
            list: "list of texts",
            dict: "table of texts",
            str: "text",
            int: "whole number",
            bool: "true or false",
        }
        return f"{value!r} is not a {wanted[kind]}"
    wrong = [part for part in parts if metadata and not metadata["holds"](part)]
    return f"{wrong[0]!r} is not {metadata['said']}" if wrong else ""


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f"unknown key {key}" + (f", did you mean {near[0]}?" if near else "")


def _table(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(read_bounded(path, LIMIT).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise ConfigError(f"{path}: {cause}") from cause
    return table
