// `make demo`: a guest deletes a large file, and the host gets the space back. Under two minutes, without KVM.
//
//                         ┌─ disk 0: vmsweep   first image + second image, cleaned while the guest runs
//   one guest, trim off ──┤
//                         └─ disk 1: qcow2 overlay over an empty raw base, for comparison; committed at the end
//
// On both disks the guest makes ext4, writes files that stay, then a 600 MiB file that it deletes again. vmsweep must
// then come back by itself to what it held before, while the guest runs. The overlay and its commit keep everything
// that was ever written. At the end the files that stayed are read back from vmsweep's disk and compared.
//
// Exit code 1 where the second image keeps more than KEPT_BYTES_MAX above what the guest's own use grew by, the first
// image more than FIRST_BYTES_MAX, both within CLEANED_WITHIN_SECONDS, or where a file is not what it was.

import { randomFillSync } from "node:crypto";
import { existsSync } from "node:fs";
import { statfs, writeFile } from "node:fs/promises";
import { formatTable } from "../src/edges/cli/output.ts";
import { isVmsweepError, VmsweepError } from "../src/foundations/errors.ts";
import { formatBytes } from "../src/foundations/units.ts";
import { askStatus } from "../src/services/control.ts";
import { Guest, nbdUri } from "../test/support/guest.ts";
import { allocatedBytes, hashBytes } from "../test/support/hashes.ts";
import { checkout, run, runOk, start, vmsweep } from "../test/support/processes.ts";
import { waitUntil } from "../test/support/waiting.ts";
import { DemoDisplay, type Figures } from "./demo-display.ts";
import { requirePrograms } from "./required-programs.ts";
import { ScratchFolder } from "./scratch-folder.ts";

const MIB = 1 << 20;
const DISK_MIB = 2048;
/** What the guest copies its files from: random bytes, on a third disk, so that the guest need not compute them. */
const SOURCE_MIB = 100;
/** The files that stay are the source in pieces. */
const KEPT_FILES = 4;
const DELETED_MIB = 600;
const FIRST_BYTES_MAX = 64 * MIB;
const KEPT_BYTES_MAX = 8 * MIB;
const CLEANED_WITHIN_SECONDS = 60;
/** On the host, for all images at their largest. */
const ROOM_BYTES = 4 * 1024 * MIB;
/** As make bench: a folder that is on a disk, not in memory, on most systems. */
const PLACE = "/var/tmp";

/** One disk at one moment, in bytes. */
interface Moment {
	/** What df shows in the guest as used. */
	readonly guestBytes: number;
	/** All blocks that the file system uses, its own structures included. */
	readonly blocksBytes: number;
	/** First image, or overlay. */
	readonly upperBytes: number;
	/** Second image, or base. */
	readonly lowerBytes: number;
}

/** The three moments of the closing table. */
interface Story {
	readonly before: Moment;
	readonly full: Moment;
	readonly after: Moment;
}

class Demo {
	readonly #scratch: ScratchFolder;
	readonly #display = new DemoDisplay(() => this.#figures());
	readonly #disk: string;
	readonly #overlay: string;
	readonly #base: string;
	readonly #source: string;
	#served = false;

	constructor(scratch: ScratchFolder) {
		this.#scratch = scratch;
		this.#disk = scratch.file("disk");
		this.#overlay = scratch.file("overlay.qcow2");
		this.#base = scratch.file("base.raw");
		this.#source = scratch.file("source.raw");
	}

