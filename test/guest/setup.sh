#!/usr/bin/env bash
# Builds the guest image of the vmsweep guest rig: vmlinux, initrd.img, rootfs.ext4.
# Idempotent: does nothing when the image is there and was built from these same files.
# `make setup-guest` calls it, after installing the host's packages (tools/debian-packages.txt).
#
#   ./setup.sh            build the image if needed
#   ./setup.sh --force    rebuild the image (picks up newer Debian packages)
#   ./setup.sh --check    build nothing; exit 0 where the image is up to date, else 1
#
# Environment:
#   GUEST_CACHE    where the image goes (default: vmsweep/guest in the user's cache folder, so that
#                  every checkout of this user shares one image)
#   GUEST_KERNEL   Debian kernel metapackage (default: linux-image-amd64)
set -euo pipefail
umask 022
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmsweep/guest}
kernel_meta=${GUEST_KERNEL:-linux-image-amd64}

# In the guest (with their dependencies). No package is installed on the host for this.
guest_pkgs=(
  bash coreutils util-linux util-linux-extra mount findutils grep sed mawk tar gzip diffutils procps
  perl-base kmod busybox-static attr acl
  e2fsprogs xfsprogs btrfs-progs f2fs-tools dosfstools exfatprogs ntfs-3g
  lvm2 dmsetup thin-provisioning-tools cryptsetup-bin parted gdisk fdisk mdadm- nbd-client
  fio stress-ng qemu-guest-agent
)
# Pulled in by dependencies, but of no use in an image that is never upgraded.
drop_pkgs=' perl perl-modules-5.36 libperl5.36 usrmerge adduser debconf dpkg init-system-helpers
 libfile-find-rule-perl libnumber-compare-perl libtext-glob-perl media-types libx11-data gcc-12-base '

# Kernel modules: whole folders, and single modules; their dependencies are added.
module_dirs=(kernel/fs kernel/crypto kernel/lib kernel/arch/x86/crypto
  kernel/drivers/block kernel/drivers/md kernel/drivers/nvme kernel/drivers/virtio
  kernel/drivers/cdrom kernel/net/9p)
module_names=(virtio_console virtio_scsi virtio_net virtio-rng scsi_mod sd_mod sr_mod sg scsi_debug
  scsi_transport_sas mptsas ahci ata_piix ata_generic qemu_fw_cfg dax nvdimm virtio_pmem target_core_mod
  usb-storage uas xhci-pci sdhci-pci mmc_block raid6_pq)
# What the initramfs needs to find and mount the root image, in load order
# (names the kernel has built in are skipped).
boot_modules=(virtio_pci virtio_blk ext4 overlay)

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

[ "$(uname -m)" = x86_64 ] || die "only x86_64 hosts are supported"

force=0 check=0
for a in "$@"; do
  case $a in
    --force) force=1 ;;
    --check) check=1 ;;
    *) die "unknown option $a" ;;
  esac
done

