# SPDX-License-Identifier: Apache-2.0
"""fl-tiny: boards train the last layers of an int8 TFLite model together; the public name is ``Device``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_tiny.device.api import Device as Device

__all__ = ["Device"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import ``Device`` at first use, so that an idle daemon never loads numpy."""
    if name == "Device":
        from fl_tiny.device.api import Device  # noqa: PLC0415

        return Device
    raise AttributeError(f"module 'fl_tiny' has no attribute {name!r}")