	/** Plays the demo. Returns what is wrong at its end: nothing, if all is well. */
	async play(): Promise<string[]> {
		const ended = Promise.withResolvers<never>();
		ended.promise.catch(() => {}); // told by the step that it ends
		const step = <T>(title: string, work: () => Promise<T>): Promise<T> =>
			this.#display.step(title, () => Promise.race([work(), ended.promise]));
		const hashes = await step("two disks: one by vmsweep, one as an overlay", () => this.#makeDisks());
		const socket = this.#scratch.file("nbd.sock");
		await using server = start(vmsweep, ["serve", this.#disk, "--socket", socket, "--clean", "continuous"]);
		await server.until(() => existsSync(socket), "its socket");
		this.#served = true;
		void server.finished.then(({ stdout, stderr }) => {
			if (this.#served) ended.reject(new VmsweepError("IO", `vmsweep serve ended by itself: ${stdout}${stderr}`));
		});

		await using guest = await step("a guest boots, its trim switched off", () => this.#boot(socket));
		await step("the guest makes ext4 on both disks", () => guest.run(script(MAKE_FILE_SYSTEMS)));
		await step(`the guest writes ${SOURCE_MIB} MiB that stay`, () => guest.run(script(KEEP_FILES)));
		await step("vmsweep clean, to begin from rest", () => runOk(vmsweep, ["clean", this.#disk]));
		const [before, overlayBefore] = [await this.#moment(guest, 0), await this.#moment(guest, 1)];

		await step(`the guest writes a ${DELETED_MIB} MiB file`, () => guest.run(script(WRITE_LARGE, 0)));
		const full = await this.#moment(guest, 0);
		const problems: string[] = [];
		const cleaned = this.#cleaned(before, problems);
		await step("the guest deletes it, and runs on", () => guest.run(script(DELETE_LARGE, 0)));
		const overlayFull = await step("meanwhile, the same on the overlay", async () => {
			await guest.run(script(WRITE_LARGE, 1));
			const moment = await this.#moment(guest, 1);
			await guest.run(script(DELETE_LARGE, 1));
			return moment;
		});
		const cleanedLine = await step("vmsweep gives the space back by itself", () => cleaned);
		await step("the guest reads its files back, not from memory", async () => {
			problems.push(...differences(hashes, await guest.run(script(READ_FILES))));
		});
		const after = await this.#moment(guest, 0);
		problems.push(...this.#verdict(before, after));
		const overlayAfter = await this.#moment(guest, 1);
		await step("the guest shuts down", () => guest.stop());

		const committed = await step("qemu-img commit of the overlay", () => this.#commitOverlay(overlayAfter));
		this.#served = false;
		await server.end();
		await step("vmsweep commit, e2fsck of the second image", () => this.#checkFileSystem(problems));
		const ours = { before, full, after };
		this.#printTable(ours, { before: overlayBefore, full: overlayFull, after: committed });
		console.log(cleanedLine);
		console.log(`The demo took ${Math.round(this.#display.seconds)} s.`);
		return problems;
	}

	/** Makes both disks and the source. Returns the hashes of the files that will stay. */
	async #makeDisks(): Promise<string[]> {
		await runOk(vmsweep, ["create", this.#disk, "--size", `${DISK_MIB}M`]);
		await runOk("qemu-img", ["create", "-q", "-f", "raw", this.#base, `${DISK_MIB}M`]);
		await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-b", this.#base, "-F", "raw", this.#overlay]);
		const bytes = randomFillSync(new Uint8Array(SOURCE_MIB * MIB));
		await writeFile(this.#source, bytes);
		const length = bytes.length / KEPT_FILES;
		return Array.from({ length: KEPT_FILES }, (_, i) => hashBytes(bytes.subarray(i * length, (i + 1) * length)));
	}

	#boot(socket: string): Promise<Guest> {
		const disks = [
			{ uri: nbdUri(socket) },
			{ uri: this.#overlay, options: { format: "qcow2" } },
			{ uri: this.#source, options: { format: "raw", ro: "on" } },
		];
		return Guest.boot({ disks, discard: "off", memoryMib: 512 });
	}

	/**
	 * Resolves when both images are small enough, with a line about the time that took, or when the time is over;
	 * then it says so in `problems`.
	 */
	async #cleaned(before: Moment, problems: string[]): Promise<string> {
		const started = performance.now();
		const small = async (): Promise<boolean> => {
			const { first, second } = await this.#sizes();
			return first <= FIRST_BYTES_MAX && second <= before.lowerBytes + KEPT_BYTES_MAX;
		};
		try {
			await waitUntil(small, "the space", { timeoutSeconds: CLEANED_WITHIN_SECONDS, everyMs: 250 });
		} catch {
			problems.push(`the space was not given back within ${CLEANED_WITHIN_SECONDS} s`);
			return "The space did not come back in time.";
		}
		const seconds = (performance.now() - started) / 1000;
		return `The space was back ${seconds.toFixed(1)} s after the guest began to delete the file, while it ran.`;
	}

	#verdict(before: Moment, after: Moment): string[] {
		const problems: string[] = [];
		const growth = after.lowerBytes - before.lowerBytes;
		const allowed = Math.max(0, after.blocksBytes - before.blocksBytes) + KEPT_BYTES_MAX;
		if (growth > allowed)
			problems.push(`the second image grew by ${formatBytes(growth)}, more than ${formatBytes(allowed)}`);
		if (after.upperBytes > FIRST_BYTES_MAX)
			problems.push(
				`the first image holds ${formatBytes(after.upperBytes)}, more than ${formatBytes(FIRST_BYTES_MAX)}`,
			);
		return problems;
	}

	async #commitOverlay(uncommitted: Moment): Promise<Moment> {
		await runOk("qemu-img", ["commit", "-q", this.#overlay]);
		const [upperBytes, lowerBytes] = [await allocatedBytes(this.#overlay), await allocatedBytes(this.#base)];
		return { ...uncommitted, upperBytes, lowerBytes };
	}

	async #checkFileSystem(problems: string[]): Promise<void> {
		await runOk(vmsweep, ["commit", this.#disk]);
		const { exitCode, stdout, stderr } = await run("e2fsck", ["-fn", this.#scratch.file("disk/second.raw")]);
		if (exitCode !== 0) problems.push(`e2fsck finds errors on the second image: ${stdout}${stderr}`);
	}

	async #moment(guest: Guest, disk: number): Promise<Moment> {
		const [total, free, blockSize] = (await guest.run(`stat -f -c '%b %f %S' /mnt/${disk}`)).split(" ").map(Number);
		const { first, second } = await this.#sizes();
		const onHost =
			disk === 0 ? [first, second] : [await allocatedBytes(this.#overlay), await allocatedBytes(this.#base)];
		return {
			guestBytes: (total! - free!) * blockSize!,
			blocksBytes: DISK_MIB * MIB - free! * blockSize!,
			upperBytes: onHost[0]!,
			lowerBytes: onHost[1]!,
		};
	}

	async #sizes(): Promise<{ readonly first: number; readonly second: number }> {
		return {
			first: await allocatedBytes(this.#scratch.file("disk/first.log")),
			second: await allocatedBytes(this.#scratch.file("disk/second.raw")),
		};
	}

	async #figures(): Promise<Figures | undefined> {
		if (!this.#served) return undefined;
		// What `vmsweep status` asks, without a process for each answer. No answer must not end the demo: a step does.
		const status = await askStatus(this.#disk).catch(() => undefined);
		if (status === undefined) return undefined;
		const { first, second } = await this.#sizes();
		return {
			firstBytes: first,
			secondBytes: second,
			droppedBytes: status.cleaner.droppedBytes,
			movedBytes: status.cleaner.movedBytes,
		};
	}

	#printTable(ours: Story, theirs: Story): void {
		const row = (name: string, { before, full, after }: Story, bytes: (moment: Moment) => number): string[] => [
			name,
			...[before, full, after].map((moment) => formatBytes(bytes(moment))),
		];
		const host = ({ upperBytes, lowerBytes }: Moment): number => upperBytes + lowerBytes;
		const rows = [
			["", `${SOURCE_MIB} MiB of files`, `and a ${DELETED_MIB} MiB file`, "file deleted"],
			row("guest uses (df)", ours, ({ guestBytes }) => guestBytes),
			["vmsweep"],
			row("  first image", ours, ({ upperBytes }) => upperBytes),
			row("  second image", ours, ({ lowerBytes }) => lowerBytes),
			row("  on the host", ours, host),
			["overlay, committed at the end"],
			row("  overlay", theirs, ({ upperBytes }) => upperBytes),
			row("  base image", theirs, ({ lowerBytes }) => lowerBytes),
			row("  on the host", theirs, host),
			["saved by vmsweep", "", "", formatBytes(host(theirs.after) - host(ours.after))],
		];
		console.log(`\n${formatTable(rows, [1, 2, 3])}`);
	}
}

// ---- What the guest runs. $DISK0, $DISK1 and $DISK2 (the source) are its disks, $N the one that a script is for. ----

/** All of ext4's own structures are written at once, so that the images' later growth is the files' alone. */
const MAKE_FILE_SYSTEMS = `
for n in 0 1; do
	disk=DISK$n
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 \${!disk}
	mkdir -p /mnt/$n
	mount \${!disk} /mnt/$n
done`;
const KEEP_FILES = `
for n in 0 1; do
	for i in $(seq 0 ${KEPT_FILES - 1}); do
		dd if=$DISK2 of=/mnt/$n/kept-$i bs=1M count=${SOURCE_MIB / KEPT_FILES} skip=$((i * ${SOURCE_MIB / KEPT_FILES})) status=none
	done
	sync -f /mnt/$n
done`;
const WRITE_LARGE = `
for i in $(seq 0 ${DELETED_MIB / SOURCE_MIB - 1}); do
	dd if=$DISK2 of=/mnt/$N/large bs=1M count=${SOURCE_MIB} seek=$((i * ${SOURCE_MIB})) oflag=direct conv=notrunc status=none
done
sync -f /mnt/$N`;
const DELETE_LARGE = `
rm /mnt/$N/large
sync -f /mnt/$N`;
const READ_FILES = `
echo 3 > /proc/sys/vm/drop_caches
for i in $(seq 0 ${KEPT_FILES - 1}); do
	sha256sum < /mnt/$N/kept-$i
done`;

const script = (text: string, disk = 0): string => `set -e\nN=${disk}${text}\n`;

/** Compares sha256sum's output with the hashes of what was written. */
function differences(expected: readonly string[], output: string): string[] {
	const found = output
		.trim()
		.split("\n")
		.map((line) => line.split(" ")[0]);
	return expected.flatMap((hash, i) => (found[i] === hash ? [] : [`the file kept-${i} is not what was written`]));
}

async function requireRoomAndTools(): Promise<void> {
	requirePrograms("the demo", ["qemu-system-x86_64", "qemu-img", "e2fsck", "python3"]);
	if ((await run(`${checkout}/test/guest/setup.sh`, ["--check"])).exitCode !== 0)
		throw new VmsweepError("USAGE", 'the demo needs the guest image. As root, "make setup-guest" builds it.');
	const { bavail, bsize } = await statfs(PLACE);
	if (bavail * bsize < ROOM_BYTES)
		throw new VmsweepError(
			"NO_SPACE",
			`${PLACE} has less than ${formatBytes(ROOM_BYTES)} free. Make room there, then try again.`,
		);
}

try {
	await requireRoomAndTools();
	await using scratch = await ScratchFolder.make(PLACE, "vmsweep-demo-");
	const problems = await new Demo(scratch).play();
	for (const problem of problems) console.error(`FAILED: ${problem}`);
	if (problems.length === 0) console.log("All files are as they were written; e2fsck finds no error.");
	else process.exitCode = 1;
} catch (error) {
	if (!isVmsweepError(error)) throw error;
	console.error(`demo: ${error.message}`);
	process.exitCode = error.exit;
}
