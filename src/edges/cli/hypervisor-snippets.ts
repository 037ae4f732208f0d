// Hypervisor snippets: what to give to QEMU or libvirt so that a VM uses a served disk.

import type { ListenAddress } from "../../adapters/nbd/listen-address.ts";
import type { ServedExport } from "../../services/serve.ts";

/** Seconds that a VM's requests wait for a server that restarts, instead of failing. */
const RECONNECT_SECONDS = 60;
/** Where QEMU on a libvirt host has its certificates, for the user to replace where that differs. */
const CREDENTIALS = "/etc/pki/qemu";

/** Arguments of QEMU, one line. */
export function qemuArguments({ name, address, readOnly, tls }: ServedExport): string {
	const node = nodeName(name);
	const server = qemuServer(address);
	const options = [
		"driver=nbd",
		`node-name=${node}`,
		...server,
		`export=${name}`,
		`reconnect-delay=${RECONNECT_SECONDS}`,
		...(tls === null ? [] : ["tls-creds=tls0"]),
		...(readOnly ? ["read-only=on"] : []),
		"discard=unmap",
	];
	return `${tls === null ? "" : `-object ${qemuCredentials(tls)} `}-blockdev ${shellWord(options.map(qemuValue).join(","))} -device virtio-blk-pci,drive=${node}`;
}

/** QEMU's object that holds a client's credentials. */
const qemuCredentials = (tls: "certificate" | "keys"): string =>
	tls === "certificate"
		? `tls-creds-x509,id=tls0,endpoint=client,dir=${CREDENTIALS}`
		: `tls-creds-psk,id=tls0,endpoint=client,dir=${CREDENTIALS},username=NAME`;

/** QEMU's SocketAddress. */
function qemuServer(address: ListenAddress): string[] {
	switch (address.kind) {
		case "unix":
			return ["server.type=unix", `server.path=${address.path}`];
		case "tcp":
			return ["server.type=inet", `server.host=${address.host}`, `server.port=${address.port}`];
		case "vsock":
			return ["server.type=vsock", `server.cid=${address.cid}`, `server.port=${address.port}`];
		case "descriptor":
			return ["server.type=fd", `server.str=${address.fd}`];
		default:
			return address satisfies never;
	}
}

/** A disk element for libvirt's domain description. */
export function libvirtDisk({ name, address, readOnly, tls }: ServedExport): string {
	if (address.kind !== "tcp" && address.kind !== "unix")
		return "<!-- libvirt reaches NBD servers by TCP or Unix socket only -->";
	const host =
		address.kind === "tcp"
			? `<host name="${xml(address.host)}" port="${address.port}"/>`
			: `<host transport="unix" socket="${xml(address.path)}"/>`;
	return [
		'<disk type="network" device="disk">',
		'  <driver name="qemu" type="raw" discard="unmap"/>',
		`  <source protocol="nbd" name="${xml(name)}"${tls === null ? "" : ' tls="yes"'}>`,
		`    ${host}`,
		`    <reconnect delay="${RECONNECT_SECONDS}"/>`,
		"  </source>",
		'  <target dev="vda" bus="virtio"/>',
		...(readOnly ? ["  <readonly/>"] : []),
		"</disk>",
	].join("\n");
}

/** QEMU's node names begin with a letter, have 31 characters, and few kinds of them. */
const nodeName = (name: string): string => `vmsweep-${name.replaceAll(/[^A-Za-z0-9._-]/g, "_")}`.slice(0, 31);

/** Commas separate QEMU's options; two stand for one. */
const qemuValue = (option: string): string => option.replaceAll(",", ",,");

const shellWord = (word: string): string =>
	/^[\w@%+=:,./[\]-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;

const xml = (text: string): string =>
	text.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
