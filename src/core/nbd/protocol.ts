// The NBD protocol's constants and records: the words that both phases, handshake and transmission, are made of.
//
//   connection = handshake (greeting, client flags, options and their replies), then transmission:
//
//     client  | request 28 bytes | payload of a write |
//     server  | simple reply 16 bytes | data |   or   | structured reply chunk 20 bytes | chunk payload |
//
//   with extended headers both sides' are 32 bytes, and lengths have 64 bits:
//
//     client  | extended request 32 bytes | payload, where the request says so |
//     server  | extended reply chunk 32 bytes | chunk payload |
//
// Source: "The NBD protocol" (doc/proto.md of the NetworkBlockDevice project; extended headers: its branch
// extension-ext-header, which QEMU and libnbd implement); each table names its section.
// Everything on the wire is big-endian. Nothing here has behaviour: `handshake.ts` and the data plane do.

import { bits64be, struct, u16be, u32be, u64be } from "../../foundations/struct.ts";

// ---- Handshake phase ("Newstyle negotiation", "Fixed newstyle negotiation") --------------------------------------

/** ASCII `NBDMAGIC`, the first eight bytes that a server sends. */
export const NBD_MAGIC = 0x4e42_444d_4147_4943n;
/** ASCII `IHAVEOPT`: ends the greeting's magic, and starts every option. */
export const OPTION_MAGIC = 0x4948_4156_454f_5054n;
/** Starts every reply to an option. */
export const OPTION_REPLY_MAGIC = 0x0003_e889_0455_65a9n;

/** What a server sends first. */
export const Greeting = struct("NBD greeting", 18, {
	magic: bits64be(0),
	optionMagic: bits64be(8),
	flags: u16be(16),
});

/** Header of an option that a client sends; `length` bytes of data follow. */
export const OptionHeader = struct("NBD option", 16, { magic: bits64be(0), option: u32be(8), length: u32be(12) });

/** Header of a reply to an option; `length` bytes of data follow. */
export const OptionReplyHeader = struct("NBD option reply", 20, {
	magic: bits64be(0),
	option: u32be(8),
	type: u32be(12),
	length: u32be(16),
});

/** What ends the handshake after `NBD_OPT_EXPORT_NAME`; 124 zero bytes follow unless NO_ZEROES was negotiated. */
export const ExportNameReply = struct("NBD export name reply", 10, { size: u64be(0), transmissionFlags: u16be(8) });
/** Zero bytes after {@link ExportNameReply}. */
export const EXPORT_NAME_PADDING_BYTES = 124;

/** `NBD_INFO_EXPORT` payload of an info reply. */
export const InfoExport = struct("NBD_INFO_EXPORT", 12, {
	type: u16be(0),
	size: u64be(2),
	transmissionFlags: u16be(10),
});
/** `NBD_INFO_BLOCK_SIZE` payload of an info reply. All sizes in bytes. */
export const InfoBlockSize = struct("NBD_INFO_BLOCK_SIZE", 14, {
	type: u16be(0),
	minimum: u32be(2),
	preferred: u32be(6),
	maximumPayload: u32be(10),
});

/** "Handshake flags": what the server offers in its greeting. */
export const handshakeFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;
/** "Client flags": the client's answer to the greeting, 32 bits. */
export const clientFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;

