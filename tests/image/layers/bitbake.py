# SPDX-License-Identifier: Apache-2.0
"""BitBake's own parser on a recipe, classes of ours standing in for OE-Core's: what the recipe says, as JSON.

usage: bitbake.py LAYER RECIPE [FETCHED]      run by tests/image/test_layers.py with the Python that has BitBake;
FETCHED: a folder into which BitBake's fetcher puts what SRC_URI names
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

# The wheel leaves out BitBake's hash server, whose client the parser imports and never asks.
for name in ("hashserv", "hashserv.client"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["hashserv"].client = sys.modules["hashserv.client"]  # type: ignore[attr-defined]

import bb.data  # noqa: E402
import bb.fetch2  # noqa: E402
import bb.parse  # noqa: E402
import bb.siggen  # noqa: E402

HERE = Path(__file__).parent
SAID = (
    *("PN", "PV", "LICENSE", "LIC_FILES_CHKSUM", "SRC_URI", "S", "PACKAGES", "USERADD_PARAM", "FILES", "RDEPENDS"),
    *("SYSTEMD_SERVICE", "IMAGE_INSTALL", "IMAGE_BOOT_FILES", "IMAGE_FEATURES", "do_install", "do_deploy"),
    *("fl_tiny_ssh", "ROOTFS_POSTPROCESS_COMMAND"),
)


def main() -> None:
    """Parse, fetch when told to, print."""
    layer, recipe = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    d = bb.data.init()
    bb.parse.siggen = bb.siggen.init(d)
    d.setVar("BBPATH", f"{HERE}:{layer}")
    d.setVar("LAYERDIR", str(layer))
    bb.parse.handle(str(layer / "conf/layer.conf"), d, include=True)
    d.setVar("__bbclasstype", "recipe")
    bb.parse.handle(str(HERE / "conf/bitbake.conf"), d, include=True)
    d = bb.parse.handle(str(recipe), d)[""]
    if len(sys.argv) > 3:
        fetch(d, Path(sys.argv[3]))
    packages = (d.getVar("PACKAGES") or "").split()
    names = [*SAID, *(f"{name}:{package}" for name in SAID for package in packages)]
    print(json.dumps({name: d.getVar(name) for name in names if d.getVar(name) is not None}))


def fetch(d: object, into: Path) -> None:
    """Let BitBake's fetcher have its way."""
    d.setVar("DL_DIR", str(into / "downloads"))
    d.setVar("PERSISTENT_DIR", str(into))
    bb.fetch2.get_hashvalue(d)  # as OE-Core's bitbake.conf has it done for each recipe
    fetcher = bb.fetch2.Fetch(d.getVar("SRC_URI").split(), d)
    fetcher.download()
    fetcher.unpack(str(into))


if __name__ == "__main__":
    main()
