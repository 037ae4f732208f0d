// NBD addresses as people write them.
//
//   nbd://host:port/export                 port 10809 where none is given
//   nbd+unix:///export?socket=/path
//
// Source: "The NBD URI specification" (doc/uri.md of the NetworkBlockDevice project).

import { VmsweepError } from "../../foundations/errors.ts";

/** Where a server listens, and which of its exports is meant. */
export interface NbdAddress {
	readonly server:
		| { readonly kind: "unix"; readonly path: string }
		| { readonly kind: "tcp"; readonly host: string; readonly port: number };
	/** Empty: the server's default. */
	readonly exportName: string;
}

const DEFAULT_PORT = 10_809;

/** Throws USAGE where the address can't be meant, and IMAGE_UNSUPPORTED for what isn't spoken: TLS, vsock, ssh. */
export function parseNbdAddress(text: string): NbdAddress {
	const match = /^(nbds?(?:\+\w+)?):\/\/([^/?#]*)(\/[^?#]*)?(?:\?([^#]*))?$/.exec(text);
	if (match === null) throw wrong(text);
	const [, scheme, authority = "", path = "/", query = ""] = match;
	if (scheme!.startsWith("nbds"))
		throw new VmsweepError("IMAGE_UNSUPPORTED", `${text}: NBD over TLS is not spoken. Use a tunnel and nbd://.`);
	const exportName = decode(path.replace(/^\//, ""), text);
	switch (scheme) {
		case "nbd":
			return { server: { kind: "tcp", ...hostAndPort(authority, text) }, exportName };
		case "nbd+unix": {
			const socket = query.split("&").find((part) => part.startsWith("socket="));
			const socketPath = decode((socket ?? "").slice("socket=".length), text);
			if (socketPath === "" || authority !== "") throw wrong(text);
			return { server: { kind: "unix", path: socketPath }, exportName };
		}
		default:
			throw new VmsweepError("IMAGE_UNSUPPORTED", `${text}: ${scheme} is not spoken. Use nbd:// or nbd+unix://.`);
	}
}

function hostAndPort(authority: string, text: string): { host: string; port: number } {
	const match = /^(?:[^@]*@)?(?:\[([0-9A-Fa-f:.%]+)\]|([^:@[\]]+))(?::(\d{1,5}))?$/.exec(authority);
	const port = Number(match?.[3] ?? DEFAULT_PORT);
	if (match === null || port < 1 || port > 65_535) throw wrong(text);
	return { host: match[1] ?? decode(match[2]!, text), port };
}

function decode(part: string, text: string): string {
	try {
		return decodeURIComponent(part);
	} catch {
		throw wrong(text);
	}
}

const wrong = (text: string): VmsweepError =>
	new VmsweepError(
		"USAGE",
		`${text} is no NBD address. Write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH.`,
	);
