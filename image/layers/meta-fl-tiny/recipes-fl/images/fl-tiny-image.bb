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

# Nobody gets in but by a key that provisioning brought
fl_tiny_ssh() {
    sed -i -e '/^AuthorizedKeysFile/d' -e '1i AuthorizedKeysFile /run/fl-tiny/ssh/authorized_keys' \
        ${IMAGE_ROOTFS}${sysconfdir}/ssh/sshd_config
}
fl_tiny_ssh[doc] = "Let sshd read the keys that provisioning brings, and no others"
ROOTFS_POSTPROCESS_COMMAND += "fl_tiny_ssh"
