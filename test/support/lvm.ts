// LVM without a device mapper: lvm2's own tools change the metadata of volumes that are loop devices, and tell where the
// bytes of logical volumes lie. They see these devices only, and nothing of the host's own configuration.

import { writeFile } from "node:fs/promises";
import type { TemporaryFolder } from "./folders.ts";
import { runOk } from "./processes.ts";

const MIB = 1 << 20;

/** Volumes of a disk as loop devices, and lvm2's tools that see nothing else. */
export class Lvm implements AsyncDisposable {
	readonly devices: readonly string[];
	/** Where each device lies on the disk. */
	readonly offsets: readonly number[];
	readonly #environment: Readonly<Record<string, string>>;

	private constructor(devices: readonly string[], offsets: readonly number[], folder: string) {
		this.devices = devices;
		this.offsets = offsets;
		this.#environment = { LVM_SYSTEM_DIR: folder };
	}

	/** `parts`: start and size in MiB. */
	static async on(
		folder: TemporaryFolder,
		disk: string,
		...parts: readonly (readonly [number, number])[]
	): Promise<Lvm> {
		const devices: string[] = [];
		for (const [start, size] of parts)
			devices.push(
				(await runOk("losetup", ["-f", "--show", "-o", `${start * MIB}`, "--sizelimit", `${size * MIB}`, disk])).trim(),
			);
		const filter = [...devices.map((device) => `"a|^${device}$|"`), '"r|.*|"'].join(",");
		await writeFile(
			folder.file("lvm.conf"),
			`devices { dir="/dev" scan=["/dev"] filter=[${filter}] use_devicesfile=0 }
global { event_activation=0 locking_dir="${folder.file("locks")}" activation=0 use_lvmpolld=0 }
backup { backup=0 archive=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
`,
		);
		return new Lvm(
			devices,
			parts.map(([start]) => start * MIB),
			folder.path,
		);
	}

	async run(tool: string, ...words: readonly string[]): Promise<string> {
		return await runOk(tool, words, { environment: this.#environment });
	}

	/** Makes a logical volume of `extents` extents, without touching its content. */
	async create(name: string, extents: number, ...more: readonly string[]): Promise<void> {
		await this.run("lvcreate", "-an", "-Zn", "-Wn", "-y", "-l", `${extents}`, "-n", name, ...more, "vg0");
	}

	/** Runs of the disk as lvm2 lists them: `segtype` tells free extents, and whose the others are. */
	async segments(): Promise<{ name: string; start: number; length: number }[]> {
		const columns = "pv_name,lv_name,pvseg_start,pvseg_size,vg_extent_size,pe_start";
		const rows = await this.run(
			"pvs",
			"--noheadings",
			"--nosuffix",
			"--units=b",
			"--separator=|",
			`-o${columns}`,
			"--segments",
		);
		return rows
			.split("\n")
			.filter((row) => row.trim() !== "")
			.map((row) => {
				const [device, name, first, count, extent, start] = row.trim().split("|") as [string, ...string[]];
				const base = this.offsets[this.devices.indexOf(device)]! + Number(start);
				return { name: name!, start: base + Number(first) * Number(extent), length: Number(count) * Number(extent) };
			});
	}

	/** Where a device has its first extent, on the disk. */
	async #firstExtents(): Promise<ReadonlyMap<string, number>> {
		const rows = await this.run("pvs", "--noheadings", "--nosuffix", "--units=b", "-opv_name,pe_start");
		return new Map(
			[...rows.matchAll(/^\s+(\S+)\s+(\d+)$/gm)].map(([, device, start]) => [
				device!,
				this.offsets[this.devices.indexOf(device!)]! + Number(start),
			]),
		);
	}

	/** Where each byte of a striped or linear volume lies: `place(volume byte)`, from lvm2's own report. */
	async places(name: string): Promise<(at: number) => number> {
		const firstExtents = await this.#firstExtents();
		const columns = "seg_start_pe,seg_size_pe,stripes,stripe_size,devices,vg_extent_size";
		const rows = await this.run(
			"lvs",
			"--noheadings",
			"--nosuffix",
			"--units=b",
			"--separator=|",
			`-o${columns}`,
			"--segments",
			`vg0/${name}`,
		);
		const segments = rows
			.split("\n")
			.filter((row) => row.trim() !== "")
			.map((row) => {
				const [first, count, , stripe, devices, size] = row.trim().split("|") as string[];
				const extent = Number(size);
				const legs = devices!.split(",").map((leg) => {
					const [, device, at] = /^(.*)\((\d+)\)$/.exec(leg)!;
					return firstExtents.get(device!)! + Number(at) * extent;
				});
				return { start: Number(first) * extent, length: Number(count) * extent, stripe: Number(stripe), legs };
			});
		return (at) => {
			const segment = segments.find(({ start, length }) => start <= at && at < start + length)!;
			const inside = at - segment.start;
			if (segment.legs.length === 1) return segment.legs[0]! + inside;
			const chunk = Math.floor(inside / segment.stripe);
			const row = Math.floor(chunk / segment.legs.length);
			return segment.legs[chunk % segment.legs.length]! + row * segment.stripe + (inside % segment.stripe);
		};
	}

	async [Symbol.asyncDispose](): Promise<void> {
		for (const device of this.devices) await runOk("losetup", ["-d", device]);
	}
}
