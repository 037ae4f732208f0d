// What a new user does wrong: whatever is named where an image should be, every command says so in one line that helps,
// with the right exit code, at once, and changes nothing.

import assert from "node:assert/strict";
import { mkdir, open, readdir, readFile, readlink, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { describe, test } from "node:test";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashFile } from "../support/hashes.ts";
import { type Finished, run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { assertFails, MIB } from "./aged-images.ts";

/** The command line that asks a command for an image. */
const commands: Readonly<Record<string, (image: string) => readonly string[]>> = {
	map: (image) => ["map", image],
	explain: (image) => ["explain", image],
	sweep: (image) => ["sweep", image],
	convert: (image) => ["convert", image, "new.qcow2"],
};
type CommandName = keyof typeof commands;

/** No command takes longer to refuse: what hangs is killed. In seconds. */
const HANGS_AFTER = 60;

/** What everything in a folder is like: content, length and time of the last change. */
async function stateOf(folder: string): Promise<Record<string, string>> {
	const state: Record<string, string> = {};
	for (const name of (await readdir(folder, { recursive: true })).sort()) {
		const path = `${folder}/${name}`;
		const status = await stat(path, { bigint: true }).catch(() => undefined);
		if (status === undefined) state[name] = `link to ${await readlink(path)}`;
		else if (status.isFile()) state[name] = `${await hashFile(path)}, ${status.mtimeNs}`;
		else state[name] = `${status.mode}, ${status.mtimeNs}`;
	}
	return state;
}

interface Outcome {
	readonly exit: number;
	readonly line: RegExp;
}

interface Case {
	/** Makes it in the folder; returns what is to be named, "it" where it doesn't matter. */
	readonly make?: (folder: TemporaryFolder) => Promise<unknown>;
	/** What is named, "it" by default. */
	readonly name?: string;
	readonly tools?: readonly string[];
	/** What all commands say. */
	readonly all?: Outcome;
	/** What some say instead; null where the image is nothing to complain about for them. */
	readonly but?: Readonly<Record<CommandName, Outcome | null>>;
}

const noise = (bytes: number) => (folder: TemporaryFolder) =>
	writeFile(folder.file("it"), seededRandom(1).bytes(bytes));

/** An image with content that QEMU makes. */
const made =
	(format: string, ...options: readonly string[]) =>
	async (folder: TemporaryFolder) => {
		const content = folder.file("content");
		await writeFile(content, seededRandom(2).bytes(4 * MIB));
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", format, ...options, content, folder.file("it")]);
		await runOk("rm", [content]);
	};

/** An image that lost its second half, or all behind `length`: a download that broke off. */
const cut =
	(format: string, length?: number) =>
	async (folder: TemporaryFolder): Promise<void> => {
		await made(format)(folder);
		const { size } = await stat(folder.file("it"));
		await truncate(folder.file("it"), length ?? Math.floor(size / 1024) * 512);
	};

const patched =
	(at: number, ...bytes: readonly number[]) =>
	async (folder: TemporaryFolder): Promise<void> => {
		await made("qcow2")(folder);
		await using file = await open(folder.file("it"), "r+");
		await file.write(Uint8Array.from(bytes), 0, bytes.length, at);
	};

const notSwept = (format: string): Outcome => ({
	exit: 3,
	line: new RegExp(
		`it is a ${format} image; only raw and qcow2 images are swept in place. Convert it: vmsweep convert`,
	),
});
const NO_VOLUME: Outcome = { exit: 3, line: /nothing can be dropped safely/ };
const cutInTwo = (format: string): Case => ({
	make: cut(format === "vhd" ? "vpc" : format),
	tools: ["qemu-img"],
	all: { exit: 3, line: /^vmsweep: it: .* the file ends at byte \d+.*restore it from a copy/ },
	but: { sweep: notSwept(format) },
});

const cases: Readonly<Record<string, Case>> = {
	"a missing file": { all: { exit: 2, line: /^vmsweep: it doesn't exist. Check the path/ } },
	"a file as a folder": {
		make: noise(512),
		name: "it/image.raw",
		all: { exit: 2, line: /a part of it\/image\.raw is no directory. Check the path/ },
	},
	"an empty name": { name: "", all: { exit: 2, line: /the image's name is empty. Name an image/ } },
	"a folder": {
		make: (folder) => mkdir(folder.file("it")),
		all: { exit: 2, line: /it is a directory. Name an image in it/ },
	},
	"the folder of a vmsweep disk": {
		make: (folder) => runOk(vmsweep, ["create", folder.file("it"), "--size", "64M"]),
		all: { exit: 2, line: /it is the folder of a vmsweep disk, not an image. .*vmsweep status/ },
		but: { explain: null },
	},
	"an empty file": {
		make: noise(0),
		all: { exit: 2, line: /it is empty \(0 bytes\), so it is no disk image. Name an image/ },
	},
	"a text file": {
		make: (folder) => writeFile(folder.file("it"), "dear diary, today I tried vmsweep\n"),
		all: { exit: 2, line: /it is no disk image: .*no whole number of 512-byte sectors. Name an image/ },
	},
	"random bytes": { make: noise(1_000_001), all: { exit: 2, line: /it is no disk image/ } },
	"random bytes in whole sectors": {
		make: noise(MIB),
		but: { map: null, explain: null, convert: null, sweep: NO_VOLUME },
	},
	"/dev/null": { name: "/dev/null", all: { exit: 2, line: /neither a file nor a block device. Name an image/ } },
	"a pipe": {
		make: (folder) => runOk("mkfifo", [folder.file("it")]),
		all: { exit: 2, line: /it is neither a file nor a block device. Name an image/ },
	},
	"a link to nothing": {
		make: (folder) => symlink("nowhere", folder.file("it")),
		all: { exit: 2, line: /it is a link to a file that doesn't exist. Check where it leads/ },
	},
	"a link to itself": {
		make: (folder) => symlink("it", folder.file("it")),
		all: { exit: 2, line: /it is a link that leads back to itself. Check where it leads/ },
	},
	"an address that is not read": {
		name: "https://example.com/web.qcow2",
		all: { exit: 3, line: /is reached by "https:", which is not read. Name a file or a block device/ },
	},
	"a server that isn't there": {
		name: "nbd+unix:///web?socket=nothing.sock",
		all: { exit: 1, line: /can't be reached: ENOENT. Nobody listens there; check the address and start the server/ },
		but: { sweep: { exit: 3, line: /is an NBD address; .* vmsweep convert/ } },
	},
	"an address that is none": {
		name: "nbd+unix:///web",
		all: { exit: 2, line: /is no NBD address. Write nbd:\/\/HOST/ },
		but: { sweep: { exit: 3, line: /is an NBD address/ } },
	},
	"qcow2, cut off in its data": {
		make: cut("qcow2"),
		tools: ["qemu-img"],
		all: { exit: 3, line: /^vmsweep: it: .*(has been cut off|behind the file's end|file ends).*qemu-img check/ },
	},
	"qcow2, cut off in its header": {
		make: cut("qcow2", 50),
		tools: ["qemu-img"],
		all: { exit: 3, line: /it ends inside its qcow2 header \(50 bytes\). Restore it from a copy/ },
	},
	"vmdk, cut off": cutInTwo("vmdk"),
	"vhdx, cut off": cutInTwo("vhdx"),
	"vdi, cut off": cutInTwo("vdi"),
	"vhd, cut off": cutInTwo("vhd"),
	"vmdk, cut off in its header": {
		make: cut("vmdk", 600),
		tools: ["qemu-img"],
		all: { exit: 3, line: /should lie at byte 512, but the file ends at byte 600.*restore it from a copy/ },
		but: { sweep: notSwept("vmdk") },
	},
	"vhdx, cut off in its header": {
		make: cut("vhdx", 1024),
		tools: ["qemu-img"],
		all: { exit: 3, line: /the file ends at byte 1024.*restore it from a copy/ },
		but: { sweep: notSwept("vhdx") },
	},
	"qcow2 of a newer QEMU": {
		make: patched(72, 0x80),
		tools: ["qemu-img"],
		all: { exit: 3, line: /it uses qcow2 features that vmsweep doesn't know: bit 63/ },
	},
	"encrypted qcow2": {
		make: async (folder) => {
			const secret = [
				"--object",
				"secret,id=s,data=x",
				"-o",
				"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
			];
			const create = (): Promise<Finished> =>
				run("qemu-img", ["create", "-q", "-f", "qcow2", ...secret, folder.file("it"), "10M"]);
			// It measures how fast it is, and gives up where the kernel's clock hasn't moved meanwhile.
			let created = await create();
			while (created.stderr.includes("Unable to get accurate CPU usage")) created = await create();
			assert.equal(created.exitCode, 0, created.stderr);
		},
		tools: ["qemu-img"],
		all: { exit: 3, line: /it is encrypted \(LUKS\)/ },
	},
	"qcow2 without its backing file": {
		make: async (folder) => {
			await made("qcow2")(folder);
			await runOk("qemu-img", ["rebase", "-u", "-b", "gone.qcow2", "-F", "qcow2", folder.file("it")]);
		},
		tools: ["qemu-img"],
		all: { exit: 2, line: /backing file of it: gone\.qcow2 doesn't exist. Check the path/ },
	},
	"an old qcow image": {
		make: made("qcow"),
		tools: ["qemu-img"],
		all: { exit: 3, line: /it is a qcow image, which is not read. Convert it: qemu-img convert/ },
		but: { sweep: notSwept("qcow") },
	},
};

/** Asks one command, and checks that it refuses as it should and that nothing in the folder is touched. */
async function ask(
	folder: TemporaryFolder,
	command: CommandName,
	name: string,
	outcome: Outcome | null,
): Promise<void> {
	const before = await stateOf(folder.path);
	const words = commands[command]!(name);
	const finished: Finished = await run(vmsweep, words, { folder: folder.path, timeoutSeconds: HANGS_AFTER });
	if (outcome === null) {
		assert.equal(finished.exitCode, 0, `${command}: ${finished.stderr}`);
		assert.equal(finished.stderr, "", command);
		await runOk("rm", ["-f", folder.file("new.qcow2")]);
	} else assertFails(finished, outcome.exit, outcome.line);
	assert.deepEqual(await stateOf(folder.path), before, `${command} changed something`);
}

describe("named by mistake", () => {
	for (const [what, { make, name = "it", tools = [], all, but }] of Object.entries(cases))
		test(what, async (t) => {
			if (!requireTool(t, ...tools)) return;
			await using folder = await temporaryFolder();
			await make?.(folder);
			for (const command of Object.keys(commands)) {
				const own = but?.[command];
				const outcome = own === undefined ? all : own;
				assert(outcome !== undefined, `what ${command} says is told`);
				await ask(folder, command, name, outcome);
			}
		});

	test("a socket", async () => {
		await using folder = await temporaryFolder();
		const server = createServer().listen(folder.file("it"));
		try {
			const line = /it is a socket, .* nbd\+unix:\/\/\/EXPORT\?socket=it/;
			for (const command of Object.keys(commands)) await ask(folder, command, "it", { exit: 2, line });
		} finally {
			server.close();
		}
	});

	test("a file of somebody else", async (t) => {
		if (!requireTool(t, "root", "setpriv")) return;
		await using folder = await temporaryFolder();
		await runOk("chmod", ["755", folder.path]);
		await writeFile(folder.file("it"), seededRandom(1).bytes(MIB), { mode: 0o600 });
		const nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", vmsweep];
		if ((await run("setpriv", [...nobody, "--version"])).exitCode !== 0)
			return t.skip("the checkout is not readable to other users");
		const before = await stateOf(folder.path);
		for (const command of Object.keys(commands)) {
			const words = [...nobody, ...commands[command]!("it")];
			assertFails(await run("setpriv", words, { folder: folder.path }), 1, /it: permission denied. Run as a user who/);
		}
		// Nor may nobody make a file there.
		await runOk("chmod", ["644", folder.file("it")]);
		const words = [...nobody, "convert", "it", "new.qcow2"];
		assertFails(await run("setpriv", words, { folder: folder.path }), 1, /^vmsweep: new\.qcow2: permission denied/);
		assert.deepEqual(await stateOf(folder.path), before);
	});

	test("an image in use by a running VM", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-nbd")) return;
		await using folder = await temporaryFolder();
		await using place = await temporaryFolder();
		for (const format of ["raw", "qcow2"]) {
			await made(format)(folder);
			// As a VM does, it has the image open for writing.
			const socket = place.file(format);
			await using server = start("qemu-nbd", ["-f", format, "-t", "-k", socket, folder.file("it")]);
			await server.until(async () => (await readdir(place.path)).includes(format), "its socket");
			for (const command of Object.keys(commands)) {
				const verb = command === "sweep" ? "written" : "read";
				const line = new RegExp(
					`it is in use by .* and can't be ${verb} now .*Shut down the VM or tool that has it open`,
				);
				await ask(folder, command, "it", { exit: 3, line });
			}
		}
	});
});

describe("wrong options", () => {
	const wrong: readonly (readonly [words: string, message: RegExp])[] = [
		["map", /missing required argument 'image'. See: vmsweep help map/],
		["explain", /missing required argument 'image'. See: vmsweep help explain/],
		["convert", /missing required argument 'source'. See: vmsweep help convert/],
		["convert it", /missing required argument 'target'/],
		["convert it new other", /too many arguments for 'convert'/],
		["explain it it", /too many arguments for 'explain'/],
		["explain --extents it", /unknown option '--extents'. See: vmsweep help explain/],
		["sweep --dryrun it", /unknown option '--dryrun' \(Did you mean --dry-run\?\)/],
		["sweep --overlay", /option '--overlay <file>' argument missing/],
		["sweep --compact it", /it is a raw image; --compact is for qcow2. Leave it out/],
		["convert --vmoff it new", /unknown option '--vmoff' \(Did you mean --vm-off\?\)/],
		["convert --format vhdx it new", /Allowed choices are raw, qcow2/],
	];
	for (const [words, line] of wrong)
		test(words, async () => {
			await using folder = await temporaryFolder();
			await writeFile(folder.file("it"), seededRandom(1).bytes(MIB));
			assertFails(await run(vmsweep, words.split(" "), { folder: folder.path }), 2, line);
			assert.deepEqual(await readdir(folder.path), ["it"]);
			assert.equal((await readFile(folder.file("it"))).length, MIB);
		});
});
