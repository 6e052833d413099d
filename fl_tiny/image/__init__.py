# SPDX-License-Identifier: Apache-2.0
"""Images for boards: what boards there are, how an image is made, provisioned and checked, on a workstation."""
