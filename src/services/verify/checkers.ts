// Checkers: per type of file system, its own checker and how the kernel mounts it. All of them only look.

/** How a volume of some type is checked. */
export interface Checker {
	readonly program: string;
	/** Debian's package that has it. */
	readonly package: string;
	/** Exit code 0 says that all is right. */
	readonly arguments: (device: string) => readonly string[];
	/** The kernel's name of the type. */
	readonly mountType: string;
	/** Beside those for all types. */
	readonly mountOptions: string;
}

const checker = (
	program: string,
	from: string,
	options: readonly string[],
	mountType: string,
	mountOptions = "",
): Checker => ({
	program,
	package: from,
	arguments: (device) => [...options, device],
	mountType,
	mountOptions,
});

/** A guest's superblock may want a panic at errors, which would be this host's. */
const ext = (type: string): Checker => checker("e2fsck", "e2fsprogs", ["-f", "-n"], type, "errors=remount-ro");
const fat = checker("fsck.fat", "dosfstools", ["-n"], "vfat");

/** By the type of a volume. */
export const checkers: ReadonlyMap<string, Checker> = new Map([
	["ext2", ext("ext2")],
	["ext3", ext("ext3")],
	["ext4", ext("ext4")],
	// Both views have the same UUID, which XFS would refuse where one lingers.
	["xfs", checker("xfs_repair", "xfsprogs", ["-n"], "xfs", "nouuid")],
	["btrfs", checker("btrfs", "btrfs-progs", ["check", "--readonly"], "btrfs")],
	["vfat", fat],
	["fat12", fat],
	["fat16", fat],
	["fat32", fat],
	["ntfs", checker("ntfsfix", "ntfs-3g", ["-n"], "ntfs3")],
	["exfat", checker("fsck.exfat", "exfatprogs", ["-n"], "exfat")],
	["f2fs", checker("fsck.f2fs", "f2fs-tools", ["--dry-run"], "f2fs")],
]);
