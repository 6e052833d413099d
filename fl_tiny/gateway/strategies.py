# SPDX-License-Identifier: Apache-2.0
"""The strategy that an operator names: one of ours, or another package's by its entry point."""

from __future__ import annotations

from importlib.metadata import entry_points

from fl_tiny.errors import ConfigError
from fl_tiny.protocol.strategy import BUILT_IN, Options, Strategy

GROUP = "fl_tiny.strategies"  # entry points: name = "package.module:make", make(Options) -> Strategy


def strategy_named(name: str, options: Options) -> Strategy:
    """The strategy ``name``. Raises: ConfigError when there is none, or it does not load; it names what there is."""
    if name in BUILT_IN:
        return BUILT_IN[name](options)
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise ConfigError(f"there is no strategy {name!r}", hint=f"there are {', '.join([*BUILT_IN, *sorted(found)])}")
    try:
        made: Strategy = found[name].load()(options)
    except Exception as cause:  # foreign code: whatever it raises, the gateway does not start with half a strategy
        raise ConfigError(f"the strategy {name!r} of {found[name].value} does not load: {cause}") from cause
    if not (callable(getattr(made, "train", None)) and callable(getattr(made, "step", None))):
        raise ConfigError(f"the strategy {name!r} of {found[name].value} has no train and step")
    return made
