// Hypervisor snippets: what to give to QEMU or libvirt so that a VM uses a served disk.

import type { ServedExport } from "../../services/serve.ts";

/** Seconds that a VM's requests wait for a server that restarts, instead of failing. */
const RECONNECT_SECONDS = 60;

/** Arguments of QEMU, one line. */
export function qemuArguments({ name, address, readOnly }: ServedExport): string {
	const node = nodeName(name);
	const server =
		address.kind === "unix"
			? ["server.type=unix", `server.path=${address.path}`]
			: ["server.type=inet", `server.host=${address.host}`, `server.port=${address.port}`];
	const options = [
		"driver=nbd",
		`node-name=${node}`,
		...server,
		`export=${name}`,
		`reconnect-delay=${RECONNECT_SECONDS}`,
		...(readOnly ? ["read-only=on"] : []),
		"discard=unmap",
	];
	return `-blockdev ${shellWord(options.map(qemuValue).join(","))} -device virtio-blk-pci,drive=${node}`;
}

/** A disk element for libvirt's domain description. */
export function libvirtDisk({ name, address, readOnly }: ServedExport): string {
	const host =
		address.kind === "unix"
			? `<host transport="unix" socket="${xml(address.path)}"/>`
			: `<host name="${xml(address.host)}" port="${address.port}"/>`;
	return [
		'<disk type="network" device="disk">',
		'  <driver name="qemu" type="raw" discard="unmap"/>',
		`  <source protocol="nbd" name="${xml(name)}">`,
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
