# SPDX-License-Identifier: Apache-2.0
# What Buildroot defines before it reads an external tree, as far as our package uses it: `make -f buildroot.mk TARGET`.
INSTALL = install
BR2_PACKAGE_FL_TINY = y
PYTHON_AIOCOAP_VERSION ?= 0.4.17
pkgdir = $(dir $(lastword $(filter %/fl-tiny.mk,$(MAKEFILE_LIST))))
# The real one makes rules of the variables. Here each is a target of its own.
define python-package
FL_TINY_PKGDIR = $(pkgdir)
endef

include $(BR2_EXTERNAL_FL_TINY_PATH)/external.mk

# Run in the checkout, so that @D, the folder of the target, is where the sources are.
systemd: ; $(FL_TINY_INSTALL_INIT_SYSTEMD)
sysv: ; $(FL_TINY_INSTALL_INIT_SYSV)
state: ; $(FL_TINY_INSTALL_STATE)
check: ; $(foreach hook,$(FL_TINY_PRE_CONFIGURE_HOOKS),$($(hook)))
users: ; $(info $(FL_TINY_USERS))@:
permissions: ; $(info $(FL_TINY_PERMISSIONS))@:
variables:
	$(foreach name,VERSION SITE SITE_METHOD LICENSE LICENSE_FILES SETUP_TYPE,$(info $(name)=$(FL_TINY_$(name))))@:
