# SPDX-License-Identifier: Apache-2.0
SUMMARY = "A board that takes part in federated learning, and nothing else"
DESCRIPTION = "systemd, SSH by key alone, Wi-Fi, the fl-tiny device; nobody has a password"
BUGTRACKER = "urn:pypi:fl-tiny"
SECTION = "images"
CVE_PRODUCT = "fl-tiny"
LICENSE = "Apache-2.0"

IMAGE_FEATURES += "ssh-server-openssh"

inherit core-image features_check

REQUIRED_DISTRO_FEATURES = "systemd"

# The packages themselves; a machine's firmware and kernel modules come by its own MACHINE_EXTRA_RRECOMMENDS
IMAGE_INSTALL:append = " packagegroup-fl-tiny"

# For machines whose boot partition is made from IMAGE_BOOT_FILES, such as those of meta-raspberrypi
IMAGE_BOOT_FILES:append = " fl-tiny.toml"
do_image_wic[depends] += "fl-tiny:do_deploy"
