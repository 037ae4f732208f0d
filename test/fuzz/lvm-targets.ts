// Disks with LVM to mutate, made by lvm2's own tools. Texts and headers get their checksums again.
//
// What a logical volume has, no mutation may give away that leaves the truth on the disk: one that touches only one of
// several copies, one label, or nothing of the text but words.

import { writeFile } from "node:fs/promises";
import * as layout from "../../src/core/volumes/lvm/layout.ts";
import { lvmChecksum, SECTOR } from "../../src/core/volumes/lvm/layout.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import { scramble } from "./reader-fuzz.ts";
import { damageAnywhere, scrambleAt } from "./seeded-fuzz.ts";
import { SparseImage } from "./sparse-image.ts";
import { mutateText } from "./text-mutations.ts";

const MIB = 1 << 20;

export interface LvmTarget {
	readonly name: string;
	readonly image: SparseImage;
	/** Positions of labels, and of metadata areas with their lengths. */
	readonly labels: readonly number[];
	readonly areas: readonly { readonly pvAt: number; readonly at: number; readonly length: number }[];
}

interface Disk {
	readonly name: string;
	/** Start and size of each physical volume, in MiB; one at 0 is the whole disk. */
	readonly parts: readonly (readonly [number, number])[];
	readonly copies: string;
	/** Options of `lvcreate`, one volume each; the second one is removed again. */
	readonly volumes: readonly (readonly string[])[];
}

const disks: readonly Disk[] = [
	{
		name: "LVM on two partitions",
		parts: [
			[1, 6],
			[7, 6],
		],
		copies: "1",
		volumes: [
			["-l40", "-nroot"],
			["-l10", "-ngap"],
			["-l40", "-i2", "-I8k", "-nwide"],
			["-l5", "-ndata"],
		],
	},
	{
		name: "LVM on the whole disk",
		parts: [[0, 6]],
		copies: "2",
		volumes: [
			["-l40", "-nroot"],
			["-l5", "-ngap"],
		],
	},
];

export async function lvmTargets(): Promise<LvmTarget[]> {
	const targets: LvmTarget[] = [];
	for (const disk of disks) targets.push(await makeDisk(disk));
	return targets;
}

async function makeDisk({ name, parts, copies, volumes }: Disk): Promise<LvmTarget> {
	await using folder = await temporaryFolder();
	const disk = folder.file("disk");
	const [lastStart, lastSize] = parts.at(-1)!;
	await runOk("truncate", ["-s", `${lastStart + lastSize + (lastStart > 0 ? 1 : 0)}M`, disk]);
	if (lastStart > 0)
		await runOk("sgdisk", parts.map(([start, size], index) => `-n${index + 1}:${start * 2048}:+${size}M`).concat(disk));
	const devices: string[] = [];
	try {
		for (const [start, size] of parts) {
			const range = ["-o", `${start * MIB}`, "--sizelimit", `${size * MIB}`];
			devices.push((await runOk("losetup", ["-f", "--show", ...range, disk])).trim());
		}
		await writeFile(
			folder.file("lvm.conf"),
			`devices { dir="/dev" scan=["/dev"] filter=[${devices.map((device) => `"a|^${device}$|"`).join()},"r|.*|"] use_devicesfile=0 }
global { event_activation=0 locking_dir="${folder.file("locks")}" activation=0 use_lvmpolld=0 }
backup { backup=0 archive=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
`,
		);
		const lvm = (tool: string, ...words: string[]): Promise<string> =>
			runOk(tool, words, { environment: { LVM_SYSTEM_DIR: folder.path } });
		const areas = ["--metadatasize=64k", `--metadatacopies=${copies}`, "--dataalignment=64k"];
		await lvm("pvcreate", "-q", ...areas, ...devices);
		await lvm("vgcreate", "-q", "-s64k", "vg0", ...devices);
		for (const options of volumes) await lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", ...options, "vg0");
		await lvm("lvremove", "-y", "vg0/gap");
		await lvm("lvextend", "-l+20", "vg0/root");
		// Where the first piece of it lies, so that a file system is found there; its own reader has its own tests.
		const first = await lvm("lvs", "--noheadings", "-odevices", "vg0/root");
		if (!first.includes(`${devices[0]}(0)`)) throw new Error(`root is at ${first}`);
	} finally {
		for (const device of devices) await runOk("losetup", ["-d", device]);
	}
	const made = await SparseImage.load(disk);
	const physical = parts.map(([start]) => start * MIB);
	const target = { name, image: made, ...placesOf(made, physical) };
	makeSame(target);
	return { ...target, image: SparseImage.of(made.bytes(0, made.size)) };
}

