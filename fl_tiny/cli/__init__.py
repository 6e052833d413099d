# SPDX-License-Identifier: Apache-2.0
"""The command line: the only print and the only sys.exit."""
