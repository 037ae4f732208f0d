// Commands: what each one takes, as commander knows it. The manual's pages are compared with these declarations.
//
// A command's own file asks a service and prints; it decides nothing. It is loaded only when the command is called:
// all of them with what they import take half a second, one of them a fraction of it.

import { Command, Option } from "commander";
import {
	collectAgents,
	parseAddress,
	parseClusterSize,
	parseCount,
	parseInterval,
	parseOffset,
	parseSeconds,
	parseSize,
} from "./values.ts";

/** All commands but help, in the order in which help lists them. */
export const allCommands = (): Command[] => [
	mapCommand(),
	explainCommand(),
	sweepCommand(),
	convertCommand(),
	createCommand(),
	serveCommand(),
	statusCommand(),
	whyCommand(),
	verifyCommand(),
	cleanCommand(),
	snapshotCommand(),
	undoCommand(),
	checkCommand(),
	resizeCommand(),
	commitCommand(),
	attachCommand(),
	versionCommand(),
];

const IMAGE = "image in any format, block device or NBD address, not in use by a running VM";
/** Of verify, in bytes per second: a guest's own reads hardly notice it. */
const MAX_RATE = 100 * 1024 * 1024;
const JSON_OPTION = ["--json", "print JSON"] as const;
const VM_OFF = [
	"--vm-off",
	"the VM is off for good: shut down or crashed, with no saved state and not hibernated",
] as const;

const mapCommand = (): Command =>
	new Command("map")
		.description("show what the guest uses of an image, per volume; changes nothing")
		.argument("<image>", IMAGE)
		.option(...JSON_OPTION)
		.option("--extents", "list every used, free and unknown extent of the disk")
		.option(...VM_OFF)
		.action(async (image, options) => (await import("./map.ts")).map(image, options));

const explainCommand = (): Command =>
	new Command("explain")
		.description("say why an image is as large as it is, and what a sweep would give back; changes nothing")
		.argument("<image>", `${IMAGE}; or a disk's folder`)
		.option(...JSON_OPTION)
		.option(...VM_OFF)
		.action(async (image, options) => (await import("./explain.ts")).explain(image, options));

const sweepCommand = (): Command =>
	new Command("sweep")
		.description("drop unused blocks of an image, offline and in place")
		.argument("<image>", "raw or qcow2 image or block device, with its VM shut down")
		.option("--dry-run", "change nothing; say what a sweep would give back")
		.option("--compact", "qcow2: also move clusters from the file's end into its holes, and make it shorter")
		.option(...VM_OFF)
		.option("--keep-lvm-free", "keep what lies in LVM's free extents, so that vgcfgrestore can bring it back")
		.option("--overlay <file>", "an image made on top of this one; may be given several times", gather)
		.option("--data-file <file>", "the image's data file, where that lies in another folder", gather)
		.option(...JSON_OPTION)
		.action(async (image, options) => (await import("./sweep.ts")).sweep(image, options));

const convertCommand = (): Command =>
	new Command("convert")
		.description("copy what the guest uses of an image into a new one")
		.argument("<source>", IMAGE)
		.argument("<target>", "new image, or a block device")
		.addOption(
			new Option("--format <format>", "format of the target (default: by its name, else raw)").choices([
				"raw",
				"qcow2",
			]),
		)
		.addOption(new Option("--compress <method>", "qcow2: compress clusters").choices(["zstd", "none"]).default("none"))
		.option("--cluster-size <size>", "qcow2: size of a cluster, 4K to 2M (default: 64K)", parseClusterSize)
		.option("--overwrite-device", "the target is a block device, and all that it holds may go")
		.option(...VM_OFF)
		.option(...JSON_OPTION)
		.action(async (source, target, options) => (await import("./convert.ts")).convert(source, target, options));

