# SPDX-License-Identifier: Apache-2.0
"""``python -m fl_tiny`` is the ``fl-tiny`` command."""

from fl_tiny.cli.main import entry

entry()
