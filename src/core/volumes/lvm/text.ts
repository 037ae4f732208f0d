// The text in which LVM2 keeps a volume group (lvm2 source tree: libdm/libdm-config.c), parsed into sections.
//
//   name { key = value  key = [ value, value ]  section { … } }     # comment
//
// The text comes from the guest: it is parsed in one pass, to a limited depth, into maps (a key can't be a property
// of something else). Anything outside this grammar, and a key that comes twice, is damage.

import { VmsweepError } from "../../../foundations/errors.ts";

export type Value = string | number | readonly (string | number)[];
/** A section's keys and sections, in the text's order. */
export type Section = ReadonlyMap<string, Value | Section>;

/** Sections inside sections; LVM's own deepest is four. */
const MAX_DEPTH = 8;

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `its LVM metadata ${what}`);

/** Parses a whole text. Throws VOLUME_DAMAGED. */
export function parseText(text: string): Section {
	return new Parser(text).section(0);
}

export const isSection = (value: Value | Section | undefined): value is Section => value instanceof Map;

/** The section `key`, or an empty one where there is none. Throws VOLUME_DAMAGED where it is something else. */
export function sectionAt(section: Section, key: string): Section {
	const value = section.get(key) ?? new Map();
	if (!isSection(value)) throw damaged(`has no section ${key}`);
	return value;
}

/** A whole number of at least 0. Throws VOLUME_DAMAGED. */
export function numberAt(section: Section, key: string): number {
	const value = section.get(key);
	if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) throw damaged(`has no number ${key}`);
	return value;
}

/** A string. Throws VOLUME_DAMAGED. */
export function stringAt(section: Section, key: string): string {
	const value = section.get(key);
	if (typeof value !== "string") throw damaged(`has no text ${key}`);
	return value;
}

/** A list; a single value is a list of one, and a missing key an empty one. Throws VOLUME_DAMAGED. */
export function listAt(section: Section, key: string): readonly (string | number)[] {
	const value = section.get(key) ?? [];
	if (isSection(value)) throw damaged(`has a section ${key} where a list should be`);
	return typeof value === "object" ? value : [value];
}

const NAME = /[A-Za-z0-9_.+/-]+/y;
const NUMBER = /[+-]?\d+(?:\.\d*)?/y;

class Parser {
	readonly #text: string;
	#at = 0;

	constructor(text: string) {
		this.#text = text;
	}

	/** Everything up to the brace that ends the section, or for depth 0 to the end of the text. */
	section(depth: number): Section {
		const entries = new Map<string, Value | Section>();
		for (;;) {
			this.#skipSpace();
			if (depth === 0 && this.#at >= this.#text.length) return entries;
			if (depth > 0 && this.#takes("}")) return entries;
			const key = this.#match(NAME) ?? this.#string();
			if (key === null || entries.has(key)) throw this.#wrong();
			this.#skipSpace();
			if (this.#takes("=")) entries.set(key, this.#value());
			else if (depth < MAX_DEPTH && this.#takes("{")) entries.set(key, this.section(depth + 1));
			else throw this.#wrong();
		}
	}

	#value(): Value {
		this.#skipSpace();
		if (!this.#takes("[")) return this.#single();
		const list: (string | number)[] = [];
		for (;;) {
			this.#skipSpace();
			if (this.#takes("]")) return list;
			if (list.length > 0 && !this.#takes(",")) throw this.#wrong();
			this.#skipSpace();
			list.push(this.#single());
		}
	}

	#single(): string | number {
		const string = this.#string();
		if (string !== null) return string;
		const number = this.#match(NUMBER);
		if (number === null) throw this.#wrong();
		return Number(number);
	}

	#string(): string | null {
		if (!this.#takes('"')) return null;
		let string = "";
		for (let from = this.#at; this.#at < this.#text.length; this.#at++) {
			const character = this.#text[this.#at];
			if (character !== '"' && character !== "\\") continue;
			string += this.#text.slice(from, this.#at);
			if (character === '"') {
				this.#at++;
				return string;
			}
			from = ++this.#at; // the character behind the backslash stands for itself
		}
		throw this.#wrong();
	}

	#match(pattern: RegExp): string | null {
		pattern.lastIndex = this.#at;
		const match = pattern.exec(this.#text);
		if (match === null) return null;
		this.#at = pattern.lastIndex;
		return match[0];
	}

	#skipSpace(): void {
		for (; this.#at < this.#text.length; this.#at++) {
			const character = this.#text[this.#at]!;
			if (character === "#") {
				const end = this.#text.indexOf("\n", this.#at);
				this.#at = end < 0 ? this.#text.length - 1 : end;
			} else if (!" \t\r\n".includes(character)) return;
		}
	}

	#takes(character: string): boolean {
		if (this.#text[this.#at] !== character) return false;
		this.#at++;
		return true;
	}

	#wrong(): VmsweepError {
		return damaged(`makes no sense at character ${this.#at}`);
	}
}
