// Why a server can't listen, in words that say what to do.

import { VmsweepError } from "../../foundations/errors.ts";
import { formatAddress, type ListenAddress } from "./listen-address.ts";

/** Turns what the system said, an error with its code, into what the user can do. */
export function listenError(cause: unknown, address: ListenAddress): VmsweepError {
	const code = (cause as NodeJS.ErrnoException).code ?? "unknown error";
	const where = formatAddress(address);
	const advice: Record<string, [code: "ADDRESS_IN_USE" | "USAGE" | "IO", text: string]> = {
		EADDRINUSE: ["ADDRESS_IN_USE", "another server listens there. Stop it or choose another address."],
		EACCES: ["IO", "permission denied. Choose a place that you may write to, or a port above 1023."],
		ENOENT: ["USAGE", "the socket's directory doesn't exist. Create it first."],
		ENAMETOOLONG: ["USAGE", "the socket path is too long (107 bytes at most). Choose a shorter one."],
		EINVAL: ["USAGE", "the address can't be used. A socket path may have 107 bytes at most."],
		ENOTFOUND: ["USAGE", "the host name is unknown. Give an address of this host."],
		EAFNOSUPPORT: ["USAGE", "this host can't do that kind of socket."],
		ENODEV: ["USAGE", "this host has no vsock device. Load vhost_vsock or vsock_loopback."],
		ENOTSOCK: ["USAGE", "it is no socket. Pass one that listens."],
		EADDRNOTAVAIL: ["USAGE", "this host has no such address. Give an address of this host."],
	};
	const [errorCode, text] = advice[code] ?? (["IO", `${code}.`] as const);
	return new VmsweepError(errorCode, `can't listen on ${where}: ${text}`, { cause });
}
