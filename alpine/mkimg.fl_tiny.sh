# shellcheck shell=dash disable=SC2034,SC2153,SC2154 # mkimage.sh reads what is set here
# A profile for Alpine's mkimage: a board that boots from a read-only medium and keeps its state on a partition of its
# own. Put this file and genapkovl-fl-tiny.sh into ~/.mkimage, and give the repository of our packages, made by abuild:
#   sh aports/scripts/mkimage.sh --profile fl_tiny --arch aarch64 --repository … --extra-repository /path/to/packages/alpine

profile_fl_tiny() {
	case "$ARCH" in
	aarch64) profile_rpi ;;
	*) profile_standard ;;
	esac
	title="fl-tiny"
	desc="A board that takes part in federated learning."
	arch="aarch64 x86_64"
	apks="$apks chrony dhcpcd e2fsprogs openssh fl-tiny fl-tiny-openrc"
	apkovl="genapkovl-fl-tiny.sh"
	hostname="fl-tiny"
}
