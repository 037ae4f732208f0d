// Saved machines: VMs that are not running, but whose memory waits in a file to go on from where it stopped. Their disks
// are in use as much as those of running VMs, and nothing locks them: btrfs and XFS don't even note that they are mounted.
//
//   libvirt   /var/lib/libvirt/qemu/save/NAME.save    header, then the domain's XML (libvirt, qemu_saveimage.h)
//   Proxmox   /etc/pve/qemu-server/ID.conf            "lock: suspended" among the VM's settings (qm suspend --todisk)
//
// What another manager saved, or what was saved elsewhere, is not found; the manual tells the operator.

import { open, readdir, readFile, realpath } from "node:fs/promises";
import { basename, join } from "node:path";
import { VmsweepError } from "../foundations/errors.ts";

/** Where managers of VMs keep what they saved. */
export interface SavedPlaces {
	readonly libvirt: string;
	readonly proxmox: string;
}

const usualPlaces: SavedPlaces = { libvirt: "/var/lib/libvirt/qemu/save", proxmox: "/etc/pve/qemu-server" };

/** Throws IMAGE_LOCKED where a saved VM needs the image at `path` as it is. */
export async function checkNotSaved(path: string, places: SavedPlaces = usualPlaces): Promise<void> {
	const real = await realpath(path).catch(() => path);
	for (const name of await filesIn(places.libvirt, ".save"))
		if ((await savedDomain(join(places.libvirt, `${name}.save`)))?.includes(`'${xmlText(real)}'`))
			throw new VmsweepError(
				"IMAGE_LOCKED",
				`${path} belongs to the saved VM ${name}, which goes on from there. Start it and shut it down, or give its saved state up: virsh managedsave-remove ${name}.`,
			);
	for (const id of await filesIn(places.proxmox, ".conf"))
		if (isSuspendedWith(await readFile(join(places.proxmox, `${id}.conf`), "utf8").catch(() => ""), real))
			throw new VmsweepError(
				"IMAGE_LOCKED",
				`${path} belongs to the VM ${id}, which is suspended to disk. Resume it and shut it down: qm resume ${id}.`,
			);
}

/** Names of a folder's files, without the given ending; none where there is no such folder. */
async function filesIn(folder: string, ending: string): Promise<string[]> {
	const names = await readdir(folder).catch(() => []);
	return names.filter((name) => name.endsWith(ending)).map((name) => name.slice(0, -ending.length));
}

/** Magic, and as far as they count here: version, bytes of XML. Fourteen words are in reserve. */
const HEADER_BYTES = 92;
const XML_LENGTH_AT = 20;
const XML_BYTES_MAX = 16 << 20;

/** The domain's XML in a file that libvirt saved; undefined where the file is none, or can't be read. */
async function savedDomain(path: string): Promise<string | undefined> {
	const file = await open(path, "r").catch(() => undefined);
	if (file === undefined) return undefined;
	try {
		const header = Buffer.alloc(HEADER_BYTES);
		await file.read(header, 0, header.length, 0);
		const magic = header.toString("latin1", 0, 16);
		if (magic !== "LibvirtQemudSave" && magic !== "LibvirtQemudPart") return undefined;
		const length = Math.min(header.readUInt32LE(XML_LENGTH_AT), XML_BYTES_MAX);
		const xml = Buffer.alloc(length);
		await file.read(xml, 0, length, HEADER_BYTES);
		return xml.toString("utf8");
	} finally {
		await file.close();
	}
}

const xmlText = (text: string): string =>
	text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("'", "&apos;");

/** Do the settings say that the VM is suspended to disk, and name a file of that name as one of its disks? */
function isSuspendedWith(settings: string, path: string): boolean {
	// Snapshots follow in sections of their own.
	const present = settings.split(/^\[/m)[0]!;
	if (!/^lock: suspended$/m.test(present)) return false;
	const name = basename(path);
	return present.split("\n").some((line) => {
		const disk = /^(?:scsi|virtio|sata|ide|efidisk|tpmstate)\d+: ([^,]+)/.exec(line)?.[1];
		return disk !== undefined && (disk === path || disk.split(/[:/]/).at(-1) === name);
	});
}