const createCommand = (): Command =>
	new Command("create")
		.description("make a disk: a new folder that holds or names both images")
		.argument("<disk>", "the disk's folder, to be made")
		.addOption(new Option("--size <size>", "size of a new disk").argParser(parseSize).conflicts("second"))
		.addOption(
			new Option("--format <format>", "format of a new disk's second image (default: raw)")
				.choices(["raw", "qcow2"])
				.conflicts("second"),
		)
		.addOption(
			new Option("--backing <image>", "begin with what this raw or qcow2 image holds; it is never changed").conflicts(
				"second",
			),
		)
		.option("--second <image>", "adopt this raw or qcow2 image or block device, in place, as the second image")
		.option("--log-limit <size>", "most host space that the first image may take", parseSize)
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./create.ts")).create(disk, options));

const serveCommand = (): Command =>
	new Command("serve")
		.description("serve disks to VMs over NBD, and clean them")
		.argument("<disk...>", "folders of disks")
		.addOption(
			new Option("--socket <path>", "one Unix socket for all disks (default: DISK/nbd.sock each)").conflicts("listen"),
		)
		.option("--listen <address>", "one TCP (HOST:PORT) or vsock (vsock:CID:PORT) address for all disks", parseAddress)
		.addOption(
			new Option("--clean <when>", "clean continuously, or only by the clean command")
				.choices(["continuous", "off"])
				.default("continuous"),
		)
		.option("--read-only", "clients can't write; cleaning goes on")
		.option("--max-clients <count>", "clients that each disk may have at once", parseCount)
		.addOption(
			new Option("--request-timeout <seconds>", "close clients that stop in the middle of a request; 0 for never")
				.argParser(parseSeconds)
				.default(300_000, "300"),
		)
		.option("--idle-timeout <seconds>", "close clients that ask nothing for so long", parseSeconds)
		.option("--tls-cert <file>", "encrypt, with this certificate of the server (PEM)")
		.option("--tls-key <file>", "the certificate's key (PEM)")
		.option("--tls-ca <file>", "authority that signs clients' certificates (PEM)")
		.option("--tls-verify-peer", "clients need a certificate signed by the authority")
		.option("--tls-psk <file>", "encrypt, with keys shared with clients: lines of NAME:HEX-KEY")
		.option("--tls-creds <folder>", "encrypt, with the files that QEMU looks for in such a folder")
		.option("--tls-optional", "clients without TLS are served as well")
		.option("--log-limit <size>", "most host space that each first image may take", parseSize)
		.option("--max-rate <size>", "most bytes that cleaning reads and writes per second (default: no limit)", parseSize)
		.option("--quarantine <seconds>", "keep dropped blocks for so long, so that undo brings them back", parseSeconds)
		.addOption(
			new Option("--lvm-free <what>", "keep or drop what lies in LVM's free extents")
				.choices(["keep", "drop"])
				.default("keep"),
		)
		.addOption(
			new Option("--btrfs-mounted <what>", "keep or drop what a mounted btrfs of Linux has given up")
				.choices(["keep", "drop"])
				.default("keep"),
		)
		.addOption(
			new Option(
				"--qga <agent>",
				"guest agent's socket, SOCKET or DISK=SOCKET: freeze the guest now and then",
			).argParser(collectAgents),
		)
		.addOption(
			new Option("--freeze-every <seconds>", "freeze a guest at most so often")
				.argParser(parseInterval)
				.default(600_000, "600"),
		)
		.option("--accept-changed-image", "serve although the second image was changed since the disk was closed")
		.option("--print-qemu", "print how to attach each disk to QEMU and libvirt")
		.option("--json", "print JSON, one line per disk")
		.action(async (disks, options) => (await import("./serve.ts")).serve(disks, options));

const statusCommand = (): Command =>
	new Command("status")
		.description("show the state of a disk, or of all disks in the current folder")
		.argument("[disk]", "the disk's folder")
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./status.ts")).status(disk, options));

