# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire and what happens when it does: pure messages and state machines."""
