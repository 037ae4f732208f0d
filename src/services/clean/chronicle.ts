// Chronicle: how a disk's volumes have changed since it is served, for the server's log and for status.
//
//   found ─► initialization done ─► kept because … ─► followed again ─► gone
//
// Each change is told once, not in each round. A volume that is looked at anew (its disk was divided anew, notices were lost) keeps
// its place here, so that nothing is told where it turns out to be as before; nor is a state told that more commits of
// the guest end by themselves.

import type { LiveState } from "../../core/filesystems/live.ts";
import { formatBytes } from "../../foundations/units.ts";
import { type JudgedPoint, ruleOf, waitsForOf } from "./volume-status.ts";
import type { ServedVolume } from "./volumes.ts";

interface Remembered {
	readonly type: string;
	/** What was told last: that it is followed, that it isn't known yet, or why it is kept. */
	told: string;
	wasInitialized: boolean;
	/** The newest verdict that was counted, and the metadata read by all of them. */
	verdict: LiveState | undefined;
	bytesRead: number;
	point: JudgedPoint | null;
}

const UNKNOWN = "unknown";
const FOLLOWED = "followed";

export class Chronicle {
	readonly #say: (line: string) => void;
	readonly #now: () => Date;
	readonly #volumes = new Map<string, Remembered>();

	/** @param say takes one line about a volume */
	constructor(say: (line: string) => void, now: () => Date = () => new Date()) {
		this.#say = say;
		this.#now = now;
	}

	/** The volumes as they are judged now. */
	note(volumes: readonly ServedVolume[]): void {
		for (const [id, { type }] of this.#volumes)
			if (!volumes.some((volume) => volume.id === id)) {
				this.#volumes.delete(id);
				this.#say(`volume ${id} (${type}) is gone`);
			}
		for (const volume of volumes) this.#noteVolume(volume);
	}

	/** The newest point at which a volume's free blocks were known. */
	pointOf(id: string): JudgedPoint | null {
		return this.#volumes.get(id)?.point ?? null;
	}

	#noteVolume(volume: ServedVolume): void {
		const { id, type, verdict } = volume;
		const told = standOf(volume);
		let known = this.#volumes.get(id);
		if (known === undefined || known.type !== type) {
			// The rule of a volume that no rule follows is that it is kept; that needn't be told twice.
			const rule = ruleOf(volume);
			known = {
				type,
				told: rule === told ? told : UNKNOWN,
				wasInitialized: false,
				verdict: undefined,
				bytesRead: 0,
				point: null,
			};
			this.#volumes.set(id, known);
			this.#say(`volume ${id} (${type}): found; ${rule === told ? "" : "rule: "}${rule}`);
		}
		if (verdict?.kind === "ready" && verdict.position !== known.point?.position)
			known.point = { position: verdict.position, at: this.#now().toISOString() };
		if (verdict !== undefined && verdict !== known.verdict) known.bytesRead += verdict.metadataBytesRead;
		known.verdict = verdict;
		if (told === UNKNOWN || told === known.told) return;
		known.told = told;
		if (verdict?.kind !== "ready") this.#say(`volume ${id} (${type}): kept: ${volume.reason}`);
		else if (known.wasInitialized) this.#say(`volume ${id} (${type}): followed again`);
		else this.#say(`volume ${id} (${type}): initialization done, read ${formatBytes(known.bytesRead)} of metadata`);
		if (verdict?.kind === "ready") known.wasInitialized = true;
	}
}

function standOf({ live, verdict, reason }: ServedVolume): string {
	if (live === undefined) return `kept: ${reason}`;
	if (verdict === undefined) return UNKNOWN;
	if (verdict.kind === "ready") return FOLLOWED;
	return waitsForOf(verdict) === "commits" ? UNKNOWN : `kept: ${verdict.reason}`;
}
