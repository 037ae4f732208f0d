// The web globals that pure code (src/core, src/foundations) may use: everything else that is not in the
// language itself, such as node:fs, setTimeout or Buffer, does not compile there (tsconfig.core.json).

/** Bytes to text. */
declare class TextDecoder {
	constructor(label?: string, options?: { readonly fatal?: boolean; readonly ignoreBOM?: boolean });
	decode(input?: ArrayBufferView | ArrayBuffer): string;
}

/** Text to UTF-8 bytes. */
declare class TextEncoder {
	encode(input?: string): Uint8Array<ArrayBuffer>;
	encodeInto(source: string, destination: Uint8Array): { readonly read: number; readonly written: number };
}
