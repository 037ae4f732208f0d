// BLAKE2b (RFC 7693) without a key, for formats that protect their metadata with it. 64-bit words are pairs of 32-bit
// ones, low word first, in one array: BigInt would be some ten times slower.

/** The square roots' fractional parts that SHA-512 starts with, too: low word, high word. */
const start = Int32Array.from([
	0xf3bcc908, 0x6a09e667, 0x84caa73b, 0xbb67ae85, 0xfe94f82b, 0x3c6ef372, 0x5f1d36f1, 0xa54ff53a, 0xade682d1,
	0x510e527f, 0x2b3e6c1f, 0x9b05688c, 0xfb41bd6b, 0x1f83d9ab, 0x137e2179, 0x5be0cd19,
]);

/** The order of the message's words, per round; rounds 10 and 11 repeat the first two (RFC 7693, 2.7). */
const schedule = [
	[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
	[14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
	[11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
	[7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
	[9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
	[2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
	[12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
	[13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
	[6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
	[10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];
/** The digest of `data`, `digestLength` bytes of 1 to 64. */
export function blake2b(data: Uint8Array, digestLength: number): Uint8Array {
	const state = start.slice();
	state[0]! ^= 0x01010000 ^ digestLength;
	const work = new Int32Array(32);
	const message = new Int32Array(32);
	const buffer = new Uint8Array(128);
	const view = new DataView(buffer.buffer);
	const last = Math.max(0, Math.ceil(data.length / 128) - 1) * 128;
	for (let at = 0; at <= last; at += 128) {
		const part = data.subarray(at, at + 128);
		buffer.fill(0).set(part);
		for (let i = 0; i < 32; i++) message[i] = view.getInt32(4 * i, true);
		compress(state, work, message, at + part.length, at === last);
	}
	const digest = new Uint8Array(64);
	const digestView = new DataView(digest.buffer);
	for (let i = 0; i < 16; i++) digestView.setInt32(4 * i, state[i]!, true);
	return digest.subarray(0, digestLength);
}

function compress(state: Int32Array, v: Int32Array, message: Int32Array, counted: number, isLast: boolean): void {
	v.set(state);
	v.set(start, 16);
	v[24]! ^= counted | 0;
	v[25]! ^= Math.floor(counted / 2 ** 32);
	if (isLast) {
		v[28] = ~v[28]!;
		v[29] = ~v[29]!;
	}
	for (let round = 0; round < 12; round++) {
		const order = schedule[round % 10]!;
		// The columns, then the diagonals; written out, since a table of them costs more than the mixing.
		mix(v, 0, 8, 16, 24, message, order[0]!, order[1]!);
		mix(v, 2, 10, 18, 26, message, order[2]!, order[3]!);
		mix(v, 4, 12, 20, 28, message, order[4]!, order[5]!);
		mix(v, 6, 14, 22, 30, message, order[6]!, order[7]!);
		mix(v, 0, 10, 20, 30, message, order[8]!, order[9]!);
		mix(v, 2, 12, 22, 24, message, order[10]!, order[11]!);
		mix(v, 4, 14, 16, 26, message, order[12]!, order[13]!);
		mix(v, 6, 8, 18, 28, message, order[14]!, order[15]!);
	}
	for (let i = 0; i < 16; i++) state[i]! ^= v[i]! ^ v[i + 16]!;
}

/** The function G on words at `a` to `d`, with message words `x` and `y`: adds, and rotates right by 32, 24, 16, 63. */
function mix(v: Int32Array, a: number, b: number, c: number, d: number, m: Int32Array, x: number, y: number): void {
	add(v, a, v[b]!, v[b + 1]!);
	add(v, a, m[2 * x]!, m[2 * x + 1]!);
	let low = v[d]! ^ v[a]!;
	let high = v[d + 1]! ^ v[a + 1]!;
	v[d] = high;
	v[d + 1] = low;
	add(v, c, v[d]!, v[d + 1]!);
	low = v[b]! ^ v[c]!;
	high = v[b + 1]! ^ v[c + 1]!;
	v[b] = (low >>> 24) | (high << 8);
	v[b + 1] = (high >>> 24) | (low << 8);
	add(v, a, v[b]!, v[b + 1]!);
	add(v, a, m[2 * y]!, m[2 * y + 1]!);
	low = v[d]! ^ v[a]!;
	high = v[d + 1]! ^ v[a + 1]!;
	v[d] = (low >>> 16) | (high << 16);
	v[d + 1] = (high >>> 16) | (low << 16);
	add(v, c, v[d]!, v[d + 1]!);
	low = v[b]! ^ v[c]!;
	high = v[b + 1]! ^ v[c + 1]!;
	v[b] = (low << 1) | (high >>> 31);
	v[b + 1] = (high << 1) | (low >>> 31);
}

function add(v: Int32Array, at: number, low: number, high: number): void {
	const before = v[at]!;
	const sum = (before + low) | 0;
	// The carry out of the top bit, without leaving 32-bit integers.
	const carry = ((before & low) | ((before | low) & ~sum)) >>> 31;
	v[at] = sum;
	v[at + 1] = (v[at + 1]! + high + carry) | 0;
}
