// The smallest qcow2 images, made and read without the product's code: whole-cluster data, one L1 table, one refcount
// block, no snapshots, nothing compressed. Layout: QEMU's docs/interop/qcow2.

const BLOCK = 4096;
/** In an L1 or L2 entry: the cluster is referred to only here. */
const COPIED = 2 ** 63;
const HEADER_BYTES = 112;

/** An image whose blocks hold `blocks` (4 KiB each); clusters of zeros are left out. */
export function tinyQcow2(blocks: Uint8Array, clusterBits: number): Uint8Array {
	const cluster = 2 ** clusterBits;
	const count = Math.ceil(blocks.length / cluster);
	const [refcountTable, refcountBlock, l1, l2, data] = [1, 2, 3, 4, 5];
	const image = new Uint8Array((data! + count) * cluster);
	const view = new DataView(image.buffer);
	const put64 = (at: number, value: number): void => {
		view.setUint32(at, Math.floor(value / 2 ** 32));
		view.setUint32(at + 4, value % 2 ** 32);
	};
	let next = data!;
	for (let i = 0; i < count; i++) {
		const content = blocks.subarray(i * cluster, (i + 1) * cluster);
		if (content.every((byte) => byte === 0)) continue;
		image.set(content, next * cluster);
		put64(l2! * cluster + i * 8, next * cluster + COPIED);
		next++;
	}
	put64(l1! * cluster, l2! * cluster + COPIED);
	put64(refcountTable! * cluster, refcountBlock! * cluster);
	for (let i = 0; i < next; i++) view.setUint16(refcountBlock! * cluster + i * 2, 1);
	view.setUint32(0, 0x514649fb);
	view.setUint32(4, 3);
	view.setUint32(20, clusterBits);
	put64(24, blocks.length);
	view.setUint32(36, 1);
	put64(40, l1! * cluster);
	put64(48, refcountTable! * cluster);
	view.setUint32(56, 1);
	view.setUint32(96, 4);
	view.setUint32(100, HEADER_BYTES);
	return image.subarray(0, next * cluster);
}

/** What a 4 KiB block of the disk reads as, by the tables that the file holds. */
export function qcow2Block(image: Uint8Array, block: number): Uint8Array {
	const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
	// The lowest 9 and the highest 8 bits of an entry are flags.
	const offsetIn = (at: number): number =>
		(view.getUint32(at) & 0xff_ffff) * 2 ** 32 + (view.getUint32(at + 4) & 0xffff_fe00);
	const cluster = 2 ** view.getUint32(20);
	const at = block * BLOCK;
	const none = new Uint8Array(BLOCK);
	const index = Math.floor(at / cluster);
	const l2 = offsetIn(offsetIn(40) + Math.floor(index / (cluster / 8)) * 8);
	if (l2 === 0) return none;
	const entry = l2 + (index % (cluster / 8)) * 8;
	const host = offsetIn(entry);
	const saysZero = (view.getUint32(entry + 4) & 1) !== 0;
	if (host === 0 || saysZero) return none;
	none.set(image.subarray(host + (at % cluster), host + (at % cluster) + BLOCK));
	return none;
}
