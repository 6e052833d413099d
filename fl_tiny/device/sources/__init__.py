# SPDX-License-Identifier: Apache-2.0
"""Where a board's samples come from: files, a spool directory, a socket, a camera, and the service."""
