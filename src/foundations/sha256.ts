// SHA-256 (FIPS 180-4), for formats that protect their metadata with it. Core has no `node:crypto`; this runs at some
// hundred MB/s, which is enough for metadata.

/** The first `count` primes. */
function primes(count: number): number[] {
	const found: number[] = [];
	for (let n = 2; found.length < count; n++) if (found.every((prime) => n % prime !== 0)) found.push(n);
	return found;
}
/** The first 32 bits of the fractional part. */
const fraction = (x: number): number => ((x - Math.floor(x)) * 2 ** 32) | 0;

/** Fractional parts of the cube roots of the first 64 primes, and of the square roots of the first 8. */
const roundConstants = Int32Array.from(primes(64), (prime) => fraction(Math.cbrt(prime)));
const start = Int32Array.from(primes(8), (prime) => fraction(Math.sqrt(prime)));

const rotate = (x: number, bits: number): number => (x >>> bits) | (x << (32 - bits));

/** The 32 bytes of the digest. */
export function sha256(data: Uint8Array): Uint8Array {
	const state = start.slice();
	const schedule = new Int32Array(64);
	const whole = data.length - (data.length % 64);
	const view = new DataView(data.buffer, data.byteOffset, data.length);
	for (let at = 0; at < whole; at += 64) block(state, schedule, view, at);

	// The rest, a one bit, zeros, and the length in bits.
	const tail = new Uint8Array(data.length % 64 < 56 ? 64 : 128);
	tail.set(data.subarray(whole));
	tail[data.length % 64] = 0x80;
	const tailView = new DataView(tail.buffer);
	tailView.setBigUint64(tail.length - 8, BigInt(data.length) * 8n);
	for (let at = 0; at < tail.length; at += 64) block(state, schedule, tailView, at);

	const digest = new Uint8Array(32);
	const digestView = new DataView(digest.buffer);
	for (let i = 0; i < 8; i++) digestView.setInt32(4 * i, state[i]!);
	return digest;
}

function block(state: Int32Array, w: Int32Array, view: DataView, at: number): void {
	for (let i = 0; i < 16; i++) w[i] = view.getInt32(at + 4 * i);
	for (let i = 16; i < 64; i++) {
		const x = w[i - 15]!;
		const y = w[i - 2]!;
		const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
		const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
		w[i] = w[i - 16]! + s0 + w[i - 7]! + s1;
	}
	let a = state[0]!;
	let b = state[1]!;
	let c = state[2]!;
	let d = state[3]!;
	let e = state[4]!;
	let f = state[5]!;
	let g = state[6]!;
	let h = state[7]!;
	for (let i = 0; i < 64; i++) {
		const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
		const t1 = (h + s1 + ((e & f) ^ (~e & g)) + roundConstants[i]! + w[i]!) | 0;
		const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
		const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
		h = g;
		g = f;
		f = e;
		e = (d + t1) | 0;
		d = c;
		c = b;
		b = a;
		a = (t1 + t2) | 0;
	}
	state[0]! += a;
	state[1]! += b;
	state[2]! += c;
	state[3]! += d;
	state[4]! += e;
	state[5]! += f;
	state[6]! += g;
	state[7]! += h;
}
