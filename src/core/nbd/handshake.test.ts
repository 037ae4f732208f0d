import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { viewOf } from "../../foundations/struct.ts";
import { byteCount } from "../../foundations/units.ts";
import {
	diskTransmissionFlags,
	type ExportDescription,
	Handshake,
	type HandshakeOutcome,
	OPTION_BYTES_MAX,
	OPTION_BYTES_SKIPPED_MAX,
	OPTIONS_MAX,
	type TlsPolicy,
} from "./handshake.ts";
import {
	ExportNameReply,
	Greeting,
	InfoBlockSize,
	InfoExport,
	info,
	NBD_MAGIC,
	OPTION_MAGIC,
	OPTION_REPLY_MAGIC,
	OptionHeader,
	OptionReplyHeader,
	option,
	optionReply,
	transmissionFlag,
} from "./protocol.ts";

const web: ExportDescription = {
	name: "web01",
	description: "the web server's disk",
	size: byteCount(40 * 2 ** 30),
	readOnly: false,
	transmissionFlags: diskTransmissionFlags,
	blockSize: { minimum: 1, preferred: 4096, maximumPayload: 32 * 2 ** 20 },
};
const archive: ExportDescription = { ...web, name: "archiv-ä", description: "", readOnly: true };
const exports = [web, archive];
const everything: ExportDescription = { ...web, contexts: ["allocation", "liveness", "since"] };

// ---- A client's bytes ----

