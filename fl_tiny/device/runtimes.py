# SPDX-License-Identifier: Apache-2.0
"""Inference runtimes by the names that users give: which there are, and which can be used; nothing is loaded."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
from dataclasses import dataclass

from fl_tiny.errors import EnvironmentFault

log = logging.getLogger(__name__)

HINT = "pip install 'fl-tiny[tflite]', or use --runtime numpy"


@dataclass(frozen=True, slots=True)
class Runtime:
    """A distribution, and the module that an interpreter comes from; ``rule``: how numpy rounds where there is none."""

    distribution: str
    module: str
    rule: str = ""


RUNTIMES = {  # in the order in which one is taken when none is named; config.RUNTIMES has the same names
    "tflite": Runtime("tflite-runtime", "tflite_runtime.interpreter"),
    "litert": Runtime("ai-edge-litert", "ai_edge_litert.interpreter"),
    "numpy": Runtime("numpy", "numpy", "tflite"),
    "numpy:litert": Runtime("numpy", "numpy", "litert"),
}


def installed(name: str) -> bool:
    """Whether the runtime called ``name`` is there."""
    return importlib.util.find_spec(RUNTIMES[name].module.partition(".")[0]) is not None


def fault(name: str) -> str:
    """Why an installed runtime does not work here, as far as can be told without loading it; empty when it may."""
    if name != "tflite":
        return ""
    numpy = importlib.metadata.version("numpy")
    return f"it was built for numpy 1, here is {numpy}" if int(numpy.partition(".")[0]) > 1 else ""


def chosen(name: str | None) -> str:
    """``name``, or for None the first that is there and may work.

    Raises: EnvironmentFault when ``name`` is not installed or cannot work, or nothing is there.
    """
    if name is None:
        return candidates()[0]
    if not installed(name):
        raise EnvironmentFault(f"no inference runtime: {RUNTIMES[name].distribution} is not installed", hint=HINT)
    if why := fault(name):
        raise EnvironmentFault(
            f"{full_name(name)} does not work: {why}", "pip install 'numpy<2', or use --runtime numpy"
        )
    return name


@functools.cache
def candidates() -> tuple[str, ...]:
    """The runtimes that may work, in the order in which they are tried; one that is passed over is told of, once.

    Raises: EnvironmentFault when there is none.
    """
    there = [name for name in RUNTIMES if installed(name)]
    able = tuple(name for name in there if not fault(name))
    if not able:
        raise EnvironmentFault("no inference runtime: numpy is not installed", hint=HINT)
    for name in there[: there.index(able[0])]:
        log.warning("runtime passed over name=%r why=%r taken=%r", full_name(name), fault(name), full_name(able[0]))
    return able


def full_name(name: str) -> str:
    """Distribution and version of an installed runtime, as ``tflite-runtime 2.14.0``, and how numpy rounds."""
    runtime = RUNTIMES[name]
    try:
        version = importlib.metadata.version(runtime.distribution)
    except importlib.metadata.PackageNotFoundError:  # an image slimmed by hand has no metadata
        version = "unknown"
    return f"{runtime.distribution} {version}" + (f" ({runtime.rule} rounding)" if runtime.rule else "")


def same_features(one: str, other: str) -> bool:
    """Whether two full names compute the same features: numpy's own version makes no difference."""
    return one == other or (one.startswith("numpy ") and one.split(" ", 2)[::2] == other.split(" ", 2)[::2])
