# SPDX-License-Identifier: Apache-2.0
SUMMARY = "CoAP (RFC 7252) for asyncio"
DESCRIPTION = "Python implementation of CoAP, the Constrained Application Protocol, as messages, clients and servers for asyncio"
HOMEPAGE = "https://aiocoap.readthedocs.io/"
BUGTRACKER = "https://codeberg.org/aiocoap/aiocoap/issues"
SECTION = "devel/python"
CVE_PRODUCT = "aiocoap"
# The second: aiocoap/util/vendored
LICENSE = "MIT & BSD-3-Clause"
LIC_FILES_CHKSUM = "\
    file://LICENSES/MIT.txt;md5=838c366f69b72c5df05c96dff79b35f2 \
    file://LICENSES/BSD-3-Clause.txt;md5=e02175a844da14704493cfe10de48aa6 \
"

SRC_URI[sha256sum] = "464c8d2b85ec1ef435dabeaa3fb6c8256b40fadfe6ce4ca83b93acb8d555f436"

inherit pypi python_setuptools_build_meta

# Command line tools and a file server that a board has no use for
do_install:append() {
    rm -r ${D}${bindir}
}

RDEPENDS:${PN} += "\
    python3-asyncio \
    python3-core \
    python3-crypt \
    python3-io \
    python3-json \
    python3-logging \
    python3-math \
    python3-netclient \
    python3-numbers \
    python3-shell \
    python3-stringold \
"
