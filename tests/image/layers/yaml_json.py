# SPDX-License-Identifier: Apache-2.0
"""A YAML file as JSON. usage: yaml_json.py FILE"""

import json
import sys
from pathlib import Path

import yaml

print(json.dumps(yaml.safe_load(Path(sys.argv[1]).read_text())))
