// Files as libvirt and Proxmox write them; neither manager can run here, so their layout is written by hand.

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { temporaryFolder } from "../../test/support/folders.ts";
import { isVmsweepError } from "../foundations/errors.ts";
import { checkNotSaved } from "./saved-machines.ts";

function libvirtSave(magic: string, xml: string): Buffer {
	const header = Buffer.alloc(92);
	header.write(magic, 0, "latin1");
	header.writeUInt32LE(2, 16);
	header.writeUInt32LE(Buffer.byteLength(xml), 20);
	return Buffer.concat([header, Buffer.from(xml), Buffer.alloc(5000, 0xaa)]);
}

test("a disk of a saved or suspended VM is refused, others are not", async () => {
	await using folder = await temporaryFolder();
	const places = { libvirt: folder.file("save"), proxmox: folder.file("qemu-server") };
	const image = folder.file("web's & disk.qcow2");
	const other = folder.file("other.qcow2");
	for (const path of [image, other]) await writeFile(path, "");
	const refused = async (path: string, words: RegExp): Promise<void> =>
		assert.rejects(
			checkNotSaved(path, places),
			(error) => isVmsweepError(error, "IMAGE_LOCKED") && words.test(error.message),
		);
	await checkNotSaved(image, places); // no such folders

	await mkdir(places.libvirt);
	const source = image.replace("'", "&apos;").replace("&  ", "&amp; ").replace(" & ", " &amp; ");
	const xml = `<domain type='kvm'><devices><disk><source file='${source}'/></disk></devices></domain>`;
	await writeFile(`${places.libvirt}/web.save`, libvirtSave("LibvirtQemudSave", xml));
	await writeFile(`${places.libvirt}/noise.save`, "no save");
	await refused(image, /saved VM web.*managedsave-remove web/);
	await checkNotSaved(other, places);
	await writeFile(`${places.libvirt}/web.save`, libvirtSave("LibvirtQemudPart", xml));
	await refused(image, /saved VM web/);

	await mkdir(places.proxmox);
	const settings = "lock: suspended\nscsi0: local:100/other.qcow2,size=32G\nvmstate: local:100/vm-100-state.raw\n";
	await writeFile(`${places.proxmox}/100.conf`, settings);
	await refused(other, /VM 100, which is suspended to disk/);
	await writeFile(`${places.proxmox}/100.conf`, settings.replace("lock: suspended\n", ""));
	await checkNotSaved(other, places);
	await writeFile(`${places.proxmox}/100.conf`, `scsi0: local:1/x.raw\n[old]\n${settings}`);
	await checkNotSaved(other, places);
});
