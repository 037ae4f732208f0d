// Listen addresses: where a server waits for clients, and how clients name that place.

/** Where clients connect. */
export type ListenAddress =
	| {
			readonly kind: "unix";
			readonly path: string;
			/** Permissions of the socket file; 0o600 where not given: only this user connects. */
			readonly mode?: number;
	  }
	| {
			readonly kind: "tcp";
			/** Name or address to listen on. */
			readonly host: string;
			/** 0 lets the kernel choose; see `NbdListener.address`. */
			readonly port: number;
	  }
	| {
			/** Between a host and its VMs (AF_VSOCK). */
			readonly kind: "vsock";
			/** Context id to listen on: {@link VSOCK_ANY}, or this machine's own. */
			readonly cid: number;
			readonly port: number;
	  }
	| {
			/** A socket that listens already: a service manager opened it. */
			readonly kind: "descriptor";
			readonly fd: number;
	  };

/** Any context id of this machine (VMADDR_CID_ANY). */
export const VSOCK_ANY = 0xffff_ffff;
/** The host, as its guests call it (VMADDR_CID_HOST). */
const VSOCK_HOST = 2;

/** "host:port", "unix:path" and so on, for messages. */
export function formatAddress(address: ListenAddress): string {
	switch (address.kind) {
		case "unix":
			return `unix:${address.path}`;
		case "tcp":
			return `${hostForUri(address.host)}:${address.port}`;
		case "vsock":
			return `vsock:${address.cid === VSOCK_ANY ? "any" : address.cid}:${address.port}`;
		case "descriptor":
			return `descriptor ${address.fd}`;
		default:
			return address satisfies never;
	}
}

/** The NBD URI under which a client reaches an export; with `tls` it asks for encryption. */
export function exportUri(address: ListenAddress, exportName: string, tls = false): string {
	const name = encodeURIComponent(exportName);
	const scheme = tls ? "nbds" : "nbd";
	switch (address.kind) {
		case "unix":
			return `${scheme}+unix:///${name}?socket=${encodeURI(address.path).replaceAll("&", "%26")}`;
		case "tcp":
			return `${scheme}://${hostForUri(address.host)}:${address.port}/${name}`;
		case "vsock":
			return `${scheme}+vsock://${address.cid === VSOCK_ANY ? VSOCK_HOST : address.cid}:${address.port}/${name}`;
		case "descriptor":
			return `${scheme}:///${name}`;
		default:
			return address satisfies never;
	}
}

const hostForUri = (host: string): string => (host.includes(":") ? `[${host}]` : host);
