// Histogram of latencies: a count per bucket, so that millions of requests cost neither memory nor time.
//
// Buckets are as wide as a 64th of their value's power of two, so a percentile is at most 1.6 % too high.
// Values are microseconds in fixed point (1/16 µs): small ones stay exact, and 32 bits reach 268 seconds.

const SUB_BITS = 6;
const SUB_BUCKETS = 1 << SUB_BITS;
const PER_MS = 16_000;
const HIGHEST = 0xffff_ffff;

export class LatencyHistogram {
	readonly #counts = new Uint32Array((32 - SUB_BITS + 1) * SUB_BUCKETS);
	#total = 0;

	/** Notes a request that took `ms` milliseconds. */
	add(ms: number): void {
		const value = Math.min(HIGHEST, Math.max(0, Math.round(ms * PER_MS)));
		const index = bucketOf(value);
		this.#counts[index] = this.#counts[index]! + 1;
		this.#total++;
	}

	/** The time in milliseconds that `share` (0 to 1) of the requests did not exceed; 0 where there were none. */
	percentile(share: number): number {
		const wanted = Math.max(1, Math.ceil(share * this.#total));
		let seen = 0;
		for (let index = 0; index < this.#counts.length; index++) {
			seen += this.#counts[index]!;
			if (seen >= wanted) return highestIn(index) / PER_MS;
		}
		return 0;
	}
}

/** Values under 64 have buckets of their own; above, each power of two is divided into 64. */
function bucketOf(value: number): number {
	if (value < SUB_BUCKETS) return value;
	const exponent = 31 - Math.clz32(value);
	const shift = exponent - SUB_BITS;
	return (shift + 1) * SUB_BUCKETS + ((value >>> shift) - SUB_BUCKETS);
}

function highestIn(index: number): number {
	if (index < SUB_BUCKETS) return index;
	const shift = Math.floor(index / SUB_BUCKETS) - 1;
	const lowest = SUB_BUCKETS + (index % SUB_BUCKETS);
	return (lowest + 1) * 2 ** shift - 1;
}
