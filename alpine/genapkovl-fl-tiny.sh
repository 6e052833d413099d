#!/bin/sh
# The overlay of an fl-tiny image: HOSTNAME.apkovl.tar.gz in the working directory, the same bytes at every run.
# usage: genapkovl-fl-tiny.sh HOSTNAME      mkimage calls it; SOURCE_DATE_EPOCH is the time of every file
set -eu
hostname=${1:?usage: $0 HOSTNAME}
here=$(dirname "$(readlink -f "$0")")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

rc_add() {
	mkdir -p "$tmp/etc/runlevels/$2"
	ln -s "/etc/init.d/$1" "$tmp/etc/runlevels/$2/$1"
}

mkdir -p "$tmp/etc/apk" "$tmp/etc/network" "$tmp/etc/init.d"
echo "$hostname" > "$tmp/etc/hostname"
printf 'auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n' > "$tmp/etc/network/interfaces"
printf '%s\n' alpine-base chrony dhcpcd e2fsprogs fl-tiny fl-tiny-openrc openssh > "$tmp/etc/apk/world"
# With an overlay the initramfs adds its own services (devfs, modules, hwclock, …) only when this file is there.
: > "$tmp/etc/.default_boot_services"
cp "$here/fl-tiny-data.initd" "$tmp/etc/init.d/fl-tiny-data"
chmod 755 "$tmp/etc/init.d/fl-tiny-data"

rc_add networking boot
rc_add seedrng boot
rc_add fl-tiny-data boot
rc_add chronyd default
rc_add sshd default
rc_add fl-tiny-device default

find "$tmp" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
(cd "$tmp" && find etc ! -type d | LC_ALL=C sort) > "$tmp/files"
# busybox tar writes the owner that runs it, which is root under mkimage's fakeroot.
tar -c -C "$tmp" -T "$tmp/files" | gzip -9n > "$hostname.apkovl.tar.gz"
