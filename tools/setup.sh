#!/usr/bin/env bash
# Sets up a checkout: Debian packages, node_modules, the guest image. Idempotent, and silent when nothing is to do.
# It is shell because it runs before the project's Node is there.
#
#   tools/setup.sh            Debian packages (as root) and node_modules
#   tools/setup.sh --guest    only the guest image of test/guest (as root)
#
# What can't be installed here is said and left out: tests that need it are skipped with a reason, and fail in CI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*" >&2; }

debian_packages() {
	local wanted missing=() name
	wanted=$(sed 's/ *#.*//; /^$/d' tools/debian-packages.txt)
	command -v npm >/dev/null || wanted="$wanted npm"
	if ! command -v dpkg-query >/dev/null; then
		say "not a Debian system: install what tests miss by hand (tools/debian-packages.txt)"
		return
	fi
	local installed
	# shellcheck disable=SC2086 # one word per package
	installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' $wanted 2>/dev/null || true)
	for name in $wanted; do
		grep -qx "$name installed" <<<"$installed" || missing+=("$name")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		say "not root, so these Debian packages are not installed: ${missing[*]}"
		return
	fi
	say "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update >&2 &&
		apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null ||
		say "apt-get could not install all of: ${missing[*]}"
}

node_modules() {
	local stamp=node_modules/.vmsweep-stamp wanted
	wanted=$(cat package.json package-lock.json .npmrc | sha256sum)
	if [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && [ -x node_modules/.bin/node ]; then return; fi
	command -v npm >/dev/null || {
		say "no npm here: install it (Debian: apt-get install npm), then try again"
		exit 1
	}
	# Two set-ups of one checkout at once: the second waits, then finds the work done.
	exec 9<package.json
	flock 9
	if [ "$(cat $stamp 2>/dev/null)" = "$wanted" ]; then return; fi
	say "npm ci"
	npm ci --no-progress --loglevel=error >/dev/null
	# npm before 11 does not link the command of an optional package.
	local node=(node_modules/node-linux-*/bin/node)
	[ -e node_modules/.bin/node ] || ln -s "../${node[0]#node_modules/}" node_modules/.bin/node
	[ -x node_modules/.bin/node ] || {
		say "there is no Node 26 for this machine in npm ($(uname -sm)); vmsweep runs on Linux x64 and arm64"
		exit 1
	}
	echo "$wanted" >$stamp
}

guest_image() {
	if test/guest/setup.sh --check; then return; fi
	if [ "$(id -u)" != 0 ]; then
		say "not root, so the guest image is not built: tests in a guest are skipped"
		return
	fi
	test/guest/setup.sh
}

case ${1:-} in
--guest) guest_image ;;
'')
	debian_packages
	node_modules
	;;
*)
	say "unknown option $1"
	exit 2
	;;
esac
