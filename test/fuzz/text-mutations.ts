// Mutations of the texts that some formats have for metadata: descriptors of VMDK, volume groups of LVM.

import type { Random } from "../support/randomness.ts";

/** One random change of a text. Returns the new text and what was done. */
export function mutateText(text: string, random: Random): { readonly text: string; readonly step: string } {
	const at = random.below(text.length + 1);
	const before = text.slice(0, at);
	const after = text.slice(at);
	const character = random.pick(' \t\n"#[]{}=,.+-\\/:aZ09\0\x80'.split(""));
	switch (random.below(8)) {
		case 0:
			return { text: before + character + after.slice(1), step: `character ${at} is ${JSON.stringify(character)}` };
		case 1: {
			const count = random.pick([1, 2, 100, 5000, 100_000]);
			const inserted = character.repeat(count);
			return { text: before + inserted + after, step: `${count} times ${JSON.stringify(character)} at ${at}` };
		}
		case 2: {
			const length = random.pick([1, 2, 10, 100]);
			return { text: before + after.slice(length), step: `${length} characters less at ${at}` };
		}
		case 3:
		case 4:
			return withOtherNumber(text, random);
		default:
			return withOtherLines(text, random);
	}
}

function withOtherNumber(text: string, random: Random): { text: string; step: string } {
	const numbers = [...text.matchAll(/\d+/g)];
	if (numbers.length === 0) return { text, step: "nothing" };
	const { 0: old, index } = random.pick(numbers);
	const value = Number(old);
	const edges = [0, 1, 2 ** 31, 2 ** 32, 2 ** 43, 2 ** 53, 2 ** 64, 1e30];
	const number = random.pick([value + 1, Math.abs(value - 1), value * 2, ...edges, Number(random.pick(numbers)[0])]);
	const written = random.chance(0.05) ? "9".repeat(400) : BigInt(Math.min(number, 1e300)).toString();
	return {
		text: text.slice(0, index) + written + text.slice(index + old.length),
		step: `${old} at ${index} is ${written}`,
	};
}

function withOtherLines(text: string, random: Random): { text: string; step: string } {
	const lines = text.split("\n");
	const [from, to] = [random.below(lines.length), random.below(lines.length)];
	const count = random.pick([1, 1, 2, 5]);
	const some = lines.slice(from, from + count);
	switch (random.below(3)) {
		case 0:
			lines.splice(from, count);
			return { text: lines.join("\n"), step: `${count} lines less at ${from}` };
		case 1: {
			const times = random.pick([1, 1, 2, 500]);
			lines.splice(to, 0, ...Array.from({ length: times }, () => some).flat());
			return { text: lines.join("\n"), step: `${count} lines of ${from} ${times} times at ${to}` };
		}
		default:
			[lines[from], lines[to]] = [lines[to]!, lines[from]!];
			return { text: lines.join("\n"), step: `lines ${from} and ${to} swapped` };
	}
}
