// XXH64 (the xxHash specification, "XXH64 algorithm description"), for formats that protect their metadata with it.
// Its four lanes multiply 64-bit words, kept as pairs of 32-bit ones in an array, low word first: BigInt would be many
// times slower.

/** A 64-bit word. */
type Pair = [low: number, high: number];

const pair = (value: bigint): Pair => [Number(value & 0xffffffffn) | 0, Number(value >> 32n) | 0];
const P1 = pair(0x9e3779b185ebca87n);
const P2 = pair(0xc2b2ae3d27d4eb4fn);
const P3 = 0x165667b19e3779f9n;
const P4 = 0x85ebca77c2b2ae63n;
const P5 = 0x27d4eb2f165667c5n;
const bigP1 = 0x9e3779b185ebca87n;
const bigP2 = 0xc2b2ae3d27d4eb4fn;

/** The hash of `data` with seed 0, as the 8 bytes that little-endian formats store. */
export function xxhash64(data: Uint8Array): Uint8Array {
	const view = new DataView(data.buffer, data.byteOffset, data.length);
	const wide = (x: bigint): bigint => BigInt.asUintN(64, x);
	const rotate = (x: bigint, bits: bigint): bigint => wide((x << bits) | (x >> (64n - bits)));
	let at = 0;
	let hash: bigint;
	if (data.length >= 32) {
		const lanes = [wide(bigP1 + bigP2), bigP2, 0n, wide(-bigP1)].map(pair);
		for (; at + 32 <= data.length; at += 32)
			for (let lane = 0; lane < 4; lane++)
				round(lanes[lane]!, view.getInt32(at + 8 * lane, true), view.getInt32(at + 8 * lane + 4, true));
		const [a, b, c, d] = lanes.map(whole) as [bigint, bigint, bigint, bigint];
		hash = wide(rotate(a, 1n) + rotate(b, 7n) + rotate(c, 12n) + rotate(d, 18n));
		for (const lane of [a, b, c, d]) hash = wide((hash ^ mixed(lane)) * bigP1 + P4);
	} else hash = P5;
	hash = wide(hash + BigInt(data.length));
	// Less than 32 bytes are left; they may take their time.
	for (; at + 8 <= data.length; at += 8)
		hash = wide(rotate(hash ^ mixed(view.getBigUint64(at, true)), 27n) * bigP1 + P4);
	if (at + 4 <= data.length) {
		hash = wide(rotate(hash ^ wide(BigInt(view.getUint32(at, true)) * bigP1), 23n) * bigP2 + P3);
		at += 4;
	}
	for (; at < data.length; at++) hash = wide(rotate(hash ^ wide(BigInt(data[at]!) * P5), 11n) * bigP1);
	hash = wide((hash ^ (hash >> 33n)) * bigP2);
	hash = wide((hash ^ (hash >> 29n)) * P3);
	hash ^= hash >> 32n;
	const result = new Uint8Array(8);
	new DataView(result.buffer).setBigUint64(0, hash, true);
	return result;
}

const whole = ([low, high]: Pair): bigint => (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);

/** A round on a lane that is zero. */
function mixed(input: bigint): bigint {
	const lane: Pair = [0, 0];
	const [low, high] = pair(input);
	round(lane, low, high);
	return whole(lane);
}

/** `lane = rotate(lane + input * P2, 31) * P1` */
function round(lane: Pair, low: number, high: number): void {
	const sum = (lane[0] >>> 0) + (Math.imul(low, P2[0]) >>> 0);
	const sumHigh = lane[1] + highProduct(low, high, P2) + (sum > 0xffffffff ? 1 : 0);
	const rotatedLow = (sum << 31) | (sumHigh >>> 1);
	const rotatedHigh = (sumHigh << 31) | ((sum | 0) >>> 1);
	lane[0] = Math.imul(rotatedLow, P1[0]);
	lane[1] = highProduct(rotatedLow, rotatedHigh, P1);
}

/** Bits 32 to 63 of a product of 64-bit words (`Math.imul` gives the lower ones), by way of 16-bit parts. */
function highProduct(low: number, high: number, [factorLow, factorHigh]: Pair): number {
	const a = low & 0xffff;
	const b = low >>> 16;
	const c = factorLow & 0xffff;
	const d = factorLow >>> 16;
	const middle = b * c + ((a * c) >>> 16);
	const upper = a * d + (middle % 0x10000);
	const carry = b * d + Math.floor(middle / 0x10000) + Math.floor(upper / 0x10000);
	return (carry + Math.imul(low, factorHigh) + Math.imul(high, factorLow)) | 0;
}
