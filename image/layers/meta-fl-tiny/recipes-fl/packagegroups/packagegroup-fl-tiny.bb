# SPDX-License-Identifier: Apache-2.0
SUMMARY = "What a board needs to take part in federated learning"
DESCRIPTION = "The device, and what its provisioning file configures: Wi-Fi, and SSH with a key"
BUGTRACKER = "urn:pypi:fl-tiny"
SECTION = "net/misc"

inherit packagegroup

RDEPENDS:${PN} = "\
    fl-tiny \
    fl-tiny-board \
    iproute2 \
"
