# SPDX-License-Identifier: Apache-2.0
SUMMARY = "The provisioning file fl-tiny.toml"
DESCRIPTION = "Deploys a fl-tiny.toml with nothing set, so that IMAGE_BOOT_FILES can name it and whoever flashes a card can \
               fill it in; the package puts it into the root's /boot instead. FL_TINY_PROVISIONING names another file."
HOMEPAGE = "urn:pypi:fl-tiny"
BUGTRACKER = "urn:pypi:fl-tiny"
SECTION = "base"
CVE_PRODUCT = "fl-tiny"
LICENSE = "Apache-2.0"
# nooelint: oelint.var.licenseremotefile - the one file that it has is this layer's
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://fl-tiny.toml"
FL_TINY_PROVISIONING ?= "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}/fl-tiny.toml"

inherit deploy

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0600 ${FL_TINY_PROVISIONING} ${D}/boot/fl-tiny.toml
}

do_deploy() {
    install -D -m 0644 ${FL_TINY_PROVISIONING} ${DEPLOYDIR}/fl-tiny.toml
}
addtask deploy after do_unpack before do_build

FILES:${PN} += "/boot/fl-tiny.toml"
