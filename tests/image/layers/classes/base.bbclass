# SPDX-License-Identifier: Apache-2.0
do_fetch() {
    :
}
addtask fetch
do_unpack() {
    :
}
addtask unpack after do_fetch
do_install() {
    :
}
addtask install after do_unpack
do_build() {
    :
}
addtask build after do_install
