// An independent check of a qcow2 image in memory, after the format's document alone: it shares no code with the
// product, so that the same mistake can't be in both.
//
// Every reference is counted. Fewer in the image's own counts than references: an error (somebody may overwrite what is
// in use). More: a leak.

/** What a check found. */
export interface Checked {
	readonly errors: readonly string[];
	readonly leaks: number;
}

const OFFSET = 0x00ff_ffff_ffff_fe00n;
const COMPRESSED = 1n << 62n;
const COPIED = 1n << 63n;

/**
 * Checks the bytes of an image without a data file. `flags`: an entry of the disk's present state, too, that says that its
 * reference is the only one must be right, and one that doesn't say so must not be wrong to.
 */
export function checkQcow2(bytes: Uint8Array, { flags = false } = {}): Checked {
	const errors: string[] = [];
	const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	const u32 = (at: number): number => (at + 4 <= bytes.length ? view.getUint32(at) : 0);
	const u64 = (at: number): bigint => (at + 8 <= bytes.length ? view.getBigUint64(at) : 0n);
	const offset = (at: number): number => Number(u64(at));
	if (u32(0) !== 0x514649fb) return { errors: ["no header"], leaks: 0 };
	const version = u32(4);
	const clusterBits = u32(20);
	const cluster = 2 ** clusterBits;
	const extended = version === 3 && (u64(72) & 16n) !== 0n;
	const refcountBits = 2 ** (version === 3 ? u32(96) : 4);
	const references = new Map<number, number>();
	const refer = (at: number, length: number, what: string): void => {
		if (at + length > Math.ceil(bytes.length / cluster) * cluster) errors.push(`${what} is behind the end`);
		for (let each = Math.floor(at / cluster); each * cluster < at + length; each++)
			references.set(each, (references.get(each) ?? 0) + 1);
	};

	const flagged: { readonly entry: bigint; readonly what: string }[] = [];
	const walkL1 = (at: number, entries: number, what: string): void => {
		const isPresent = what === "L1 table";
		refer(at, entries * 8, what);
		for (let index = 0; index < entries; index++) {
			const l2 = Number(u64(at + index * 8) & OFFSET);
			if (l2 === 0) continue;
			if (isPresent) flagged.push({ entry: u64(at + index * 8), what: "L2 table" });
			if (l2 % cluster !== 0) errors.push(`${what}: unaligned L2 table`);
			refer(l2, cluster, "L2 table");
			for (let entryAt = l2; entryAt < l2 + cluster; entryAt += extended ? 16 : 8) {
				const entry = u64(entryAt);
				if ((entry & COMPRESSED) !== 0n) {
					const shift = BigInt(62 - (clusterBits - 8));
					const host = Number(entry & ((1n << shift) - 1n));
					const sectors = Number((entry & (COMPRESSED - 1n)) >> shift) + 1;
					refer(host, sectors * 512 - (host % 512), "compressed cluster");
				} else if ((entry & OFFSET) !== 0n) {
					const host = Number(entry & OFFSET);
					if (isPresent) flagged.push({ entry, what: "cluster" });
					if (host % cluster !== 0) errors.push("unaligned cluster");
					refer(host, cluster, "cluster");
				}
			}
		}
	};

	refer(0, cluster, "header");
	walkL1(offset(40), u32(36), "L1 table");
	let at = offset(64);
	for (let index = 0; index < u32(60); index++) {
		walkL1(offset(at), u32(at + 8), `L1 table of snapshot ${index}`);
		const texts = view.getUint16(at + 12) + view.getUint16(at + 14) + u32(at + 36);
		at += 40 + Math.ceil(texts / 8) * 8;
	}
	if (u32(60) > 0) refer(offset(64), at - offset(64), "snapshot table");
	const table = offset(48);
	refer(table, u32(56) * cluster, "refcount table");
	const perBlock = (cluster * 8) / refcountBits;
	const counts = new Map<number, number>();
	for (let index = 0; index < (u32(56) * cluster) / 8; index++) {
		const block = offset(table + index * 8);
		if (block === 0) continue;
		refer(block, cluster, "refcount block");
		for (let each = 0; each < perBlock; each++) {
			const bit = each * refcountBits;
			let count = 0;
			if (refcountBits >= 8)
				for (let byte = 0; byte < refcountBits / 8; byte++) count = count * 256 + (bytes[block + bit / 8 + byte] ?? 0);
			else count = ((bytes[block + Math.floor(bit / 8)] ?? 0) >> (bit % 8)) & (2 ** refcountBits - 1);
			if (count !== 0) counts.set(index * perBlock + each, count);
		}
	}
	for (const [each, count] of references)
		if ((counts.get(each) ?? 0) < count)
			errors.push(`cluster ${each}: ${count} references, count ${counts.get(each) ?? 0}`);
	if (flags)
		for (const { entry, what } of flagged) {
			const count = counts.get(Number(entry & OFFSET) / cluster) ?? 0;
			if ((count === 1) !== (entry & COPIED) > 0n)
				errors.push(`${what} ${entry.toString(16)}: flag, but count ${count}`);
		}
	let leaks = 0;
	for (const [each, count] of counts) if (count > (references.get(each) ?? 0)) leaks++;
	return { errors, leaks };
}
