# SPDX-License-Identifier: Apache-2.0
SUMMARY = "Federated learning of the last layers of int8 TFLite models on small boards"
DESCRIPTION = "A device keeps the backbone of a TFLite model frozen, trains its last dense layers on its own samples, and \
               sends the change to a gateway over CoAP and DTLS; the gateway adds the changes of many devices up."
HOMEPAGE = "urn:pypi:fl-tiny"
BUGTRACKER = "urn:pypi:fl-tiny"
SECTION = "net/misc"
CVE_PRODUCT = "fl-tiny"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# What is built is the HEAD of the checkout that holds this layer. Another one, or a mirror: set both in local.conf.
FL_TINY_URI ?= "git://${@os.path.realpath(d.getVar('THISDIR') + '/../../../../..')};protocol=file;usehead=1;nobranch=1"
FL_TINY_REV ?= "${AUTOREV}"
SRC_URI = "${FL_TINY_URI};destsuffix=${BP}"
SRCREV = "${FL_TINY_REV}"
# Scarthgap has no UNPACKDIR and unpacks into WORKDIR
S = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}/${BP}"

inherit python_setuptools_build_meta systemd useradd features_check deploy

REQUIRED_DISTRO_FEATURES = "systemd"

PACKAGE_BEFORE_PN = "${PN}-board ${PN}-gateway ${PN}-provisioning"

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "\
    --system --user-group --no-create-home --home-dir ${localstatedir}/lib/fl-tiny \
    --shell ${base_sbindir}/nologin fl-tiny \
"

# Each is quiet until it has something to do. The gateway's package is installed where a gateway is wanted.
SYSTEMD_PACKAGES = "${PN} ${PN}-gateway"
SYSTEMD_SERVICE:${PN} = "\
    fl-tiny-confirm.service \
    fl-tiny-device.service \
    fl-tiny-enroll.service \
    fl-tiny-provision.service \
    fl-tiny-source.service \
"
SYSTEMD_SERVICE:${PN}-gateway = "fl-tiny-gateway.service"

FL_TINY_BOARD = "\
    ${sysconfdir}/systemd/network/80-fl-tiny.network \
    ${sysconfdir}/systemd/system/wpa_supplicant@.service.d/fl-tiny.conf \
    ${sysconfdir}/udev/rules.d/70-fl-tiny-wifi.rules \
"

do_install:append() {
    install -d ${D}${systemd_system_unitdir} ${D}${nonarch_libdir}/tmpfiles.d
    # Units, and folders of their drop-ins
    (cd ${S}/deploy/systemd && find fl-tiny-* -type f \
        -exec install -D -m 0644 {} ${D}${systemd_system_unitdir}/{} \;)
    install -m 0644 ${S}/deploy/systemd/tmpfiles.d/*.conf ${D}${nonarch_libdir}/tmpfiles.d/
    install -D -m 0600 ${S}/image/templates/fl-tiny.toml ${D}/boot/fl-tiny.toml

    # How a board's network takes what provisioning says of it; as in our own images
    for file in ${FL_TINY_BOARD}; do
        install -D -m 0644 "${S}/image/overlay$file" "${D}$file"
    done
    sed -i 's,/sbin/wpa_supplicant,${sbindir}/wpa_supplicant,' \
        ${D}${sysconfdir}/systemd/system/wpa_supplicant@.service.d/fl-tiny.conf
}

# With nothing set. IMAGE_BOOT_FILES can name it, and whoever flashes a card fills it in.
do_deploy() {
    install -m 0644 ${S}/image/templates/fl-tiny.toml ${DEPLOYDIR}/fl-tiny.toml
}
addtask deploy after do_install before do_build

FILES:${PN} += "${systemd_system_unitdir} ${nonarch_libdir}/tmpfiles.d"
FILES:${PN}-board += "${FL_TINY_BOARD}"
FILES:${PN}-gateway += "\
    ${nonarch_libdir}/tmpfiles.d/fl-tiny-gateway.conf \
    ${systemd_system_unitdir}/fl-tiny-gateway.service \
"
# For machines without a FAT partition that a person could mount
FILES:${PN}-provisioning += "/boot/fl-tiny.toml"
CONFFILES:${PN}-provisioning += "/boot/fl-tiny.toml"

# libssl is loaded by ctypes, so no scan of ELF files finds it. The python3-* without a version are parts of Python.
RDEPENDS:${PN} += "\
    libssl \
    python3-aiocoap (>= 0.4.17) \
    python3-asyncio \
    python3-audio \
    python3-cbor2 (>= 5.4) \
    python3-compression \
    python3-core \
    python3-crypt \
    python3-ctypes \
    python3-difflib \
    python3-fcntl \
    python3-html \
    python3-io \
    python3-json \
    python3-logging \
    python3-math \
    python3-mmap \
    python3-netclient \
    python3-numbers \
    python3-numpy (>= 1.23) \
    python3-profile \
    python3-pynacl (>= 1.5) \
    python3-resource \
    python3-shell \
    python3-sqlite3 \
    python3-statistics \
    python3-tomllib \
"
RDEPENDS:${PN}-board = "${PN} wireless-regdb-static wpa-supplicant"
RDEPENDS:${PN}-gateway = "${PN}"
