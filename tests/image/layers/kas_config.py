# SPDX-License-Identifier: Apache-2.0
"""kas' own reader on a configuration: schema, includes, all merged, as JSON. usage: kas_config.py FILE"""

from __future__ import annotations

import argparse
import json
import sys

from kas.context import create_global_context
from kas.includehandler import IncludeHandler


def main() -> None:
    """Read, merge, print."""
    create_global_context(argparse.Namespace(skip=[], no_color=True))
    config, missing = IncludeHandler([sys.argv[1]], use_lock=False).get_config()
    print(json.dumps({"config": config, "missing": missing}))


if __name__ == "__main__":
    main()
