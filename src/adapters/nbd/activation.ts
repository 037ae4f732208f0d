// Socket activation: sockets that a service manager (systemd, or a program that starts servers as systemd does) opened
// before it started this process. They are descriptors from 3 on, and the environment says how many (sd_listen_fds(3)).

import type { ListenAddress } from "./listen-address.ts";

const FIRST_DESCRIPTOR = 3;

/** A socket that was passed. */
export interface PassedSocket {
	readonly address: ListenAddress;
	/** `FileDescriptorName=` of the socket unit; empty where it has none. */
	readonly name: string;
}

/** The sockets passed to this process, or undefined for none; the environment forgets them, so that no child takes them. */
export function takePassedSockets(environment: NodeJS.ProcessEnv, pid: number): PassedSocket[] | undefined {
	const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = "" } = environment;
	for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"]) delete environment[name];
	const count = Number(LISTEN_FDS);
	if (Number(LISTEN_PID) !== pid || !Number.isInteger(count) || count <= 0) return undefined;
	const names = LISTEN_FDNAMES.split(":");
	return Array.from({ length: count }, (_, index) => {
		const name = names[index] ?? "";
		// What the manager calls sockets that nobody named.
		return {
			address: { kind: "descriptor", fd: FIRST_DESCRIPTOR + index },
			name: name === "unknown" || name === "connection" ? "" : name,
		};
	});
}
