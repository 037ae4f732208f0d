// vmsweep attach DISK --second-only: brings a disk back to use whose first image is lost.

import { attachSecondOnly } from "../../services/attach.ts";
import { print, printJson } from "./output.ts";

interface AttachOptions {
	readonly acceptBroken?: boolean;
	readonly json?: boolean;
}

export async function attach(path: string, { acceptBroken = false, json = false }: AttachOptions): Promise<void> {
	const attached = await attachSecondOnly(path, { acceptBroken });
	if (json) return await printJson(attached);
	const { position, stoodAt, isConsistent, notes } = attached;
	const when = stoodAt === null ? "a time that nobody noted" : `${stoodAt}, ${ageOf(stoodAt)} ago`;
	const lines = [
		isConsistent
			? `${path}: the disk as it was at log position ${position} (${when})`
			: `${path}: taken as it is; it was consistent last at log position ${position} (${when})`,
		isConsistent
			? "everything written since then is lost"
			: "its content is of two different times: have the guest check its file systems before they are used",
		...notes,
		`next: vmsweep serve ${path}`,
	];
	await print(`${lines.join("\n")}\n`);
}

/** Time since then, in the two largest units: "3 h 20 min". */
function ageOf(iso: string): string {
	const seconds = Math.max(0, Math.round((Date.now() - Date.parse(iso)) / 1000));
	const days = Math.floor(seconds / 86_400);
	const hours = Math.floor(seconds / 3600) % 24;
	const minutes = Math.floor(seconds / 60) % 60;
	if (days > 0) return `${days} d ${hours} h`;
	if (hours > 0) return `${hours} h ${minutes} min`;
	return minutes > 0 ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}