/** "Transmission flags": what an export can do. */
export const transmissionFlag = {
	HAS_FLAGS: 1 << 0,
	READ_ONLY: 1 << 1,
	SEND_FLUSH: 1 << 2,
	SEND_FUA: 1 << 3,
	ROTATIONAL: 1 << 4,
	SEND_TRIM: 1 << 5,
	SEND_WRITE_ZEROES: 1 << 6,
	/** Only valid once structured replies are negotiated; the handshake clears it otherwise. */
	SEND_DF: 1 << 7,
	CAN_MULTI_CONN: 1 << 8,
	SEND_CACHE: 1 << 10,
	SEND_FAST_ZERO: 1 << 11,
	/** Only valid with extended headers and a metadata context; the handshake clears it otherwise. */
	BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

/** "Option types". */
export const option = {
	EXPORT_NAME: 1,
	ABORT: 2,
	LIST: 3,
	STARTTLS: 5,
	INFO: 6,
	GO: 7,
	STRUCTURED_REPLY: 8,
	LIST_META_CONTEXT: 9,
	SET_META_CONTEXT: 10,
	EXTENDED_HEADERS: 11,
} as const;

const REPLY_ERROR = 0x8000_0000;

/** "Option reply types". Errors have bit 31 set and may carry a message for people as their data. */
export const optionReply = {
	ACK: 1,
	SERVER: 2,
	INFO: 3,
	META_CONTEXT: 4,
	ERR_UNSUP: REPLY_ERROR + 1,
	ERR_POLICY: REPLY_ERROR + 2,
	ERR_INVALID: REPLY_ERROR + 3,
	ERR_PLATFORM: REPLY_ERROR + 4,
	ERR_TLS_REQD: REPLY_ERROR + 5,
	ERR_UNKNOWN: REPLY_ERROR + 6,
	ERR_SHUTDOWN: REPLY_ERROR + 7,
	ERR_BLOCK_SIZE_REQD: REPLY_ERROR + 8,
	ERR_TOO_BIG: REPLY_ERROR + 9,
	ERR_EXT_HEADER_REQD: REPLY_ERROR + 10,
} as const;

/** Information types of `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_REP_INFO`. */
export const info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

/** Longest string that may be sent or must be accepted ("String limits"). */
export const STRING_BYTES_MAX = 4096;

/** The one metadata context that the protocol document itself defines. */
export const BASE_ALLOCATION = "base:allocation";

/** Which headers a connection uses after its handshake: requests of 28 bytes for the first two, of 32 for the last. */
export type HeaderForm = "simple" | "structured" | "extended";

// ---- Transmission phase ("Transmission", "Values: Transmission phase") -------------------------------------------

export const REQUEST_MAGIC = 0x2560_9513;
export const SIMPLE_REPLY_MAGIC = 0x6744_6698;
export const STRUCTURED_REPLY_MAGIC = 0x668e_33ef;

/** "Request message". `cookie` is opaque: it comes back in the reply. A write's `length` payload bytes follow. */
export const Request = struct("NBD request", 28, {
	magic: u32be(0),
	flags: u16be(4),
	type: u16be(6),
	cookie: bits64be(8),
	offset: u64be(16),
	length: u32be(24),
});

export const EXTENDED_REQUEST_MAGIC = 0x21e4_1c71;
export const EXTENDED_REPLY_MAGIC = 0x6e8a_278c;

/**
 * "Request message", extended form. With the flag PAYLOAD_LEN `length` bytes of payload follow; without it nothing
 * does, and `length` is how much of the export the request is about.
 */
export const ExtendedRequest = struct("NBD extended request", 32, {
	magic: u32be(0),
	flags: u16be(4),
	type: u16be(6),
	cookie: bits64be(8),
	offset: u64be(16),
	length: u64be(24),
});

/** "Extended reply chunk message". `offset` is the request's own; `length` payload bytes follow. */
export const ExtendedReply = struct("NBD extended reply chunk", 32, {
	magic: u32be(0),
	flags: u16be(4),
	type: u16be(6),
	cookie: bits64be(8),
	offset: bits64be(16),
	length: u64be(24),
});

/** "Simple reply message". The data of a successful read follows. */
export const SimpleReply = struct("NBD simple reply", 16, { magic: u32be(0), error: u32be(4), cookie: bits64be(8) });

/** "Structured reply chunk message". `length` payload bytes follow. */
export const StructuredReply = struct("NBD structured reply chunk", 20, {
	magic: u32be(0),
	flags: u16be(4),
	type: u16be(6),
	cookie: bits64be(8),
	length: u32be(16),
});

/** Start of an OFFSET_DATA payload; the data follows. */
export const OffsetData = struct("NBD_REPLY_TYPE_OFFSET_DATA", 8, { offset: u64be(0) });
/** An OFFSET_HOLE payload: `length` bytes at `offset` of the export read as zeros. */
export const OffsetHole = struct("NBD_REPLY_TYPE_OFFSET_HOLE", 12, { offset: u64be(0), length: u32be(8) });
/**
 * Start of an ERROR payload; a message of `messageLength` bytes may follow. An ERROR_OFFSET payload ends in 8 bytes
 * more: the offset in the export.
 */
export const ErrorChunk = struct("NBD_REPLY_TYPE_ERROR", 6, { error: u32be(0), messageLength: u16be(4) });
/** Start of a BLOCK_STATUS payload; descriptors follow. */
export const BlockStatusHeader = struct("NBD_REPLY_TYPE_BLOCK_STATUS", 4, { contextId: u32be(0) });
/** One extent of a BLOCK_STATUS payload. */
export const BlockStatusDescriptor = struct("NBD block descriptor", 8, { length: u32be(0), status: u32be(4) });

/** Start of a BLOCK_STATUS_EXT payload; `count` descriptors follow. */
export const BlockStatusHeaderExt = struct("NBD_REPLY_TYPE_BLOCK_STATUS_EXT", 8, {
	contextId: u32be(0),
	count: u32be(4),
});
/** One extent of a BLOCK_STATUS_EXT payload. */
export const BlockStatusDescriptorExt = struct("NBD extended block descriptor", 16, {
	length: u64be(0),
	status: u64be(8),
});

/** "Request types". */
export const command = {
	READ: 0,
	WRITE: 1,
	DISC: 2,
	FLUSH: 3,
	TRIM: 4,
	CACHE: 5,
	WRITE_ZEROES: 6,
	BLOCK_STATUS: 7,
} as const;

/** "Command flags". */
export const commandFlag = {
	FUA: 1 << 0,
	NO_HOLE: 1 << 1,
	DF: 1 << 2,
	REQ_ONE: 1 << 3,
	FAST_ZERO: 1 << 4,
	/** Extended headers only: `length` is that of a payload. */
	PAYLOAD_LEN: 1 << 5,
} as const;

/** "Structured reply flags". */
export const replyFlag = { DONE: 1 << 0 } as const;

/** "Structured reply types". Error chunks have bit 15 set. */
export const chunk = {
	NONE: 0,
	OFFSET_DATA: 1,
	OFFSET_HOLE: 2,
	BLOCK_STATUS: 5,
	BLOCK_STATUS_EXT: 6,
	ERROR: 0x8001,
	ERROR_OFFSET: 0x8002,
} as const;

/** Flags of the `base:allocation` context. */
export const allocation = {
	/** Nothing is stored for the extent; writing it may end with ENOSPC. */
	HOLE: 1 << 0,
	/** The extent reads as zeros. */
	ZERO: 1 << 1,
} as const;

/** "Error values": the only numbers that may stand in a reply's error field. */
export const errno = {
	EPERM: 1,
	EIO: 5,
	ENOMEM: 12,
	EINVAL: 22,
	ENOSPC: 28,
	EOVERFLOW: 75,
	ENOTSUP: 95,
	ESHUTDOWN: 108,
} as const;

/**
 * Largest payload of one request, in bytes: the protocol's own default ("Size constraints": 2^25), which every client
 * may use unasked.
 */
export const PAYLOAD_BYTES_MAX = 32 * 1024 * 1024;
/** Most descriptors that a server should send in one BLOCK_STATUS chunk. */
export const BLOCK_DESCRIPTORS_MAX = 1 << 20;
