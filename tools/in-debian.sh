#!/usr/bin/env bash
# Runs a command in this checkout on another Debian release, with the tools that it ships: its QEMU, libnbd, nbdkit,
# and in VMSWEEP_PEER_SOURCES the sources of nbd and libnbd with what compiles their test programs (test/peers).
# The release is installed once into the user's cache folder, some 1.6 GB with all that tests use, and seen by this
# command alone: its mounts and processes end with it. As root.
#
#   tools/in-debian.sh trixie make test-clients
#
# Set the checkout up first (make setup): node_modules comes from it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "in-debian: $*" >&2; }
die() { say "$*"; exit 1; }

[ $# -ge 2 ] || die "usage: tools/in-debian.sh RELEASE COMMAND [ARGUMENT...]"
[ "$(id -u)" = 0 ] || die "only root can install a Debian and change into it"
release=$1
shift
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmsweep
root=$cache/debian-$release
wanted="$(sed 's/ *#.*//; /^$/d' tools/debian-packages.txt | sort) dpkg-dev gcc libc6-dev libglib2.0-dev libgnutls28-dev libnbd-dev pkgconf"
sources="nbd libnbd"
stamp=$root/vmsweep-packages

install_release() {
	[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
	command -v debootstrap >/dev/null || die "no debootstrap here (make setup, as root, installs it)"
	local mirror part=$root.part
	# The mirror that this machine uses itself.
	mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1)
	[ -n "$mirror" ] || die "apt knows no Debian mirror here (apt-get update)"
	say "installing $release, once"
	rm -rf --one-file-system "$part" "$root"
	mkdir -p "$cache"
	debootstrap --variant=minbase --include=git "$release" "$part" "$mirror" >"$cache/debian-$release.log" ||
		die "debootstrap failed, see $cache/debian-$release.log"
	# shellcheck disable=SC2086 # one word per package
	chroot "$part" env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install -y --no-install-recommends $wanted >>"$cache/debian-$release.log" 2>&1 ||
		die "its apt-get failed, see $cache/debian-$release.log"
	# shellcheck disable=SC2086
	{
		echo "deb-src $mirror $release main" >>"$part/etc/apt/sources.list"
		chroot "$part" sh -c 'apt-get -qq update && cd /usr/src && apt-get -qq source "$@"' in-debian $sources
	} >>"$cache/debian-$release.log" 2>&1 || die "no sources of its packages, see $cache/debian-$release.log"
	echo "$wanted" >"$part/${stamp#"$root"/}"
	mv "$part" "$root"
}

exec 9<package.json
flock 9
install_release
exec 9<&-

mkdir -p "$root/srv/checkout" "$root/srv/cache/vmsweep"
# A namespace of its own: what is mounted and started in it is gone when the command is.
exec unshare --mount --pid --fork --kill-child -- bash -euc '
	root=$1 cache=$2
	shift 2
	# Of the environment only what the tests know of: the rest speaks of the other system.
	mapfile -t kept < <(env | grep -E "^(CI|TERM|VMSWEEP_[A-Z_]*)=")
	mount --bind . "$root/srv/checkout"
	mount --bind "$cache" "$root/srv/cache/vmsweep"
	mount --rbind /dev "$root/dev"
	mount --rbind /sys "$root/sys"
	mount -t proc proc "$root/proc"
	mount -t tmpfs tmpfs "$root/run"
	exec chroot "$root" env -i -C /srv/checkout HOME=/srv XDG_CACHE_HOME=/srv/cache PATH=/usr/sbin:/usr/bin \
		VMSWEEP_PEER_SOURCES=/usr/src "${kept[@]}" "$@"
' in-debian "$root" "$cache" "$@"
