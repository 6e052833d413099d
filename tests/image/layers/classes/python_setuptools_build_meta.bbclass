# SPDX-License-Identifier: Apache-2.0
do_install() {
    install -d ${D}${bindir}
}