const whyCommand = (): Command =>
	new Command("why")
		.description("tell everything known about one block of a disk; the VM may be running")
		.argument("<disk>", "the disk's folder")
		.argument("<offset>", "a byte of the disk, such as 1048576 or 10G", parseOffset)
		.option(...JSON_OPTION)
		.action(async (disk, offset, options) => (await import("./why.ts")).why(disk, offset, options));

const verifyCommand = (): Command =>
	new Command("verify")
		.description(
			"prove that nobody needs what cleaning would drop: with checkers and file hashes; the VM may be running",
		)
		.argument("<disk>", "the disk's folder")
		.option("--volume <id>", "only this volume, by its id in status")
		.option("--keep-going", "go on after a difference, and where a checker is missing")
		.option("--no-mount", "don't mount the guest's file systems on this host: only run checkers")
		.addOption(
			new Option("--max-rate <size>", "most bytes that are read per second")
				.argParser(parseSize)
				.default(MAX_RATE, "100M"),
		)
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./verify.ts")).verify(disk, options));

const cleanCommand = (): Command =>
	new Command("clean")
		.description("clean everything that can be cleaned now; the VM may be running")
		.argument("<disk>", "the disk's folder")
		.option("--vm-off", "the VM is off for good: shut down or crashed, with no saved state and not hibernated")
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./clean.ts")).clean(disk, options));

const snapshotCommand = (): Command =>
	new Command("snapshot")
		.description("keep a disk as it is now, readable under a name; or list its snapshots")
		.argument("<disk>", "the disk's folder")
		.argument("[name]", "name of the snapshot; without it all are listed")
		.option("--delete", "delete the snapshot")
		.option(...JSON_OPTION)
		.action(async (disk, name, options) => (await import("./snapshot.ts")).snapshot(disk, name, options));

const undoCommand = (): Command =>
	new Command("undo")
		.description("bring back blocks that cleaning dropped and the quarantine still holds, with the VM off")
		.argument("<disk>", "the disk's folder; nobody may serve it")
		.option("--dry-run", "change nothing; say how much could be brought back")
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./undo.ts")).undo(disk, options));

const checkCommand = (): Command =>
	new Command("check")
		.description("read all of a disk again and compare it with its checksums; the VM may be running")
		.argument("<disk>", "the disk's folder")
		.option("--repair", "repair what can be repaired")
		.option("--max-rate <size>", "most bytes that are read per second (default: no limit)", parseSize)
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./check.ts")).check(disk, options));

const resizeCommand = (): Command =>
	new Command("resize")
		.description("give a disk another size; growing it while the VM is running")
		.argument("<disk>", "the disk's folder")
		.argument("<size>", "its new size", parseSize)
		.option(
			"--shrink",
			"cut the disk's end off, where the guest's file systems show that it is unused; with the VM off",
		)
		.option(...JSON_OPTION)
		.action(async (disk, size, options) => (await import("./resize.ts")).resize(disk, size, options));

const attachCommand = (): Command =>
	new Command("attach")
		.description("bring a disk back to use whose first image is lost")
		.argument("<disk>", "the disk's folder; nobody may serve it")
		.requiredOption("--second-only", "from the second image alone, as far as it stands by itself")
		.option("--accept-broken", "even where the cleaner was interrupted, so that its content is of two different times")
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./attach.ts")).attach(disk, options));

const commitCommand = (): Command =>
	new Command("commit")
		.description("fold the first image into the second completely, with the VM off")
		.argument("<disk>", "the disk's folder; nobody may serve it")
		.option(...JSON_OPTION)
		.action(async (disk, options) => (await import("./commit.ts")).commit(disk, options));

const versionCommand = (): Command =>
	new Command("version")
		.description("print the version")
		.option(...JSON_OPTION)
		.action(async (options) => (await import("./version.ts")).printVersion(options));

/** Gathers the values of an option that may be given several times. */
const gather = (value: string, before: readonly string[] = []): readonly string[] => [...before, value];
