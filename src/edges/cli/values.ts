// Values of options on the command line. Sizes: 512, 64K, 512M, 40G, 1T, 1.5G, 40GiB; always binary, as in QEMU's tools.

import { InvalidArgumentError } from "commander";
import { type ListenAddress, VSOCK_ANY } from "../../adapters/nbd/listen-address.ts";

/** Bytes. Throws commander's InvalidArgumentError, whose message ends up in the usage line. */
export function parseSize(text: string): number {
	const bytes = parseBytes(text, "Give a size such as 512M, 40G or 1T.");
	if (bytes === 0) throw new InvalidArgumentError("It must be more than nothing.");
	return bytes;
}

/** A byte's position: 0, 4096, 10G. Throws as {@link parseSize} does. */
export const parseOffset = (text: string): number =>
	parseBytes(text, "Give a byte's position such as 0, 1048576 or 10G.");

function parseBytes(text: string, advice: string): number {
	const match = /^(\d+(?:\.\d+)?)(?:([KMGTP])(?:iB)?|B)?$/i.exec(text.trim());
	if (match === null) throw new InvalidArgumentError(advice);
	const bytes = Number(match[1]) * 1024 ** (match[2] === undefined ? 0 : "KMGTP".indexOf(match[2].toUpperCase()) + 1);
	if (!Number.isSafeInteger(bytes)) throw new InvalidArgumentError("It must be a whole number of bytes below 8 PiB.");
	return bytes;
}

/** A qcow2 cluster: a power of two from 4 KiB to 2 MiB. Bytes; throws as {@link parseSize} does. */
export function parseClusterSize(text: string): number {
	const bytes = parseSize(text);
	if (bytes < 4096 || bytes > 2 * 1024 * 1024 || (bytes & (bytes - 1)) !== 0)
		throw new InvalidArgumentError("Give a power of two from 4K to 2M.");
	return bytes;
}

/** HOST:PORT, with an IPv6 address in brackets, or vsock:CID:PORT with `any` for a CID of any kind. */
export function parseAddress(text: string): ListenAddress {
	const vsock = /^vsock:(any|\d{1,10}):(\d{1,10})$/.exec(text);
	if (vsock !== null) {
		const cid = vsock[1] === "any" ? VSOCK_ANY : Number(vsock[1]);
		const port = Number(vsock[2]);
		if (cid > VSOCK_ANY || port >= VSOCK_ANY)
			throw new InvalidArgumentError("A vsock address has two numbers of 32 bits: vsock:CID:PORT.");
		return { kind: "vsock", cid, port };
	}
	const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
	const port = Number(match?.[3]);
	if (match === null || port > 65535)
		throw new InvalidArgumentError("Give HOST:PORT, such as 127.0.0.1:10809 or [::1]:10809, or vsock:any:10809.");
	return { kind: "tcp", host: (match[1] ?? match[2])!, port };
}

/** A whole number above zero. Throws as {@link parseSize} does. */
export function parseCount(text: string): number {
	const count = Number(text);
	if (!/^\d{1,9}$/.test(text) || count === 0) throw new InvalidArgumentError("Give a whole number above 0.");
	return count;
}

/** Seconds, perhaps with a fraction, as milliseconds. Throws as {@link parseSize} does. */
export function parseSeconds(text: string): number {
	const milliseconds = Math.round(Number(text) * 1000);
	if (!/^\d{1,9}(?:\.\d+)?$/.test(text))
		throw new InvalidArgumentError("Give seconds, such as 30 or 0.5; 0 for never.");
	return milliseconds;
}

/** Seconds between two events: as {@link parseSeconds}, but more than none. */
export function parseInterval(text: string): number {
	const milliseconds = parseSeconds(text);
	if (milliseconds === 0) throw new InvalidArgumentError("Give seconds, such as 600 or 0.5.");
	return milliseconds;
}

/** Where a VM's guest agent answers: SOCKET, or DISK=SOCKET for the VM that has that disk. */
export interface AgentValue {
	readonly path: string;
	readonly disk?: string;
}

/** One more value of a repeated option. What stands before the first `=` is a disk's name, unless it has a slash. */
export function collectAgents(text: string, before: readonly AgentValue[] = []): AgentValue[] {
	const match = /^([^/=]+)=(.+)$/.exec(text);
	const agent: AgentValue = match === null ? { path: text } : { disk: match[1]!, path: match[2]! };
	if (agent.path === "") throw new InvalidArgumentError("Give the path of a Unix socket, or DISK=PATH.");
	return [...before, agent];
}
