// vmsweep serve DISK…: the disk image emulator, in the foreground until it is told to stop.

import { resolve } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import type { ListenAddress } from "../../adapters/nbd/listener.ts";
import { formatBytes } from "../../foundations/units.ts";
import { type ServedExport, type Server, serveDisks } from "../../services/serve.ts";
import { describeError, exitCodeOf } from "./failure.ts";
import { libvirtDisk, qemuArguments } from "./hypervisor-snippets.ts";
import { interruptible } from "./interruption.ts";
import { openLog } from "./logging.ts";
import { print } from "./output.ts";
import { parseSize } from "./sizes.ts";

export const serveCommand = (): Command =>
	new Command("serve")
		.description("serve disks to VMs over NBD, and clean them")
		.argument("<disk...>", "folders of disks")
		.addOption(
			new Option("--socket <path>", "one Unix socket for all disks (default: DISK/nbd.sock each)").conflicts("listen"),
		)
		.option("--listen <host:port>", "one TCP address for all disks, without encryption or password", parseAddress)
		.addOption(
			new Option("--clean <when>", "clean continuously, or only by the clean command")
				.choices(["continuous", "off"])
				.default("continuous"),
		)
		.option("--read-only", "clients can't write; cleaning goes on")
		.option("--log-limit <size>", "most host space that each first image may take", parseSize)
		.option("--accept-changed-image", "serve although the second image was changed since the disk was closed")
		.option("--print-qemu", "print how to attach each disk to QEMU and libvirt")
		.option("--json", "print JSON, one line per disk")
		.action(serve);

interface ServeCommandOptions {
	readonly socket?: string;
	readonly listen?: ListenAddress;
	readonly clean: "continuous" | "off";
	readonly readOnly?: boolean;
	readonly logLimit?: number;
	readonly acceptChangedImage?: boolean;
	readonly printQemu?: boolean;
	readonly json?: boolean;
}

/** After this the process of a broken disk ends, even where another disk doesn't close. */
const BROKEN_CLOSE_MS = 10_000;

async function serve(disks: readonly string[], options: ServeCommandOptions): Promise<void> {
	const { socket, listen, clean, readOnly = false, logLimit, acceptChangedImage = false } = options;
	const address: ListenAddress | undefined = socket === undefined ? listen : { kind: "unix", path: resolve(socket) };
	const log = openLog();
	if (address?.kind === "tcp" && !isLoopback(address.host))
		log.warn(
			`whoever reaches ${address.host} can use the disks: NBD over TCP has neither encryption nor a password here`,
		);
	await interruptible(async (signal) => {
		const server = await serveDisks({
			disks,
			clean,
			readOnly,
			acceptChangedImage,
			...(address === undefined ? {} : { address }),
			...(logLimit === undefined ? {} : { limitBytes: logLimit }),
			onEvent: (line, name) => (name === null ? log.info(line) : log.info({ disk: name }, line)),
		});
		for (const served of server.exports) await print(readyLine(served, options));
		const broken = await Promise.race([aborted(signal), server.broken]);
		if (broken !== undefined) {
			log.error(`a disk can't be served any more, so this server ends: ${describeError(broken)}`);
			await endBroken(server, broken);
		}
		log.info("stopping: finishing what clients have in flight");
		await server.close();
		log.info("stopped; the disks are closed cleanly");
	});
}

const aborted = (signal: AbortSignal): Promise<undefined> =>
	new Promise((resolve) => {
		if (signal.aborted) resolve(undefined);
		signal.addEventListener("abort", () => resolve(undefined));
	});

/** Closes the healthy disks, then ends the process: only that closes the connections of the broken one. */
async function endBroken(server: Server, error: Error): Promise<never> {
	const patience = new Promise((resolve) => setTimeout(resolve, BROKEN_CLOSE_MS));
	await Promise.race([server.close().catch(() => {}), patience]);
	process.exit(exitCodeOf(error));
}

function readyLine(served: ServedExport, { json = false, printQemu = false }: ServeCommandOptions): string {
	const { name, path, size, readOnly, uri } = served;
	if (json) {
		const snippets = printQemu ? { qemu: qemuArguments(served), libvirt: libvirtDisk(served) } : {};
		return `${JSON.stringify({ name, path, size, readOnly, uri, ...snippets })}\n`;
	}
	const line = `${name} (${formatBytes(size)}${readOnly ? ", read-only" : ""}) is served at ${uri}\n`;
	return printQemu ? `${line}\nQEMU:\n${qemuArguments(served)}\n\nlibvirt:\n${libvirtDisk(served)}\n\n` : line;
}

/** HOST:PORT, with an IPv6 address in brackets. */
function parseAddress(text: string): ListenAddress {
	const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
	const port = Number(match?.[3]);
	if (match === null || port > 65535)
		throw new InvalidArgumentError("Give HOST:PORT, such as 127.0.0.1:10809 or [::1]:10809.");
	return { kind: "tcp", host: (match[1] ?? match[2])!, port };
}

const isLoopback = (host: string): boolean => host === "localhost" || host === "::1" || host.startsWith("127.");
