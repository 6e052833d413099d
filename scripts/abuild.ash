#!/bin/ash
# The part of abuild that our APKBUILDs use, for an Alpine root without abuild: run build and package, split.
# usage: ash abuild.ash STARTDIR OUT [check]     leaves OUT/NAME, a tree a package, and OUT/.NAME, what its metadata says
# shellcheck shell=dash disable=SC1091,SC2046,SC2086,SC2116,SC2154 # an APKBUILD brings variables, words are split
set -e
startdir=$1 pkgbasedir=$2 wanted=$3
srcdir=$pkgbasedir/.src
default_prepare() { :; }
prepare() { default_prepare; }
options_has() { case " $options " in *" $1 "*) ;; *) return 1 ;; esac; }
amove() {
	for path; do
		mkdir -p "$subpkgdir/${path%/*}"
		mv "$pkgdir/$path" "$subpkgdir/$path" || return 1
		(cd "$pkgdir" && rmdir -p "${path%/*}" 2>/dev/null) || :
	done
}
doc() { depends='' pkgdesc="$pkgdesc (documentation)" install_if="docs $pkgname=$version"; amove usr/share/doc; }
openrc() {
	depends='' pkgdesc="$pkgdesc (OpenRC init scripts)" install_if="openrc ${subpkgname%-openrc}=$version"
	amove etc/init.d etc/conf.d
}
pyc() {
	depends='' pkgdesc="Precompiled Python bytecode for ${subpkgname%-pyc}" install_if="${subpkgname%-pyc}=$version pyc"
	cd "$pkgdir"
	amove $(find . -name __pycache__)
}
describe() { # NAME SCRIPTS
	printf '%s\n' "name:$1" "version:$version" "description:$pkgdesc" "arch:noarch" "license:$license" "url:$url" \
		"origin:$pkgname" "depends:$(echo $depends)" "install-if:$(echo $install_if)" "provides:$(echo $provides)" \
		> "$pkgbasedir/.$1"
}
. "$startdir/APKBUILD"
version=$pkgver-r$pkgrel pkgdir=$pkgbasedir/$pkgname
mkdir -p "$srcdir" "$pkgdir"
(cd "$startdir" && printf '%s' "$sha512sums" | sed '/^$/d' | sha512sum -c && cp $source "$srcdir")
for archive in "$srcdir"/*.tar.gz; do [ ! -e "$archive" ] || tar -xzf "$archive" -C "$srcdir"; done
for group in $pkggroups; do addgroup -S "$group" 2>/dev/null || :; done
for user in $pkgusers; do adduser -S -D -H -G "$user" "$user" 2>/dev/null || :; done
cd "$srcdir"
prepare
cd "$builddir"
build
[ -z "$wanted" ] || options_has '!check' || check
package
for entry in $subpackages; do
	subpkgname=${entry%%:*} split=${entry#*:}
	[ "$split" != "$entry" ] || split=${entry##*-}
	subpkgdir=$pkgbasedir/$subpkgname
	mkdir -p "$subpkgdir"
	(
		install_if=''
		"$split"
		describe "$subpkgname"
	)
done
describe "$pkgname"
