# SPDX-License-Identifier: Apache-2.0
"""A kernel held against its board before an image is made of it: the options of its config, its device trees."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fl_tiny.errors import ConfigError, DataError
from fl_tiny.image import plan, tools

# The second is where Debian's kernels from 7 on keep it
CONFIG = re.compile(r"(\./)?(boot/config-[^/]+|(usr/)?lib/modules/[^/]+/config)")


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is known of a kernel without running it. where: the file that it was read from."""

    where: str
    config: str
    trees: tuple[str, ...]


def of_package(deb: Path) -> Kernel:
    """The kernel of a .deb. Raises: ConfigError when there is no such file; DataError when it holds no kernel."""
    if not deb.is_file():
        raise ConfigError(f"no file {deb}", hint="--kernel DEB")
    if not tools.succeeds("dpkg-deb", "--info", deb):
        raise DataError(f"{deb} is no Debian package", hint="`make bindeb-pkg` in a kernel's source makes one")
    with tools.piped("dpkg-deb", "--fsys-tarfile", deb) as stream:
        return _read(str(deb), stream, "r|")


def of_root(tar: Path) -> Kernel:
    """The kernel of a root of Debian. Raises: DataError when it has none."""
    with tar.open("rb") as file:
        return _read(str(tar), file, "r:")


def options(config: str, wanted: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Each option that a kernel must have, and whether its config says so, be it built in or a module."""
    have = set(re.findall(r"^CONFIG_(\w+)=[ym]$", config, re.MULTILINE))
    for name in wanted:
        yield f"CONFIG_{name}", name in have


class KernelLacksError(DataError):
    """Options or device trees that a kernel lacks: all of them in one line, since building a kernel takes an hour."""

    LINE = 1 << 16


def demand(kernel: Kernel, step: plan.Slot) -> None:
    """Raises: DataError that names every option and device tree of the slot's board that the kernel lacks."""
    absent = [name for name, there in options(kernel.config, step.options) if not there]
    absent += [tree for tree in step.device_trees if not any(path.endswith(f"/{tree}") for path in kernel.trees)]
    if absent:
        raise KernelLacksError(
            f"{kernel.where}: its kernel lacks {', '.join(absent)}", hint="docs/boards.md says what it needs"
        )


def _read(where: str, stream: IO[bytes], mode: str) -> Kernel:
    config, trees = "", []
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]  # its modes are literals
        for member in tar:
            if member.name.endswith(".dtb"):
                trees.append(member.name)
            elif CONFIG.fullmatch(member.name) and member.isfile():
                data = tar.extractfile(member)
                config = data.read().decode(errors="replace") if data else ""
    if not config:
        raise DataError(
            f"{where} holds no kernel's config", hint="boot/config-VERSION, as `make bindeb-pkg` puts it there"
        )
    return Kernel(where, config, tuple(trees))
