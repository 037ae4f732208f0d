// Hashes against others' implementations: Node's, and published vectors.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import { seededRandom } from "../../test/support/randomness.ts";
import { blake2b } from "./blake2b.ts";
import { sha256 } from "./sha256.ts";
import { xxhash64 } from "./xxhash64.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const inputs = [0, 1, 3, 4, 8, 31, 32, 55, 56, 63, 64, 111, 112, 127, 128, 129, 256, 1000, 4096 - 32, 16384 - 32].map(
	(length) =>
		seededRandom(length)
			.bytes(length + 1)
			.subarray(1),
);

describe("hashes", () => {
	test("sha256 equals Node's", () => {
		for (const input of inputs) assert.equal(hex(sha256(input)), createHash("sha256").update(input).digest("hex"));
	});
	test("blake2b of 64 bytes equals Node's", () => {
		for (const input of inputs)
			assert.equal(hex(blake2b(input, 64)), createHash("blake2b512").update(input).digest("hex"));
	});
	test("blake2b of 32 bytes equals b2sum -l 256", () => {
		const text = new TextEncoder().encode("abc");
		assert.equal(hex(blake2b(text, 32)), "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
	});
	test("xxhash64 equals published values", () => {
		const hash = (text: string): string => hex(xxhash64(new TextEncoder().encode(text)).reverse());
		assert.equal(hash(""), "ef46db3751d8e999");
		assert.equal(hash("a"), "d24ec4f1a98c6e5b");
		assert.equal(hash("abc"), "44bc2cf5ad770999");
		assert.equal(hash("Nobody inspects the spammish repetition"), "fbcea83c8a378bf1");
	});
});
