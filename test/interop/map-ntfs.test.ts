// NTFS: free clusters equal $Bitmap as ntfs-3g's own `ntfscat` reads it, on volumes that mkntfs made and ntfs-3g worked
// on; what is not cleanly unmounted, asleep or shadowed is kept; and garbage in all that is free changes no file.

import assert from "node:assert/strict";
import { copyFile, open, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { AtRestVolume } from "../../src/core/filesystems/at-rest.ts";
import { ntfsAtRest } from "../../src/core/filesystems/ntfs/at-rest.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { byteCount, byteOffset, logPosition } from "../../src/foundations/units.ts";
import { someOf } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { FuseMount } from "../support/fuse.ts";
import { hashTree } from "../support/hashes.ts";
import { memory } from "../support/oracle-rule.ts";
import { run, runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import type { Reference } from "./map-clusters.ts";
import { expectSameFree, mapVolume, scrambleFree, workOn } from "./map-clusters.ts";
import { NtfsEditor } from "./map-ntfs-writer.ts";

const TOOLS = ["mkntfs", "ntfscat", "ntfsinfo", "ntfscluster", "ntfsfix", "ntfsresize"] as const;

const variants: Readonly<Record<string, { size: string; options: readonly string[] }>> = {
	"as it comes": { size: "80M", options: ["-L", "Größe 1"] },
	"2 KiB clusters": { size: "70M", options: ["-c", "2048"] },
	"512-byte clusters": { size: "60M", options: ["-c", "512"] },
	"1 MiB clusters": { size: "400M", options: ["-c", "1048576"] },
	"64 KiB clusters": { size: "120M", options: ["-c", "65536"] },
	"1 KiB sectors, 1 KiB clusters": { size: "60M", options: ["-s", "1024", "-c", "1024"] },
	"4 KiB sectors": { size: "80M", options: ["-s", "4096"] },
	"odd size": { size: "71234K", options: [] },
	compressed: { size: "80M", options: ["-C"] },
	"2 MiB clusters": { size: "500M", options: ["-c", "2097152"] },
	"large and empty": { size: "900G", options: [] },
};

async function make(image: string, { size, options }: { size: string; options: readonly string[] }): Promise<void> {
	await runOk("truncate", ["-s", size, image]);
	await runOk("mkntfs", ["-q", "-F", "-f", ...options, image]);
}

/** Mounts with ntfs-3g in the foreground. */
const mount = (image: string, path: string, ...options: readonly string[]): Promise<FuseMount> =>
	FuseMount.mount("ntfs-3g", ["-o", ["no_detach", ...options].join(","), image, path]);

/** $Bitmap as ntfs-3g reads it. */
async function dumped(image: string): Promise<Reference> {
	const facts = await runOk("ntfsinfo", ["-m", "-f", image]);
	const number = (name: string): number => Number(new RegExp(`${name}: (\\d+)`).exec(facts)![1]);
	const bits = (await run("ntfscat", ["-f", "-i", "6", image])).stdoutBytes;
	const free = new Uint8Array(number("Volume Size in Clusters"));
	for (let cluster = 0; cluster < free.length; cluster++)
		free[cluster] = ((bits[cluster >> 3]! >> (cluster & 7)) & 1) ^ 1;
	assert.equal(
		free.reduce((sum, bit) => sum + bit, 0),
		number("Free Clusters"),
	);
	return { base: 0, clusterSize: number("Cluster Size"), free };
}

/** Walks the whole MFT and compares it with $Bitmap. */
const check = (image: string): Promise<string> => runOk("ntfsresize", ["-i", "-f", "-P", image]);

describe("free clusters equal $Bitmap, and garbage in them changes no file", () => {
	for (const [name, variant] of someOf(Object.entries(variants), 2))
		test(name, async (t) => {
			if (!requireTool(t, "root", "fuse", "ntfs-3g", ...TOOLS)) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const [image, mnt] = [folder.file("image"), folder.file("mnt")];
			await make(image, variant);
			const before = await mapVolume(image);
			if (variant.size === "900G") {
				assert.equal(before.volumes[0]!.kept, null);
				return;
			}
			expectSameFree(before, await dumped(image));
			await using mounted = await mount(image, mnt, ...(name === "compressed" ? ["compression"] : []));
			await workOn(mnt, seededRandom(seed), 150);
			const files = await hashTree(mnt);
			await mounted.unmount();
			const map = await mapVolume(image);
			expectSameFree(map, await dumped(image));
			const { label, uuid, type } = map.volumes[0]!;
			if (name === "as it comes") assert.equal(label, "Größe 1");
			assert.equal(type, "ntfs");
			assert.match(await runOk("blkid", ["-p", image]), new RegExp(`UUID="${uuid}"`));

			assert.ok((await scrambleFree(image, map)) > 0);
			await check(image);
			await using again = await mount(image, mnt, "ro");
			assert.deepEqual(await hashTree(mnt), files);
			await again.unmount();
		});

	for (const elsewhere of [false, true])
		test(`$MFT and $Bitmap with ${elsewhere ? "long" : "short"} attribute lists`, async (t) => {
			if (!requireTool(t, ...TOOLS)) return;
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await make(image, { size: "12M", options: ["-c", "512"] });
			const [plain, before] = [await dumped(image), await mapVolume(image)];
			const editor = new NtfsEditor(new Uint8Array(await readFile(image)));
			// Clusters of $Boot that nothing reads hold the long lists.
			editor.split(6, 3, 14, elsewhere ? 10 : null);
			editor.split(0, 40, 15, elsewhere ? 12 : null);
			await writeFile(image, editor.bytes);
			// ntfs-3g finds everything by way of the lists, and so do we.
			assert.match(await runOk("ntfsinfo", ["-f", "-i", "6", image]), /ATTRIBUTE_LIST/);
			assert.deepEqual(await dumped(image), plain);
			const map = await mapVolume(image);
			expectSameFree(map, plain);
			assert.ok(map.reads > before.reads);
		});

	test("enlarged and shrunk by ntfsresize, $MFT in many pieces", async (t) => {
		if (!requireTool(t, "root", "fuse", "ntfs-3g", ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const [image, mnt] = [folder.file("image"), folder.file("mnt")];
		await make(image, { size: "8M", options: ["-c", "512", "-z", "4"] });
		await using mounted = await mount(image, mnt);
		// Full to the last cluster; then the MFT finds only the holes of every second file to grow into.
		const small = new Uint8Array(1000);
		for (let i = 0; i < 900; i++) await writeFile(join(mnt, `f${i}`), small);
		await fillUp(join(mnt, "large"));
		for (let i = 0; i < 900; i += 2) await writeFile(join(mnt, `f${i}`), "");
		for (let i = 0; i < 200; i++) await writeFile(join(mnt, `g${i}`), "x");
		await mounted.unmount();
		assert.ok((await runsOf(image, 0)).length > 20);
		expectSameFree(await mapVolume(image), await dumped(image));
		for (const size of ["20M", "12M"]) {
			await runOk("truncate", ["-s", "20M", image]);
			await runOk("ntfsresize", ["-f", "-f", "-P", "-s", size.replace("M", "Mi"), image], { input: "y\n" });
			// It leaves the volume marked for a check by Windows.
			assert.match((await mapVolume(image)).volumes[0]!.kept!, /dirty|repair/);
			await runOk("ntfsfix", ["-d", image]);
			expectSameFree(await mapVolume(image), await dumped(image));
		}
	});
});

/** Writes a file until nothing is free. */
async function fillUp(path: string): Promise<void> {
	const file = await open(path, "w");
	try {
		for (let size = 65536; size >= 512; size /= 2)
			for (;;)
				try {
					await file.write(new Uint8Array(size));
				} catch (error) {
					if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
					break;
				}
	} finally {
		await file.close();
	}
}

/** Where the content of a system file lies, as ntfsinfo prints it. */
async function runsOf(image: string, record: number): Promise<{ cluster: number; count: number }[]> {
	const text = await runOk("ntfsinfo", ["-f", "-v", "-i", String(record), image]);
	const data = /attribute \$DATA[\s\S]*?Runlist:.*\n((?:\t\t\t0x.*\n)*)/.exec(text)![1]!;
	return [...data.matchAll(/0x(\w+)\t+0x(\w+)\t+0x(\w+)/g)].map(([, , cluster, count]) => ({
		cluster: Number.parseInt(cluster!, 16),
		count: Number.parseInt(count!, 16),
	}));
}

async function patch(image: string, at: number, bytes: Uint8Array): Promise<void> {
	const file = await open(image, "r+");
	try {
		await file.write(bytes, 0, bytes.length, at);
	} finally {
		await file.close();
	}
}

/** Everything is kept, with a sentence that matches; the state as given. */
async function expectKept(image: string, why: RegExp, state: string): Promise<void> {
	const map = await mapVolume(image);
	const volume = map.volumes[0]!;
	assert.match(`${volume.kept}`, why);
	assert.equal(volume.state, state);
	assert.equal(volume.freeBytes, null);
	for (const extent of map.extents) assert.notEqual(extent.state, "free");
}

describe("kept whole", () => {
	test("marked as dirty", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await make(image, variants["as it comes"]!);
		await runOk("ntfsfix", [image]); // without -d it leaves the mark for Windows
		await expectKept(image, /marked as dirty/, "dirty");
		await runOk("ntfsfix", ["-d", image]);
		expectSameFree(await mapVolume(image), await dumped(image));
	});

	test("hibernated, or shut down with fast startup", async (t) => {
		if (!requireTool(t, "root", "fuse", "ntfs-3g", ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const [image, mnt] = [folder.file("image"), folder.file("mnt")];
		const page = (text: string): Uint8Array => {
			const bytes = new Uint8Array(8192);
			new TextEncoder().encodeInto(text, bytes);
			return bytes;
		};
		for (const [index, { name, content, sleeps, crowd }] of [
			{ name: "hiberfil.sys", content: page("hibr"), sleeps: true, crowd: 0 },
			{ name: "hiberfil.sys", content: page("HIBR"), sleeps: true, crowd: 700 },
			{ name: "HIBERFIL.SYS", content: page("HIBR"), sleeps: true, crowd: 3 },
			{ name: "hiberfil.sys", content: page("RSTR"), sleeps: true, crowd: 0 },
			{ name: "hiberfil.sys", content: page("hibr").subarray(0, 100), sleeps: true, crowd: 0 },
			{ name: "hiberfil.sys", content: page("wake"), sleeps: false, crowd: 0 },
			{ name: "hiberfil.sys", content: page(""), sleeps: false, crowd: 300 },
			{ name: "hiberfil.bak", content: page("hibr"), sleeps: false, crowd: 0 },
		].entries()) {
			await make(image, { size: "40M", options: [] });
			await using mounted = await mount(image, `${mnt}${index}`);
			for (let i = 0; i < crowd; i++) await writeFile(join(mounted.path, `a rather long name ${i}`), "");
			await writeFile(join(mounted.path, name), content);
			for (let i = 0; i < crowd; i++) await writeFile(join(mounted.path, `z rather long name ${i}`), "");
			await mounted.unmount();
			if (sleeps) await expectKept(image, /hibernated|too short/, "dirty");
			else expectSameFree(await mapVolume(image), await dumped(image));
		}
	});

	test("a log that is in use, as ntfs-3g judges it", async (t) => {
		if (!requireTool(t, "root", "fuse", "ntfs-3g", ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const [image, mnt] = [folder.file("image"), folder.file("mnt")];
		await make(image, { size: "40M", options: [] });
		const at = (await runsOf(image, 2))[0]!.cluster * 4096;
		type Page = Parameters<typeof restartPage>[0];
		const closed: Page = { lsn: 9, clean: true };
		const cases: { pages: readonly [Page, Page]; kept: RegExp | null; theirs: RegExp | null }[] = [
			{ pages: [closed, { lsn: 8, clean: true }], kept: null, theirs: null },
			{ pages: [{ lsn: 8, clean: false }, closed], kept: null, theirs: null },
			{ pages: [closed, { lsn: 8, clean: false }], kept: null, theirs: null },
			{ pages: [{ lsn: 9, clean: false, clients: 0xffff }, closed], kept: null, theirs: null },
			{
				pages: [
					{ lsn: 9, clean: false },
					{ lsn: 8, clean: true },
				],
				kept: /not unmounted/,
				theirs: /unclean file system/,
			},
			{ pages: [closed, { lsn: 10, clean: false }], kept: /not unmounted/, theirs: /unclean file system/ },
			{ pages: [closed, { lsn: 9, clean: false }], kept: /not unmounted/, theirs: null }, // stricter
			{ pages: [closed, { lsn: 10, clean: true, major: 2, minor: 0 }], kept: /fast startup/, theirs: /Windows cache/ },
			{ pages: [closed, { lsn: 10, clean: true, major: 3 }], kept: /version 3.1/, theirs: null }, // stricter
			{ pages: [{ lsn: 9, clean: true, torn: true }, closed], kept: /not understood/, theirs: null }, // stricter
			{ pages: [closed, { lsn: 8, clean: true, torn: true }], kept: /cut off/, theirs: null }, // stricter
		];
		for (const [index, { pages, kept, theirs }] of cases.entries()) {
			await patch(image, at, restartPage(pages[0]));
			await patch(image, at + 4096, restartPage(pages[1]));
			const copy = folder.file("copy"); // ntfs-3g empties the log
			await copyFile(image, copy);
			await using mounted = await mount(copy, `${mnt}${index}`);
			const said = await mounted.unmount();
			if (theirs === null) assert.doesNotMatch(said, /unclean|cache/, `case ${index}`);
			else assert.match(said, theirs, `case ${index}`);
			if (kept === null) expectSameFree(await mapVolume(image), await dumped(image));
			else await expectKept(image, kept, "dirty");
		}
	});

	test("followed while it is served: only a log that is closed by the newest write shows an unmount", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await make(image, { size: "40M", options: [] });
		const at = (await runsOf(image, 2))[0]!.cluster * 4096;
		const bytes = new Uint8Array(await readFile(image));
		const follow = async (lastWrite: number | null): Promise<string> => {
			const volume = await AtRestVolume.open(memory(bytes), ntfsAtRest);
			const [position, end] = [logPosition(9), logPosition(10)];
			const write = { at: byteOffset(at), length: byteCount(4096), position, end, read: async () => new Uint8Array() };
			if (lastWrite !== null) await volume.observe([write]);
			const last = lastWrite === null ? null : logPosition(lastWrite);
			const state = await volume.advanceClean(memory(bytes), logPosition(20), last);
			const free = [...volume.freeRuns(byteOffset(0), byteOffset(bytes.length))].length;
			assert.equal(free > 0, state.kind === "ready");
			return state.kind === "keep" ? state.reason : "ready";
		};
		assert.match(await follow(null), /ntfs-3g has emptied its log/);
		assert.match(await follow(10), /ntfs-3g has emptied its log/);
		bytes.set(restartPage({ lsn: 9, clean: true }), at);
		bytes.set(restartPage({ lsn: 8, clean: true }), at + 4096);
		assert.deepEqual([await follow(null), await follow(10)], ["ready", "ready"]);
		assert.match(await follow(11), /when Windows has unmounted it/);
		bytes.set(restartPage({ lsn: 10, clean: false }), at + 4096);
		assert.match(await follow(10), /not unmounted cleanly/);
	});

	test("left by ntfs-3g in a crash that its $Bitmap missed: its log says nothing, but the files do", async (t) => {
		if (!requireTool(t, "root", "fuse", "ntfs-3g", ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const [image, mnt] = [folder.file("image"), folder.file("mnt")];
		await make(image, { size: "80M", options: [] });
		const write = async (name: string, bytes: number): Promise<void> => {
			await using mounted = await mount(image, mnt);
			await writeFile(join(mnt, name), seededRandom(5).bytes(bytes));
			await mounted.unmount();
		};
		await write("first", 1000); // the MFT grows, and stays as it is then
		const bitmapBefore = (await run("ntfscat", ["-f", "-i", "6", image])).stdoutBytes;
		await write("second", 8 << 20);
		assert.equal((await mapVolume(image)).volumes[0]!.kept, null);
		// The volume as it is, but for $Bitmap, which is as it was.
		const [, cluster] = /^\s*0x0\s+(0x\w+)/m.exec(await runOk("ntfsinfo", ["-f", "-v", "-i", "6", image]))!;
		await using file = await open(image, "r+");
		await file.write(bitmapBefore, 0, bitmapBefore.length, Number(cluster) * 4096);
		const { kept, state } = (await mapVolume(image)).volumes[0]!;
		assert.match(kept!, /\$Bitmap shows clusters of MFT record \d+ as free, so it was not unmounted cleanly/);
		assert.equal(state, "unknown");
	});

	test("shadow copies", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await make(image, variants["as it comes"]!);
		const identifier = Uint8Array.fromHex("6b87083876c1484eb7ae04046e6cc752");
		const header = new Uint8Array(128);
		const catalog = new Uint8Array(16384);
		for (const raw of [header, catalog]) {
			raw.set(identifier);
			viewOf(raw).setUint32(0x10, 1, true);
		}
		viewOf(header).setUint32(0x14, 1, true);
		viewOf(header).setBigUint64(0x18, 0x1e00n, true);
		await patch(image, 0x1e00, header);
		expectSameFree(await mapVolume(image), await dumped(image));
		viewOf(header).setUint32(0x30, 32 << 20, true);
		await patch(image, 0x1e00, header);
		await expectKept(image, /shadow copies/, "clean"); // a catalog that is none
		viewOf(catalog).setUint32(0x14, 2, true);
		viewOf(catalog).setUint32(0x80, 1, true);
		await patch(image, 32 << 20, catalog);
		expectSameFree(await mapVolume(image), await dumped(image));
		viewOf(catalog).setUint32(0x100, 2, true);
		await patch(image, 32 << 20, catalog);
		await expectKept(image, /shadow copies/, "clean");
	});

	test("system files that do not fit together", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const [good, image] = [folder.file("good"), folder.file("image")];
		await make(good, variants["as it comes"]!);
		const place = async (record: number): Promise<number> => (await runsOf(good, record))[0]!.cluster * 4096;
		const [mft, mirror, bitmap] = [await place(0), await place(1), await place(6)];
		const bits = (await run("ntfscat", ["-f", "-i", "6", good])).stdoutBytes;
		/** $Bitmap in which the cluster at byte `at` is free. */
		const without = (at: number): Uint8Array => {
			const changed = new Uint8Array(bits); // a Buffer's slice would be no copy
			changed[at >> 15]! &= ~(1 << ((at >> 12) & 7));
			return changed;
		};
		const cases: Record<string, readonly [number, Uint8Array, RegExp]> = {
			"the copy differs": [mirror + 1024 + 0x40, new Uint8Array([77]), /copy in \$MFTMirr differ/],
			"a torn record": [mft + 6 * 1024 + 1022, new Uint8Array([1, 2]), /record 6 is damaged/],
			"a free MFT": [bitmap, without(mft), /shows the boot area, the MFT or itself as free/],
			"a free boot area": [bitmap, without(4096), /shows the boot area, the MFT or itself as free/],
			"a free bitmap": [bitmap, without(bitmap), /shows the boot area, the MFT or itself as free/],
			"a free copy": [bitmap, without(mirror), /shows \$MFTMirr or \$LogFile as free/],
			"a free log": [bitmap, without(await place(2)), /shows \$MFTMirr or \$LogFile as free/],
			"sectors of 8 KiB": [0xb, new Uint8Array([0, 32]), /sectors have 8192 bytes/],
			"more sectors than there are": [0x2b, new Uint8Array([1]), /more than its partition holds/],
			"an MFT elsewhere": [0x30, new Uint8Array([mirror >> 12, mirror >> 20]), /disagree on where the MFT lies|differ/],
		};
		for (const [name, [at, bytes, why]] of Object.entries(cases)) {
			await copyFile(good, image);
			await patch(image, at, bytes);
			const volume = (await mapVolume(image)).volumes[0]!;
			assert.match(`${volume.kept}`, why, name);
			assert.equal(volume.freeBytes, null);
		}
	});
});

/** A restart page of $LogFile, 4 KiB, with fixups; torn on demand. */
function restartPage(page: {
	lsn: number;
	clean: boolean;
	clients?: number;
	major?: number;
	minor?: number;
	torn?: boolean;
}): Uint8Array {
	const raw = new Uint8Array(4096);
	const view = viewOf(raw);
	new TextEncoder().encodeInto("RSTR", raw);
	view.setUint16(4, 0x1e, true);
	view.setUint16(6, 9, true);
	view.setUint32(0x10, 4096, true);
	view.setUint32(0x14, 4096, true);
	view.setUint16(0x18, 0x30, true);
	view.setUint16(0x1a, page.minor ?? 1, true);
	view.setUint16(0x1c, page.major ?? 1, true);
	const area = 0x30;
	const fileSize = 2 << 20;
	view.setBigUint64(area, BigInt(page.lsn), true);
	view.setUint16(area + 8, 1, true); // one client
	view.setUint16(area + 0xa, page.clients === 0xffff ? 0 : 0xffff, true);
	view.setUint16(area + 0xc, page.clients ?? 0, true);
	view.setUint16(area + 0xe, page.clean ? 2 : 0, true);
	view.setUint32(area + 0x10, 67 - 22, true);
	view.setUint16(area + 0x14, 0x30 + 0xa0, true);
	view.setUint16(area + 0x16, 0x30, true);
	view.setBigUint64(area + 0x18, BigInt(fileSize), true);
	view.setUint16(area + 0x24, 0x30, true);
	view.setUint16(area + 0x26, 0x40, true);
	const client = area + 0x30;
	view.setUint16(client + 0x10, 0xffff, true);
	view.setUint16(client + 0x12, 0xffff, true);
	view.setUint16(0x1e, 5, true);
	for (let stride = 1; stride <= 8; stride++) view.setUint16(stride * 512 - 2, 5, true);
	if (page.torn) view.setUint16(1022, 6, true);
	return raw;
}
