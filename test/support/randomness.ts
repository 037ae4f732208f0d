// Seeded randomness: a failing test prints its seed, and VMSWEEP_SEED=… runs the same history again.

import { randomInt } from "node:crypto";

/** Random numbers that depend on nothing but the seed. */
export interface Random {
	readonly seed: number;
	/** An integer of 0 … limit - 1. */
	below(limit: number): number;
	/** An integer of low … high, both included. */
	between(low: number, high: number): number;
	/** True with the given probability of 0 … 1. */
	chance(probability: number): boolean;
	pick<T>(choices: readonly T[]): T;
	bytes(length: number): Uint8Array<ArrayBuffer>;
}

/** The seed of a run: VMSWEEP_SEED where set, else a new one. Tests print it with `t.diagnostic`. */
export function testSeed(): number {
	const given = process.env.VMSWEEP_SEED;
	return given === undefined ? randomInt(2 ** 32) : Number(given) >>> 0;
}

/** xoshiro128** (Blackman and Vigna), its state filled from the seed by splitmix32. */
export function seededRandom(seed: number): Random {
	let mix = seed >>> 0;
	const splitmix = (): number => {
		mix = (mix + 0x9e3779b9) | 0;
		let z = mix ^ (mix >>> 16);
		z = Math.imul(z, 0x21f0aaad);
		z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
		return (z ^ (z >>> 15)) >>> 0;
	};
	let [a, b, c, d] = [splitmix(), splitmix(), splitmix(), splitmix()];
	const rotate = (x: number, bits: number): number => (x << bits) | (x >>> (32 - bits));
	const next = (): number => {
		const result = Math.imul(rotate(Math.imul(b, 5), 7), 9);
		const shifted = b << 9;
		c ^= a;
		d ^= b;
		b ^= c;
		a ^= d;
		c ^= shifted;
		d = rotate(d, 11);
		return result >>> 0;
	};
	const below = (limit: number): number => Math.floor((next() / 2 ** 32) * limit);
	return {
		seed,
		below,
		between: (low, high) => low + below(high - low + 1),
		chance: (probability) => next() / 2 ** 32 < probability,
		pick: (choices) => choices[below(choices.length)]!,
		bytes(length) {
			const words = new Uint32Array(Math.ceil(length / 4));
			for (let i = 0; i < words.length; i++) words[i] = next();
			return new Uint8Array(words.buffer, 0, length);
		},
	};
}
