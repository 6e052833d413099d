# SPDX-License-Identifier: Apache-2.0
"""A release of a board's system as a RAUC bundle: its slot, signed by the fleet's update signer."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fl_tiny.errors import ConfigError
from fl_tiny.image import plan, tools
from fl_tiny.image.build import Places, make_release

CA, CERTIFICATE, KEY = "update-ca.pem", "update-signer.pem", "update-signer.key"  # of scripts/update-keys
MANIFEST = """[update]
compatible={compatible}
version={release}

[bundle]
format=verity

[image.rootfs]
filename=root.squashfs
"""  # Source: RAUC's reference, "Manifest"


def bundle(steps: tuple[plan.Step, ...], places: Places, keys: Path, out: Path) -> Path:
    """The bundle of the release that the steps describe, below ``out``. Raises: ConfigError, EnvironmentFault."""
    absent = [name for name in (CA, CERTIFICATE, KEY) if not (keys / name).is_file()]
    if absent:
        raise ConfigError(f"{keys} lacks {', '.join(absent)}", hint=f"scripts/update-keys {keys} makes them, once")
    tools.demand(["rauc"])
    _, _, slot = make_release(steps, places)
    words = dict(next(step.words for step in steps if isinstance(step, plan.Slot)))
    compatible, release = words["@COMPATIBLE@"], words["@RELEASE@"]
    made = out / f"{compatible}-{release}.raucb"
    places.say(f"bundle: {made}")
    pack(slot / "slot.squashfs", compatible, release, keys, made)
    return made


def pack(slot: Path, compatible: str, release: str, keys: Path, made: Path) -> None:
    """A slot's squashfs as the bundle ``made``, signed by the signer in ``keys``. Raises: EnvironmentFault."""
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        content = Path(folder, "content")
        content.mkdir()
        try:
            os.link(slot, content / "root.squashfs")
        except OSError:  # another filesystem
            tools.run("cp", slot, content / "root.squashfs")
        (content / "manifest.raucm").write_text(MANIFEST.format(compatible=compatible, release=release))
        (content / "fl-tiny-release").write_text(f"COMPATIBLE={compatible}\nRELEASE={release}\n")
        draft = Path(folder, made.name)
        signer = ("--cert", keys / CERTIFICATE, "--key", keys / KEY, "--keyring", keys / CA)
        tools.run("rauc", "bundle", *signer, content, draft)
        draft.replace(made)