/** A seed must do the same everywhere: so identities, times, hosts and devices, as lvm2 writes them, become always the same. */
function makeSame(target: LvmTarget): void {
	const { image, labels, areas } = target;
	const identities = new Map<string, string>();
	const sameIdentity = (old: string): string => {
		const letter = String.fromCharCode("a".charCodeAt(0) + identities.size);
		const same = identities.get(old) ?? old.replaceAll(/\w/g, letter);
		identities.set(old, same);
		return same;
	};
	changeTexts(target, areas, (text) => ({
		text: text
			.replaceAll(/#.*/g, "#")
			.replaceAll(/\w{6}(?:-\w{4}){5}-\w{6}/g, sameIdentity)
			.replaceAll(/creation_time = \d+/g, "creation_time = 1700000000")
			.replaceAll(/creation_host = "[^"]*"/g, 'creation_host = "vm"')
			.replaceAll(/"\/dev\/loop\d+"/g, '"/dev/sda"'),
		step: "the same",
	}));
	// Texts of earlier times go.
	for (const { at, length } of areas) {
		const end = SECTOR + layout.RawText.at(viewOf(image.bytes(at, SECTOR)), layout.RAW_TEXTS_AT).size;
		image.write(at + end, new Uint8Array(length - end));
	}
	for (const label of labels) {
		const sector = image.bytes(label, SECTOR);
		const uuidAt = layout.Label.read.headerOffset(viewOf(sector), 0) + layout.PvHeader.offset.uuid;
		const uuid = sector.subarray(uuidAt, uuidAt + 32);
		const found = [...identities].find(([old]) => old.replaceAll("-", "") === layout.ascii(uuid));
		uuid.set(new TextEncoder().encode(found![1].replaceAll("-", "")));
		sealLabel(sector);
		image.write(label, sector);
	}
}

function placesOf(image: SparseImage, physical: readonly number[]): Pick<LvmTarget, "labels" | "areas"> {
	const labels: number[] = [];
	const areas: { pvAt: number; at: number; length: number }[] = [];
	for (const pvAt of physical) {
		const label = pvAt + SECTOR;
		labels.push(label);
		const view = viewOf(image.bytes(label, SECTOR));
		let at = layout.Label.read.headerOffset(view, 0) + layout.PvHeader.size;
		// Data areas, then metadata areas.
		for (let lists = 0; lists < 2; at += layout.DiskArea.size) {
			const area = layout.DiskArea.at(view, at);
			if (area.offset === 0) lists++;
			else if (lists === 1) areas.push({ pvAt, at: pvAt + area.offset, length: area.size });
		}
	}
	return { labels, areas };
}

/** One kind of mutation; `truthful`: what logical volumes have still stands on the disk. */
export interface LvmMutation {
	readonly truthful: boolean;
	apply(random: Random): string;
}

/** All mutations of one seed are of the kind that this picks. */
export function pickMutation(target: LvmTarget, random: Random): LvmMutation {
	const { image, labels, areas } = target;
	const kind = random.below(5);
	const area = random.pick(areas);
	const label = random.pick(labels);
	switch (kind) {
		case 0:
			return { truthful: true, apply: (random) => changeTexts(target, areas, (text) => withOtherWord(text, random)) };
		case 1:
			return {
				truthful: areas.length > 1,
				apply: (random) =>
					random.chance(0.5)
						? changeTexts(target, [area], (text) => mutateText(text, random))
						: changeHeader(image, area.at, random),
			};
		case 2:
			return { truthful: true, apply: (random) => changeLabel(image, label, random) };
		case 3:
			return { truthful: false, apply: (random) => changeTexts(target, areas, (text) => mutateText(text, random)) };
		default:
			return {
				truthful: false,
				apply(random) {
					if (random.chance(0.3)) return damageAnywhere(image, random);
					return random.chance(0.5)
						? changeLabel(image, random.pick(labels), random)
						: changeHeader(image, random.pick(areas).at, random);
				},
			};
	}
}

function changeLabel(image: SparseImage, at: number, random: Random): string {
	if (at + SECTOR > image.size) return "nothing";
	const sector = image.bytes(at, SECTOR);
	const offset = random.pick([
		random.pick(Object.values(layout.Label.offset)),
		layout.Label.size + random.pick([0, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0x68, 0x70, 0x78]),
		random.below(SECTOR),
	]);
	scramble(sector.subarray(offset), random, random.pick([1, 4, 8]));
	if (random.chance(0.95)) sealLabel(sector);
	image.write(at, sector);
	return `label at ${at}: byte ${offset}`;
}

const sealLabel = (sector: Uint8Array): void =>
	layout.Label.write.checksum(viewOf(sector), 0, lvmChecksum(sector.subarray(layout.LABEL_CHECKED_FROM)));

function changeHeader(image: SparseImage, at: number, random: Random): string {
	const offset = random.pick([
		...Object.values(layout.MetadataHeader.offset),
		...[0, layout.RawText.size].flatMap((text) =>
			Object.values(layout.RawText.offset).map((field) => layout.RAW_TEXTS_AT + text + field),
		),
	]);
	scrambleAt(image, at + offset, random, random.pick([1, 4, 8]));
	if (random.chance(0.95)) sealHeader(image, at);
	return `metadata header at ${at}: byte ${offset}`;
}

function sealHeader(image: SparseImage, at: number): void {
	if (at + SECTOR > image.size) return;
	const sector = image.bytes(at, SECTOR);
	const checksum = lvmChecksum(sector.subarray(layout.METADATA_CHECKED_FROM));
	layout.MetadataHeader.write.checksum(viewOf(sector), 0, checksum);
	image.write(at, sector);
}

/** Puts the same other text into some areas. */
function changeTexts(
	{ image }: LvmTarget,
	areas: LvmTarget["areas"],
	change: (text: string) => { readonly text: string; readonly step: string },
): string {
	const [first] = areas;
	const old = committedText(image, first!);
	if (old === undefined) return "nothing";
	const { text, step } = change(old);
	const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
	for (const { at, length } of areas) {
		if (bytes.length > length - SECTOR) return "nothing: too long";
		image.write(at + SECTOR, bytes);
		const header = image.bytes(at, SECTOR);
		layout.RawText.put(viewOf(header), layout.RAW_TEXTS_AT, {
			offset: SECTOR,
			size: bytes.length,
			checksum: lvmChecksum(bytes),
		});
		image.write(at, header);
		sealHeader(image, at);
	}
	return `text: ${step}`;
}

function committedText(image: SparseImage, { at, length }: LvmTarget["areas"][number]): string | undefined {
	const { offset, size } = layout.RawText.at(viewOf(image.bytes(at, SECTOR)), layout.RAW_TEXTS_AT);
	if (offset < SECTOR || offset + size > length || size > length) return undefined;
	const text = new TextDecoder("latin1").decode(image.bytes(at + offset, size));
	const end = text.indexOf("\0");
	return end < 0 ? text : text.slice(0, end);
}

/** Words that mean something to LVM, or nothing; but no volumes, since that would be another truth. */
const WORDS =
	"linear striped mirror raid1 thin thin-pool snapshot cache error zero VISIBLE READ PVMOVE LOCKED pv7 x".split(" ");

/** A change that leaves every number: a character that is none in the place of another one, or a word of LVM's own. */
function withOtherWord(text: string, random: Random): { text: string; step: string } {
	const isDigitAt = (at: number): boolean => /\d/.test(text[at] ?? "");
	const quoted = [...text.matchAll(/"[A-Za-z][\w+-]{0,19}"/g)];
	if (quoted.length > 0 && random.chance(0.4)) {
		const { 0: old, index } = random.pick(quoted);
		const word = `"${random.pick(WORDS)}"`;
		return {
			text: text.slice(0, index) + word + text.slice(index + old.length),
			step: `${old} at ${index} is ${word}`,
		};
	}
	for (let tries = 0; tries < 100; tries++) {
		const at = random.below(text.length);
		// Not at a number's border, either: it would be another one.
		if (isDigitAt(at - 1) || isDigitAt(at) || isDigitAt(at + 1)) continue;
		const character = random.pick(' \t\n"#[]{}=,.+-\\/:aZ\0'.split(""));
		return { text: text.slice(0, at) + character + text.slice(at + 1), step: `${JSON.stringify(character)} at ${at}` };
	}
	return { text, step: "nothing" };
}