const join = (...parts: readonly Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
const text = (value: string): Uint8Array => new TextEncoder().encode(value);
const u16 = (value: number): Uint8Array => Uint8Array.of(value >> 8, value & 255);
const u32 = (value: number): Uint8Array => join(u16(value >>> 16), u16(value & 0xffff));
const counted = (value: string): Uint8Array => join(u32(text(value).length), text(value));
const send = (type: number, ...data: readonly Uint8Array[]): Uint8Array => {
	const header = new Uint8Array(OptionHeader.size);
	const body = join(...data);
	OptionHeader.put(viewOf(header), 0, { magic: OPTION_MAGIC, option: type, length: body.length });
	return join(header, body);
};
const exportQuery = (name: string, ...wanted: readonly number[]): Uint8Array =>
	join(counted(name), u16(wanted.length), ...wanted.map(u16));
const metaQuery = (name: string, ...queries: readonly string[]): Uint8Array =>
	join(counted(name), u32(queries.length), ...queries.map(counted));

const FIXED = u32(1);
const FIXED_NO_ZEROES = u32(3);
const structured = send(option.STRUCTURED_REPLY);

// ---- The server's bytes ----

interface Reply {
	readonly option: number;
	readonly type: number;
	readonly data: Uint8Array;
}

function parseReplies(bytes: Uint8Array): Reply[] {
	const replies: Reply[] = [];
	for (let at = 0; at < bytes.length; ) {
		const header = OptionReplyHeader.at(viewOf(bytes), at);
		assert.equal(header.magic, OPTION_REPLY_MAGIC);
		at += OptionReplyHeader.size;
		assert.ok(at + header.length <= bytes.length);
		replies.push({ option: header.option, type: header.type, data: bytes.slice(at, at + header.length) });
		at += header.length;
	}
	return replies;
}

/** Feeds `input`, cut at the given places, and collects everything that comes back. */
function converse(
	input: Uint8Array,
	cuts: readonly number[] = [],
	handshake: Handshake = new Handshake(exports),
): { bytes: Uint8Array; outcome?: HandshakeOutcome } {
	const places = [...cuts.filter((cut) => cut > 0 && cut < input.length).sort((a, b) => a - b), input.length];
	const sent: Uint8Array[] = [];
	let from = 0;
	for (const to of places) {
		const { reply, outcome } = handshake.receive(input.slice(from, to));
		sent.push(reply);
		from = to;
		if (outcome === undefined) continue;
		if (outcome.kind !== "transmission") return { bytes: join(...sent), outcome };
		return { bytes: join(...sent), outcome: { ...outcome, leftover: join(outcome.leftover, input.slice(to)) } };
	}
	return { bytes: join(...sent) };
}

const replyTypes = (input: Uint8Array): number[] => parseReplies(converse(input).bytes).map(({ type }) => type);

function transmission(input: Uint8Array): HandshakeOutcome & { kind: "transmission" } {
	const { outcome } = converse(input);
	assert.equal(outcome?.kind, "transmission");
	return outcome;
}

function abortion(input: Uint8Array): string {
	const { outcome } = converse(input);
	assert.equal(outcome?.kind, "aborted");
	return outcome.reason;
}

// ---- Tests ----

test("the greeting offers fixed newstyle without padding", () => {
	const greeting = new Handshake(exports).greeting();
	assert.deepEqual(Greeting.at(viewOf(greeting)), { magic: NBD_MAGIC, optionMagic: OPTION_MAGIC, flags: 3 });
	assert.equal(new TextDecoder().decode(greeting.subarray(0, 16)), "NBDMAGICIHAVEOPT");
});

test("GO enters transmission and keeps the bytes that follow", () => {
	const request = Uint8Array.of(0x25, 0x60, 0x95, 0x13, 1, 2, 3);
	const wanted = [info.NAME, info.DESCRIPTION, info.BLOCK_SIZE, 77];
	const input = join(FIXED_NO_ZEROES, structured, send(option.GO, exportQuery("web01", ...wanted)), request);
	const { bytes, outcome } = converse(input);
	const [ack, exported, name, description, blockSize, end, ...more] = parseReplies(bytes);
	assert.deepEqual([ack?.option, ack?.type], [option.STRUCTURED_REPLY, optionReply.ACK]);
	assert.deepEqual(InfoExport.at(viewOf(exported!.data)), {
		type: info.EXPORT,
		size: 40 * 2 ** 30,
		transmissionFlags: diskTransmissionFlags & ~transmissionFlag.BLOCK_STATUS_PAYLOAD,
	});
	assert.deepEqual(name?.data, join(u16(info.NAME), text("web01")));
	assert.deepEqual(description?.data, join(u16(info.DESCRIPTION), text("the web server's disk")));
	const sizes = { minimum: 1, preferred: 4096, maximumPayload: 32 * 2 ** 20 };
	assert.deepEqual(InfoBlockSize.at(viewOf(blockSize!.data)), { type: info.BLOCK_SIZE, ...sizes });
	assert.deepEqual([end?.option, end?.type, end?.data.length], [option.GO, optionReply.ACK, 0]);
	assert.equal(more.length, 0);
	assert.deepEqual(outcome, {
		kind: "transmission",
		exportName: "web01",
		headers: "structured",
		metaContexts: [],
		leftover: request,
	});
});

test("INFO answers like GO and stays in the handshake", () => {
	const both = join(FIXED, send(option.INFO, exportQuery("")), send(option.GO, exportQuery("")));
	const [first, firstEnd, second, secondEnd] = parseReplies(converse(both).bytes);
	assert.deepEqual(first?.data, second?.data);
	assert.deepEqual([firstEnd?.type, secondEnd?.type], [optionReply.ACK, optionReply.ACK]);
});

test("the empty name is the first export", () => {
	assert.equal(transmission(join(FIXED, send(option.GO, exportQuery("")))).exportName, "web01");
	assert.equal(transmission(join(FIXED, send(option.EXPORT_NAME))).exportName, "web01");
});

test("a read-only export says so and offers no changes", () => {
	const [exported] = parseReplies(converse(join(FIXED, send(option.GO, exportQuery("archiv-ä")))).bytes);
	const flags = InfoExport.read.transmissionFlags(viewOf(exported!.data), 0);
	assert.ok(flags & transmissionFlag.READ_ONLY);
	assert.equal(flags & (transmissionFlag.SEND_TRIM | transmissionFlag.SEND_WRITE_ZEROES), 0);
});

test("SEND_DF is offered only with structured replies", () => {
	const [exported] = parseReplies(converse(join(FIXED, send(option.GO, exportQuery("web01")))).bytes);
	assert.equal(InfoExport.read.transmissionFlags(viewOf(exported!.data), 0) & transmissionFlag.SEND_DF, 0);
});

test("EXPORT_NAME answers without a header, padded unless that was switched off", () => {
	for (const [flags, length] of [
		[FIXED, 134],
		[FIXED_NO_ZEROES, 10],
		[u32(0), 134],
	] as const) {
		const { bytes, outcome } = converse(join(flags, send(option.EXPORT_NAME, text("web01"))));
		assert.equal(bytes.length, length);
		assert.equal(ExportNameReply.read.size(viewOf(bytes), 0), 40 * 2 ** 30);
		assert.equal(outcome?.kind, "transmission");
	}
	assert.match(abortion(join(FIXED, send(option.EXPORT_NAME, text("nope")))), /unknown export "nope"/);
});

test("LIST names every export with its description", () => {
	const [first, second, end] = parseReplies(converse(join(FIXED, send(option.LIST))).bytes);
	assert.deepEqual(first?.data, join(counted("web01"), text("the web server's disk")));
	assert.deepEqual(second?.data, counted("archiv-ä"));
	assert.equal(end?.type, optionReply.ACK);
});

test("ABORT is acknowledged and ends the handshake", () => {
	const { bytes, outcome } = converse(join(FIXED, send(option.ABORT, text("ignored"))));
	assert.deepEqual(
		parseReplies(bytes).map(({ type }) => type),
		[optionReply.ACK],
	);
	assert.equal(outcome?.kind, "aborted");
});

test("wrong options are answered with the right error and change nothing", () => {
	const errors: readonly [what: string, bytes: Uint8Array, type: number][] = [
		["unknown option", send(99, text("x")), optionReply.ERR_UNSUP],
		["TLS", send(option.STARTTLS), optionReply.ERR_POLICY],
		["TLS with data", send(option.STARTTLS, text("x")), optionReply.ERR_INVALID],
		["LIST with data", send(option.LIST, text("x")), optionReply.ERR_INVALID],
		["STRUCTURED_REPLY with data", send(option.STRUCTURED_REPLY, text("x")), optionReply.ERR_INVALID],
		["unknown export", send(option.GO, exportQuery("nope")), optionReply.ERR_UNKNOWN],
		["empty INFO", send(option.INFO), optionReply.ERR_INVALID],
		["name longer than the option", send(option.GO, u32(9), text("web01"), u16(0)), optionReply.ERR_INVALID],
		["huge name length", send(option.GO, u32(0xffff_ffff), text("web01"), u16(0)), optionReply.ERR_INVALID],
		["fewer requests than announced", send(option.GO, counted("web01"), u16(2), u16(0)), optionReply.ERR_INVALID],
		["bytes behind the requests", send(option.GO, exportQuery("web01"), u16(0)), optionReply.ERR_INVALID],
		["no UTF-8", send(option.GO, u32(1), Uint8Array.of(0xff), u16(0)), optionReply.ERR_INVALID],
		["NUL in a name", send(option.GO, exportQuery("web\x0001")), optionReply.ERR_INVALID],
		["long name", send(option.GO, exportQuery("x".repeat(5000))), optionReply.ERR_TOO_BIG],
		["long option", send(option.INFO, new Uint8Array(OPTION_BYTES_MAX + 1)), optionReply.ERR_TOO_BIG],
		["long unknown option", send(99, new Uint8Array(OPTION_BYTES_MAX + 1)), optionReply.ERR_UNSUP],
		["contexts before structured replies", send(option.SET_META_CONTEXT, metaQuery("")), optionReply.ERR_INVALID],
	];
	for (const [what, bytes, type] of errors) {
		const input = join(FIXED, bytes, send(option.GO, exportQuery("web01")));
		assert.deepEqual(replyTypes(input), [type, optionReply.INFO, optionReply.ACK], what);
		assert.equal(converse(input).outcome?.kind, "transmission", what);
	}
});

test("broken clients are dropped", () => {
	assert.match(abortion(u32(5)), /unknown flags 0x4/);
	assert.match(abortion(u32(0x8000_0001)), /unknown flags 0x80000000/);
	assert.match(abortion(join(FIXED, text("GET / HTTP/1.1\r\n"))), /magic/);
	const header = new Uint8Array(OptionHeader.size);
	const length = OPTION_BYTES_SKIPPED_MAX + 1;
	OptionHeader.put(viewOf(header), 0, { magic: OPTION_MAGIC, option: 99, length });
	assert.match(abortion(join(FIXED, header)), /announced an option/);
	const many = Array.from({ length: OPTIONS_MAX + 1 }, () => structured);
	assert.match(abortion(join(FIXED, ...many)), /more than 1024 options/);
	assert.match(abortion(join(FIXED, send(option.EXPORT_NAME, new Uint8Array(OPTION_BYTES_MAX + 1)))), /export name/);
});

const contextsAfter = (...inputs: readonly Uint8Array[]): readonly string[] =>
	transmission(join(FIXED, structured, ...inputs)).metaContexts.map(({ name }) => name);
const set = (name: string, ...queries: readonly string[]): Uint8Array =>
	send(option.SET_META_CONTEXT, metaQuery(name, ...queries));
const go = send(option.GO, exportQuery("web01"));

test("SET_META_CONTEXT selects base:allocation for one export, and each replaces the one before", () => {
	const selected = ["base:allocation"];
	assert.deepEqual(contextsAfter(set("web01", "base:allocation"), go), selected);
	assert.deepEqual(contextsAfter(set("web01", "x-other:y", "base:allocation", "base:allocation"), go), selected);
	assert.deepEqual(contextsAfter(set("", "base:allocation"), go), selected);
	assert.deepEqual(contextsAfter(set("web01", "base:"), go), []);
	assert.deepEqual(contextsAfter(set("web01"), go), []);
	assert.deepEqual(contextsAfter(set("web01", "base:unknown", "nonsense"), go), []);
	assert.deepEqual(contextsAfter(set("archiv-ä", "base:allocation"), go), []);
	assert.deepEqual(contextsAfter(set("web01", "base:allocation"), set("web01"), go), []);
	// Also one that fails replaces.
	assert.deepEqual(contextsAfter(set("web01", "base:allocation"), set("nope", "base:allocation"), go), []);
	assert.deepEqual(contextsAfter(set("web01", "base:allocation"), send(option.SET_META_CONTEXT), go), []);
	const long = send(option.SET_META_CONTEXT, new Uint8Array(OPTION_BYTES_MAX + 1));
	assert.deepEqual(contextsAfter(set("web01", "base:allocation"), long, go), []);
});

test("SET_META_CONTEXT replies carry the id that block status replies will carry", () => {
	const input = join(FIXED, structured, set("web01", "base:allocation"), go);
	const reply = parseReplies(converse(input).bytes).find(({ type }) => type === optionReply.META_CONTEXT);
	const { metaContexts } = transmission(input);
	assert.deepEqual(reply?.data, join(u32(metaContexts[0]!.id), text("base:allocation")));
});

test("LIST_META_CONTEXT knows wildcards", () => {
	const list = (...queries: readonly string[]): number[] =>
		replyTypes(join(FIXED, structured, send(option.LIST_META_CONTEXT, metaQuery("web01", ...queries)))).slice(1);
	const one = [optionReply.META_CONTEXT, optionReply.ACK];
	assert.deepEqual(list(), one);
	assert.deepEqual(list("base:"), one);
	assert.deepEqual(list("base:allocation"), one);
	assert.deepEqual(list("qemu:", "base:nothing"), [optionReply.ACK]);
});

test("contexts of vmsweep are selected several at once, each with an id of its own", () => {
	const handshake = new Handshake([everything]);
	const names = ["vmsweep:since:1234", "base:allocation", "vmsweep:liveness", "vmsweep:since:0"];
	const input = join(FIXED, structured, set("web01", ...names, "vmsweep:since:x", "vmsweep:since:", names[0]!), go);
	const { outcome } = converse(input, [], handshake);
	assert.equal(outcome?.kind, "transmission");
	assert.deepEqual(outcome.metaContexts, [
		{ id: 1, name: names[0], context: { kind: "since", position: 1234 } },
		{ id: 2, name: names[1], context: { kind: "allocation" } },
		{ id: 3, name: names[2], context: { kind: "liveness" } },
		{ id: 4, name: names[3], context: { kind: "since", position: 0 } },
	]);
	const many = Array.from({ length: 17 }, (_, i) => `vmsweep:since:${i}`);
	const tooMany = parseReplies(
		converse(join(FIXED, structured, set("web01", ...many)), [], new Handshake([everything])).bytes,
	);
	assert.deepEqual(tooMany.at(-1)?.type, optionReply.ERR_TOO_BIG);
	assert.deepEqual(contextsAfter(set("web01", ...names), go), ["base:allocation"], "only what the export offers");
});

test("LIST_META_CONTEXT names what can be selected, by namespace or in full", () => {
	const list = (...queries: readonly string[]): string[] => {
		const input = join(FIXED, structured, send(option.LIST_META_CONTEXT, metaQuery("web01", ...queries)));
		const replies = parseReplies(converse(input, [], new Handshake([everything])).bytes).slice(1);
		assert.equal(replies.at(-1)?.type, optionReply.ACK);
		return replies.slice(0, -1).map(({ data }) => {
			assert.equal(viewOf(data).getUint32(0), 0);
			return new TextDecoder().decode(data.subarray(4));
		});
	};
	assert.deepEqual(list(), ["base:allocation", "vmsweep:liveness", "vmsweep:since:"]);
	assert.deepEqual(list("vmsweep:"), ["vmsweep:liveness", "vmsweep:since:"]);
	assert.deepEqual(list("vmsweep:since:77", "base:"), ["vmsweep:since:77", "base:allocation"]);
	assert.deepEqual(list("vmsweep:since:", "vmsweep:no", "vm", ":"), ["vmsweep:since:"]);
});

const extended = send(option.EXTENDED_HEADERS);

test("extended headers take precedence over structured replies, and their flag needs a context", () => {
	const flagsAfter = (...inputs: readonly Uint8Array[]): number => {
		const replies = parseReplies(converse(join(FIXED, ...inputs, go)).bytes);
		const exported = replies.find(({ option: of, type }) => of === option.GO && type === optionReply.INFO);
		return InfoExport.read.transmissionFlags(viewOf(exported!.data), 0);
	};
	const { BLOCK_STATUS_PAYLOAD, SEND_DF } = transmissionFlag;
	assert.equal(transmission(join(FIXED, extended, go)).headers, "extended");
	assert.equal(transmission(join(FIXED, structured, extended, go)).headers, "extended");
	assert.deepEqual(replyTypes(join(FIXED, extended, structured)), [optionReply.ACK, optionReply.ERR_EXT_HEADER_REQD]);
	assert.deepEqual(replyTypes(join(FIXED, send(option.EXTENDED_HEADERS, text("x")))), [optionReply.ERR_INVALID]);
	for (const again of [extended, structured]) {
		assert.deepEqual(replyTypes(join(FIXED, again, again)), [optionReply.ACK, optionReply.ERR_INVALID]);
		const { headers } = transmission(join(FIXED, again, again, go));
		assert.equal(headers, again === extended ? "extended" : "structured");
	}
	assert.equal(flagsAfter(extended) & (BLOCK_STATUS_PAYLOAD | SEND_DF), SEND_DF);
	assert.equal(flagsAfter(extended, set("web01", "base:allocation")) & BLOCK_STATUS_PAYLOAD, BLOCK_STATUS_PAYLOAD);
	assert.equal(flagsAfter(extended, set("archiv-ä", "base:allocation")) & BLOCK_STATUS_PAYLOAD, 0);
	assert.equal(flagsAfter(structured, set("web01", "base:allocation")) & BLOCK_STATUS_PAYLOAD, 0);
	assert.match(abortion(join(FIXED, extended, send(option.EXPORT_NAME, text("web01")))), /EXPORT_NAME/);
});

test("an export that takes nobody now is listed and refused", () => {
	const full = (): Handshake => new Handshake([{ ...web, refusal: "it has 2 clients already" }]);
	const [info_, infoEnd, refused] = parseReplies(
		converse(join(FIXED, send(option.INFO, exportQuery("web01")), go), [], full()).bytes,
	);
	assert.deepEqual(
		[info_?.type, infoEnd?.type, refused?.type],
		[optionReply.INFO, optionReply.ACK, optionReply.ERR_POLICY],
	);
	assert.equal(new TextDecoder().decode(refused?.data), "it has 2 clients already");
	assert.equal(converse(join(FIXED, send(option.EXPORT_NAME, text("web01"))), [], full()).outcome?.kind, "aborted");
});

// ---- TLS ----

const starttls = send(option.STARTTLS);
const withTls = (policy: TlsPolicy, input: Uint8Array): { types: number[]; outcome: HandshakeOutcome | undefined } => {
	const { bytes, outcome } = converse(input, [], new Handshake(exports, policy));
	return { types: parseReplies(bytes).map(({ type }) => type), outcome };
};

test("required TLS: nothing is done before it", () => {
	const { ERR_TLS_REQD, ACK } = optionReply;
	const early = [send(option.LIST), structured, extended, set("web01"), go, send(99), send(99, new Uint8Array(70_000))];
	for (const each of early) assert.deepEqual(withTls("required", join(FIXED, each)).types, [ERR_TLS_REQD]);
	assert.deepEqual(withTls("required", join(FIXED, starttls)), { types: [ACK], outcome: { kind: "tls" } });
	assert.deepEqual(withTls("required", join(FIXED, send(option.ABORT))).types, [ACK]);
	assert.equal(withTls("required", join(FIXED, send(option.EXPORT_NAME, text("web01")))).outcome?.kind, "aborted");
	assert.equal(withTls("required", u32(0)).outcome?.kind, "aborted", "a client that can't be told");
});

test("optional TLS: with and without it; clients of the old kind can't start it", () => {
	assert.equal(withTls("optional", join(FIXED, go)).outcome?.kind, "transmission");
	assert.equal(withTls("optional", join(FIXED, structured, starttls)).outcome?.kind, "tls");
	assert.deepEqual(withTls("optional", join(u32(0), starttls)).types, [optionReply.ERR_INVALID]);
});

test("what was said before TLS is forgotten inside it, and it starts once", () => {
	const handshake = new Handshake([everything], "optional");
	converse(join(FIXED, extended, set("web01", "base:allocation"), starttls), [], handshake);
	handshake.continueInTls();
	const { bytes, outcome } = converse(join(starttls, go), [], handshake);
	assert.equal(parseReplies(bytes)[0]?.type, optionReply.ERR_INVALID);
	assert.equal(outcome?.kind, "transmission");
	assert.deepEqual([outcome.headers, outcome.metaContexts], ["simple", []]);
});

test("bytes that follow STARTTLS unencrypted end the connection, whatever they are", () => {
	for (const policy of ["optional", "required"] as const) {
		const { types, outcome } = withTls(policy, join(FIXED, starttls, go));
		assert.deepEqual([types, outcome?.kind], [[], "aborted"]);
	}
});

// ---- Properties ----

const anyName = fc.constantFrom("web01", "archiv-ä", "", "nope", "x".repeat(300));
const anyOption = fc.oneof(
	fc
		.tuple(fc.constantFrom(option.INFO, option.GO), anyName, fc.array(fc.nat(5), { maxLength: 4 }))
		.map(([type, name, wanted]) => send(type, exportQuery(name, ...wanted))),
	fc
		.tuple(
			fc.constantFrom(option.LIST_META_CONTEXT, option.SET_META_CONTEXT),
			anyName,
			fc.array(fc.constantFrom("base:", "base:allocation", "qemu:x", ""), { maxLength: 3 }),
		)
		.map(([type, name, queries]) => send(type, metaQuery(name, ...queries))),
	fc.constantFrom(
		structured,
		send(option.EXTENDED_HEADERS),
		send(option.LIST),
		send(option.STARTTLS),
		send(option.ABORT),
		send(42, text("data")),
	),
	fc.constant(send(42, new Uint8Array(OPTION_BYTES_MAX + 7))),
	fc.uint8Array({ maxLength: 40 }).chain((data) => fc.nat(12).map((type) => send(type, data))),
);

test("any cut of the byte stream gives the same answers and the same outcome", () => {
	const conversation = fc.tuple(fc.constantFrom(FIXED, FIXED_NO_ZEROES), fc.array(anyOption, { maxLength: 6 }));
	fc.assert(
		fc.property(conversation, fc.array(fc.nat(400), { maxLength: 12 }), ([flags, options], cuts) => {
			const input = join(flags, ...options, go, text("requests"));
			assert.deepEqual(converse(input, cuts), converse(input));
		}),
	);
	const input = join(FIXED, structured, set("web01", "base:allocation"), go, text("requests"));
	const everywhere = Array.from(input.keys());
	assert.deepEqual(converse(input, everywhere), converse(input));
});

test("no bytes crash the handshake, and its answers stay well formed", () => {
	const conversation = fc.tuple(
		fc.array(anyOption, { maxLength: 4 }),
		fc.uint8Array({ maxLength: 64 }),
		fc.nat(300),
		fc.nat(255),
	);
	fc.assert(
		fc.property(conversation, ([options, noise, at, value]) => {
			const input = join(FIXED, ...options, noise);
			if (at < input.length) input[at] = value;
			const { bytes, outcome } = converse(input);
			if (outcome?.kind !== "transmission") parseReplies(bytes);
		}),
		{ numRuns: 2000 },
	);
});
