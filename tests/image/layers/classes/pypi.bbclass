# SPDX-License-Identifier: Apache-2.0
SRC_URI:prepend = "https://files.pythonhosted.org/packages/source/${@d.getVar('PN')[8]}/${@d.getVar('PN')[8:]}/${@d.getVar('PN')[8:]}-${PV}.tar.gz "
