import assert from "node:assert/strict";
import { test } from "node:test";
import * as zlib from "node:zlib";
import fc from "fast-check";
import { crc16, crc32, crc32be, crc32c, crc32cWithout } from "./crc.ts";

const digits = new TextEncoder().encode("123456789");

test("known answers of the catalogue of CRC algorithms", () => {
	assert.equal(~crc32c(0xffffffff, digits) >>> 0, 0xe3069283); // CRC-32/ISCSI
	assert.equal(crc32(digits), 0xcbf43926); // CRC-32/ISO-HDLC
	assert.equal(crc32be(0xffffffff, digits), 0x0376e6e7); // CRC-32/MPEG-2
	assert.equal(crc16(0, digits), 0xbb3d); // CRC-16/ARC
	assert.equal(crc16(0xffff, digits), 0x4b37); // CRC-16/MODBUS
});

test("crc32 equals zlib's for every length and alignment", () => {
	fc.assert(
		fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(7), (data, skip) => {
			const part = data.subarray(Math.min(skip, data.length));
			assert.equal(crc32(part), zlib.crc32(part));
		}),
	);
});

test("a checksum can be continued at any point", () => {
	fc.assert(
		fc.property(fc.uint8Array({ maxLength: 100 }), fc.nat(100), (data, cut) => {
			const whole = crc32c(0xffffffff, data);
			assert.equal(crc32c(crc32c(0xffffffff, data.subarray(0, cut)), data.subarray(cut)), whole);
		}),
	);
});

test("the checksum field counts as zero", () => {
	const record = new Uint8Array(64).fill(7);
	const zeroed = record.slice();
	zeroed.fill(0, 20, 24);
	assert.equal(crc32cWithout(5, record, 20), crc32c(5, zeroed));
});
