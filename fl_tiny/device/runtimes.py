# SPDX-License-Identifier: Apache-2.0
"""Inference runtimes by the names that users give: which there are, and which are installed; nothing is loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from fl_tiny.errors import EnvironmentFault

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


def chosen(name: str | None) -> str:
    """``name``, or the first that is installed for None. Raises: EnvironmentFault when it is not installed."""
    for each in [name] if name else list(RUNTIMES):
        if installed(each):
            return each
    missing = RUNTIMES[name].distribution if name else "numpy"
    raise EnvironmentFault(f"no inference runtime: {missing} is not installed", hint=HINT)


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
