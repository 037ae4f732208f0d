// xxHash64 against published values.

import assert from "node:assert/strict";
import { test } from "node:test";
import { xxhash64 } from "./xxhash64.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
test("xxhash64 equals published values", () => {
	const hash = (text: string): string => hex(xxhash64(new TextEncoder().encode(text)).reverse());
	assert.equal(hash(""), "ef46db3751d8e999");
	assert.equal(hash("a"), "d24ec4f1a98c6e5b");
	assert.equal(hash("abc"), "44bc2cf5ad770999");
	assert.equal(hash("Nobody inspects the spammish repetition"), "fbcea83c8a378bf1");
});