stamp=$( (echo "$kernel_meta"; cd "$here" && cat setup.sh image/*) | sha256sum | cut -d' ' -f1)
up_to_date() { [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ]; }
if [ $check = 1 ]; then
  up_to_date
  exit
fi
if [ $force = 0 ] && up_to_date; then exit 0; fi

[ "$(id -u)" = 0 ] || die "building the guest image must be done as root"
for tool in apt-get dpkg-deb python3 mke2fs flock; do
  [ -n "$(command -v $tool)" ] || die "no $tool here: run make setup first (on Debian, as root)"
done

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9 # two setups at once: the second waits, then finds the image done

if [ $force = 0 ] && up_to_date; then exit 0; fi

work=$cache/build
rm -rf "$work"
mkdir -p "$work/debs/partial" "$work/root" "$work/kernel" "$work/initrd"
trap 'rm -rf "$work"' EXIT
started=$SECONDS
say "building the guest image in $cache (a minute or two, once)"
apt-get -qq update >&2

# ---- kernel -----------------------------------------------------------------------------------
kernel_pkg=$(apt-cache depends "$kernel_meta" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
[ -n "$kernel_pkg" ] || die "cannot find the kernel package behind $kernel_meta"
kver=${kernel_pkg#linux-image-}
say "kernel $kver"
(cd "$work/debs" && apt-get -qq -o APT::Sandbox::User=root download "$kernel_pkg")
dpkg-deb -x "$work"/debs/linux-image-*.deb "$work/kernel"
rm "$work"/debs/linux-image-*.deb

# The bare ELF kernel boots straight through its PVH entry: no decompression in the guest,
# which alone takes longer than the rest of the boot under TCG.
python3 - "$work/kernel/boot/vmlinuz-$kver" "$work/vmlinux" <<'PY'
import lzma, struct, sys, zlib
d = open(sys.argv[1], 'rb').read()
setup = (d[0x1f1] or 4) + 1
off, n = struct.unpack_from('<II', d, 0x248)
p = d[setup * 512 + off:][:n]
if p[:6] == b'\xfd7zXZ\0': out = lzma.LZMADecompressor().decompress(p)
elif p[:2] == b'\x1f\x8b': out = zlib.decompressobj(31).decompress(p)
else: out = d  # e.g. lz4, of the cloud kernel: boots as it is, a little slower
if out is not d and out[:4] != b'\x7fELF': sys.exit('no ELF kernel inside')
open(sys.argv[2], 'wb').write(out)
PY

# ---- userland ---------------------------------------------------------------------------------
say "downloading the guest's packages"
: > "$work/status" # an empty package database: every dependency is resolved and fetched
apt-get -qq -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/debs" \
  -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Debug::NoLocking=true \
  --download-only -y install "${guest_pkgs[@]}" >/dev/null
root=$work/root
mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
for d in bin sbin lib lib64; do ln -s usr/$d "$root/$d"; done
for f in "$work"/debs/*.deb; do
  p=$(basename "$f"); p=${p%%_*}
  case $drop_pkgs in *" $p "*|*" $p"$'\n'*) continue ;; esac
  dpkg-deb --fsys-tarfile "$f" | tar -x -C "$root" --keep-directory-symlink \
    --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' \
    --exclude='./usr/share/info' --exclude='./usr/share/lintian' --exclude='./usr/share/bash-completion' \
    --exclude='./usr/share/i18n' --exclude='./var/cache' \
    --exclude='./lib/systemd' --exclude='./lib/udev' --exclude='./etc/init.d' --exclude='./usr/share/X11' \
    --exclude='./usr/share/perl5/Debconf*' --exclude='./usr/share/fio'
  dpkg-deb -W --showformat='${Package} ${Version}\n' "$f" >> "$work/manifest"
done
rm -rf "$work/debs" "$root"/usr/lib/python3*/{test,idlelib,ensurepip,lib2to3,distutils}
mkdir -p "$root"/{proc,sys,dev,run,tmp,root,mnt,etc/lvm,var/log,var/run}
[ -e "$root/usr/bin/awk" ] || ln -s mawk "$root/usr/bin/awk"
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
[ -x "$root/usr/bin/dash" ] || ln -sf bash "$root/usr/bin/sh"
printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n' > "$root/etc/passwd"
printf 'root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n' > "$root/etc/group"
echo guest > "$root/etc/hostname"
echo '127.0.0.1 localhost guest' > "$root/etc/hosts"
ln -sf /proc/self/mounts "$root/etc/mtab"
printf '#!/bin/sh\nexit 0\n' > "$root/usr/bin/udevadm" # parted calls it
chmod 755 "$root/usr/bin/udevadm"
# No udev in the guest: LVM and cryptsetup make their device nodes themselves.
cat > "$root/etc/lvm/lvm.conf" <<'LVM'
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" issue_discards = 1 use_devicesfile = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
global { event_activation = 0 use_lvmpolld = 0 }
LVM
install -m 755 "$here"/image/{rig-init,rig-agent,rig-poweroff,fsops} "$root/usr/sbin/"

# ---- kernel modules ---------------------------------------------------------------------------
say "selecting kernel modules"
src=$work/kernel/lib/modules/$kver
mkdir -p "$root/lib/modules/$kver"
cp "$src"/modules.{builtin,order} "$root/lib/modules/$kver/"
[ ! -e "$src/modules.builtin.modinfo" ] || cp "$src/modules.builtin.modinfo" "$root/lib/modules/$kver/"
# depmod of the guest's own kmod, first over everything, to learn the dependencies.
guest_depmod() { chroot "$root" /usr/sbin/depmod "$@"; }
mv "$src" "$root/lib/modules/$kver.all"
mkdir -p "$root/all/lib/modules"
mv "$root/lib/modules/$kver.all" "$root/all/lib/modules/$kver"
guest_depmod -b /all "$kver"
(
  cd "$root/all/lib/modules/$kver"
  {
    for d in "${module_dirs[@]}"; do [ ! -d "$d" ] || find "$d" -name '*.ko*'; done
    for n in "${module_names[@]}"; do
      find kernel -name "$n.ko*" -o -name "${n//_/-}.ko*" -o -name "${n//-/_}.ko*"
    done
  } | sort -u > "$work/wanted"
  awk -v list="$work/wanted" -F': *' '
    { dep[$1] = $2 }
    END { while ((getline m < list) > 0) { print m; n = split(dep[m], a, " "); for (i = 1; i <= n; i++) print a[i] } }
  ' modules.dep | sort -u | tar -c -T - | tar -x -C "$root/lib/modules/$kver"
)
# Load order for the initramfs, from the full dependency list.
for m in "${boot_modules[@]}"; do
  chroot "$root" /usr/sbin/modprobe -d /all -S "$kver" --show-depends "$m" 2>/dev/null || true
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' > "$work/boot-modules"
mkdir -p "$work/initrd"/{bin,proc,sys,dev,root,mods}
n=100
while read -r ko; do
  cp "$root/$ko" "$work/initrd/mods/$n-$(basename "$ko")"
  n=$((n + 1))
done < "$work/boot-modules"
rm -rf "$root/all"
# Debian's module signatures, checked with RSA at every load, are no use here and slow under TCG.
find "$root/lib/modules" "$work/initrd/mods" -name '*.ko' -print0 | python3 -c '
import os, struct, sys
for name in sys.stdin.buffer.read().split(b"\0")[:-1]:
    d = open(name, "rb").read()
    if d.endswith(b"~Module signature appended~\n"):
        os.truncate(name, len(d) - 28 - 12 - struct.unpack(">I", d[-32:-28])[0])
'
guest_depmod "$kver"
ls "$root/lib/modules/$kver/kernel/fs" > "$work/fs-list"

# ---- images -----------------------------------------------------------------------------------
say "packing the images"
install -m 755 "$root/bin/busybox" "$work/initrd/bin/busybox"
install -m 755 "$here/image/init" "$work/initrd/init"
mknod -m 600 "$work/initrd/dev/console" c 5 1
(cd "$work/initrd" && find . | LC_ALL=C sort | "$root/bin/busybox" cpio -o -H newc) > "$work/initrd.img" 2>/dev/null
size=$(($(du -sm --apparent-size "$root" | cut -f1) * 115 / 100 + 24))
rm -f "$work/rootfs.ext4"
mke2fs -q -t ext4 -O ^has_journal,^metadata_csum,^resize_inode -m 0 -L guestroot -d "$root" "$work/rootfs.ext4" "${size}M" > /dev/null

{
  echo "kernel $kver ($kernel_pkg)"
  echo "modules for these file systems: $(tr '\n' ' ' < "$work/fs-list")"
  sort "$work/manifest"
} > "$work/manifest.txt"
rm -f "$cache/stamp"
mv "$work"/{vmlinux,initrd.img,rootfs.ext4,manifest.txt} "$cache/"
echo "$stamp" > "$cache/stamp"
say "done: $(du -sh "$cache/rootfs.ext4" | cut -f1) root image, $(du -sh "$cache/initrd.img" | cut -f1) initramfs, in $cache, after $((SECONDS - started)) s"
