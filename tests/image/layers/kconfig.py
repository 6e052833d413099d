# SPDX-License-Identifier: Apache-2.0
"""Kconfig's rules on our Config.in, below a stand-in for Buildroot's menu: each symbol's value, as JSON.

usage: kconfig.py TREE [SYMBOL=y…]     what is set before our symbols are looked at; exits 1 with what Kconfig warns of
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import kconfiglib

# Symbols of Buildroot that we depend on, or select; a name that it does not have would be an undefined symbol here.
# Source: its package/*/Config.in and toolchain/Config.in
CHOSEN = (
    *("BR2_PACKAGE_PYTHON3", "BR2_PACKAGE_PYTHON_NUMPY_ARCH_SUPPORTS", "BR2_TOOLCHAIN_USES_GLIBC"),
    *("BR2_TOOLCHAIN_USES_MUSL", "BR2_STATIC_LIBS", "BR2_PACKAGE_OPENSSL", "BR2_PACKAGE_OPENSSL_FORCE_LIBOPENSSL"),
    *("BR2_PACKAGE_PYTHON3_SQLITE", "BR2_PACKAGE_PYTHON3_ZLIB", "BR2_PACKAGE_PYTHON_AIOCOAP"),
    *("BR2_PACKAGE_PYTHON_CBOR2", "BR2_PACKAGE_PYTHON_NUMPY", "BR2_PACKAGE_PYTHON_PYNACL"),
)


def main() -> None:
    """Read, set, print."""
    tree = Path(sys.argv[1]).resolve()
    os.environ["BR2_EXTERNAL_FL_TINY_PATH"] = str(tree)
    with tempfile.TemporaryDirectory() as folder:
        menu = Path(folder, "Config.in")
        symbols = "".join(f'config {name}\n\tbool "{name}"\n' for name in CHOSEN)
        menu.write_text(f'mainmenu "Buildroot"\n{symbols}source "{tree}/Config.in"\n')
        kconf = kconfiglib.Kconfig(str(menu), warn_to_stderr=False)
        kconf.warn_assign_undef = True
        for word in sys.argv[2:]:
            name, value = word.split("=")
            kconf.syms[name].set_value(value)
    undefined = [name for name, symbol in kconf.syms.items() if not symbol.nodes and name.startswith("BR2_")]
    if kconf.warnings or undefined:
        sys.exit("\n".join([*kconf.warnings, *undefined]))
    print(json.dumps({name: symbol.str_value for name, symbol in kconf.syms.items() if symbol.nodes}))


if __name__ == "__main__":
    main()
