// vmsweep serve DISK…: the disk image emulator, in the foreground until it is told to stop.

import { resolve } from "node:path";
import { takePassedSockets } from "../../adapters/nbd/activation.ts";
import type { ListenAddress } from "../../adapters/nbd/listener.ts";
import type { TlsFiles } from "../../adapters/nbd/tls.ts";
import { formatBytes } from "../../foundations/units.ts";
import type { KeepOrDrop } from "../../services/clean/policy.ts";
import {
	type ServeAddress,
	type ServeAgent,
	type ServedExport,
	type ServeOptions,
	type Server,
	serveDisks,
} from "../../services/serve.ts";
import { describeError, exitCodeOf } from "./failure.ts";
import { libvirtDisk, qemuArguments } from "./hypervisor-snippets.ts";
import { interruptible } from "./interruption.ts";
import { openLog } from "./logging.ts";
import { print } from "./output.ts";

interface ServeCommandOptions {
	readonly socket?: string;
	readonly listen?: ListenAddress;
	readonly clean: "continuous" | "off";
	readonly readOnly?: boolean;
	readonly maxClients?: number;
	/** Milliseconds; 0 for never. */
	readonly requestTimeout: number;
	readonly idleTimeout?: number;
	readonly tlsCert?: string;
	readonly tlsKey?: string;
	readonly tlsCa?: string;
	readonly tlsVerifyPeer?: boolean;
	readonly tlsPsk?: string;
	readonly tlsCreds?: string;
	readonly tlsOptional?: boolean;
	readonly logLimit?: number;
	readonly acceptChangedImage?: boolean;
	/** Milliseconds. */
	readonly quarantine?: number;
	readonly lvmFree: KeepOrDrop;
	readonly btrfsMounted: KeepOrDrop;
	readonly qga?: readonly ServeAgent[];
	/** Milliseconds. */
	readonly freezeEvery: number;
	/** Bytes per second. */
	readonly maxRate?: number;
	readonly printQemu?: boolean;
	readonly json?: boolean;
}

/** After this the process of a broken disk ends, even where another disk doesn't close. */
const BROKEN_CLOSE_MS = 10_000;

export async function serve(disks: readonly string[], options: ServeCommandOptions): Promise<void> {
	const { clean, readOnly = false, logLimit, acceptChangedImage = false, quarantine = 0, maxRate } = options;
	const { lvmFree, btrfsMounted } = options;
	const addresses = addressesOf(options);
	const tls = tlsFilesOf(options);
	const log = openLog();
	for (const { address } of addresses ?? [])
		if (address.kind === "tcp" && !isLoopback(address.host) && (tls === undefined || tls.optional === true))
			log.warn(`whoever reaches ${address.host} can use the disks, without encryption or password: see --tls-creds`);
	await interruptible(async (signal) => {
		const server = await serveDisks({
			disks,
			clean,
			readOnly,
			acceptChangedImage,
			quarantineMs: quarantine,
			policy: { lvmFree, btrfsMounted },
			agents: (options.qga ?? []).map((agent) => ({ ...agent, path: resolve(agent.path) })),
			freezeEveryMs: options.freezeEvery,
			...(addresses === undefined ? {} : { addresses }),
			...(tls === undefined ? {} : { tls }),
			...limitsOf(options),
			...(logLimit === undefined ? {} : { limitBytes: logLimit }),
			...(maxRate === undefined ? {} : { bytesPerSecond: maxRate }),
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

/** One address by option, or the sockets that a service manager passed; none where each disk has its own. */
function addressesOf({ socket, listen }: ServeCommandOptions): ServeAddress[] | undefined {
	const passed = takePassedSockets(process.env, process.pid);
	const asked: ListenAddress | undefined = socket === undefined ? listen : { kind: "unix", path: resolve(socket) };
	if (asked !== undefined) return [{ address: asked }];
	return passed?.map(({ address, name }) => (name === "" ? { address } : { address, disk: name }));
}

function tlsFilesOf(options: ServeCommandOptions): TlsFiles | undefined {
	const { tlsCert, tlsKey, tlsCa, tlsVerifyPeer, tlsPsk, tlsCreds, tlsOptional } = options;
	const files: TlsFiles = {
		...(tlsCert === undefined ? {} : { certificate: tlsCert }),
		...(tlsKey === undefined ? {} : { key: tlsKey }),
		...(tlsCa === undefined ? {} : { authority: tlsCa }),
		...(tlsVerifyPeer === undefined ? {} : { verifyPeer: tlsVerifyPeer }),
		...(tlsPsk === undefined ? {} : { sharedKeys: tlsPsk }),
		...(tlsCreds === undefined ? {} : { folder: tlsCreds }),
		...(tlsOptional === undefined ? {} : { optional: tlsOptional }),
	};
	return Object.keys(files).length === 0 ? undefined : files;
}

function limitsOf({ maxClients, requestTimeout, idleTimeout = 0 }: ServeCommandOptions): Partial<ServeOptions> {
	return {
		...(maxClients === undefined ? {} : { clientsMax: maxClients }),
		...(requestTimeout === 0 ? {} : { requestTimeoutMs: requestTimeout }),
		...(idleTimeout === 0 ? {} : { idleTimeoutMs: idleTimeout }),
	};
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

const isLoopback = (host: string): boolean => host === "localhost" || host === "::1" || host.startsWith("127.");
