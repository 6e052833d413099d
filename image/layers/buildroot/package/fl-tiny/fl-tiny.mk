################################################################################
#
# fl-tiny
#
################################################################################

FL_TINY_VERSION = 0.1.0
# The checkout that holds this external tree
FL_TINY_SITE = $(BR2_EXTERNAL_FL_TINY_PATH)/../../..
FL_TINY_SITE_METHOD = local
FL_TINY_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = \
	--exclude /.git --exclude /.venv --exclude /build --exclude /dist \
	--exclude /image --exclude /tests
FL_TINY_LICENSE = Apache-2.0
FL_TINY_LICENSE_FILES = LICENSE
FL_TINY_SETUP_TYPE = setuptools

# Older ones have other names for what net/ takes of it. Buildroot's own
# version decides, and this says so before anything is built in vain.
FL_TINY_AIOCOAP_MIN = 0.4.17
define FL_TINY_CHECK_AIOCOAP
	printf '%s\n' $(FL_TINY_AIOCOAP_MIN) $(PYTHON_AIOCOAP_VERSION) \
		| sort -CV || { \
		echo "fl-tiny needs python-aiocoap $(FL_TINY_AIOCOAP_MIN):" \
			"this Buildroot has $(PYTHON_AIOCOAP_VERSION)" >&2; \
		exit 1; }
endef
FL_TINY_PRE_CONFIGURE_HOOKS += FL_TINY_CHECK_AIOCOAP

define FL_TINY_USERS
	fl-tiny -1 fl-tiny -1 * /var/lib/fl-tiny - - Federated learning
endef

define FL_TINY_PERMISSIONS
	/var/lib/fl-tiny d 755 root root - - - - -
	/var/lib/fl-tiny/device d 750 fl-tiny fl-tiny - - - - -
endef

define FL_TINY_INSTALL_STATE
	$(INSTALL) -d $(TARGET_DIR)/var/lib/fl-tiny/device
endef
FL_TINY_POST_INSTALL_TARGET_HOOKS += FL_TINY_INSTALL_STATE

# Units, folders of their drop-ins, tmpfiles: everything but the gateway's,
# unless that is wanted
FL_TINY_NOT = $(if $(BR2_PACKAGE_FL_TINY_GATEWAY),,fl-tiny-gateway.*)

# How a board's network takes what provisioning says of it; as in our own
# images. Buildroot's /sbin is /usr/sbin.
FL_TINY_OVERLAY = $(BR2_EXTERNAL_FL_TINY_PATH)/../../overlay/etc
FL_TINY_BOARD = \
	systemd/network/80-fl-tiny.network \
	systemd/system/wpa_supplicant@.service.d/fl-tiny.conf \
	udev/rules.d/70-fl-tiny-wifi.rules

define FL_TINY_INSTALL_INIT_SYSTEMD
	cd $(@D)/deploy/systemd && find fl-tiny-* -type f ! -name "$(FL_TINY_NOT)" \
		-exec $(INSTALL) -D -m 0644 {} \
			$(TARGET_DIR)/usr/lib/systemd/system/{} \;
	cd $(@D)/deploy/systemd/tmpfiles.d && find . -type f ! -name "$(FL_TINY_NOT)" \
		-exec $(INSTALL) -D -m 0644 {} $(TARGET_DIR)/usr/lib/tmpfiles.d/{} \;
	$(foreach file,$(FL_TINY_BOARD),\
		$(INSTALL) -D -m 0644 $(FL_TINY_OVERLAY)/$(file) $(TARGET_DIR)/etc/$(file)
	)
	$(INSTALL) -D -m 0644 $(FL_TINY_PKGDIR)/fl-tiny.preset \
		$(TARGET_DIR)/usr/lib/systemd/system-preset/80-fl-tiny.preset
endef

define FL_TINY_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(FL_TINY_PKGDIR)/S80fl-tiny-device \
		$(TARGET_DIR)/etc/init.d/S80fl-tiny-device
endef

$(eval $(python-package))
