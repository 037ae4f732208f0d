// Output: what commands print to standard output, and how tables look.

/** Writes to standard output; resolves when it is on its way, so that a slow reader is waited for. */
export async function print(text: string): Promise<void> {
	if (process.stdout.destroyed) return;
	await new Promise<void>((resolve) => process.stdout.write(text, () => resolve()));
}

/** Writes pieces as they are made; stops where the reader has gone (`vmsweep map … | head`). */
export async function printAll(pieces: Iterable<string>): Promise<void> {
	for (const piece of pieces) {
		if (process.stdout.destroyed) return;
		await print(piece);
	}
}

export const printJson = (value: unknown): Promise<void> => print(`${JSON.stringify(value, undefined, "\t")}\n`);

/** A reader that goes away early is no error. Without a listener it would end the process, a server included. */
export function ignoreClosedOutput(): void {
	process.stdout.on("error", (error: NodeJS.ErrnoException) => {
		if (error.code !== "EPIPE") process.stderr.write(`vmsweep: standard output: ${error.message}\n`);
		process.stdout.destroy();
	});
	process.stderr.on("error", () => {});
}

/** A warning, one line on standard error. */
export function warn(text: string): void {
	process.stderr.write(`vmsweep: ${printable(text)}\n`);
}

/** Text from a guest or a file system, without characters that a terminal would obey. */
export const printable = (text: string): string => text.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, "\u{fffd}");

/** Columns as wide as their widest cell, two spaces apart. Columns in `right` are aligned right. */
export function formatTable(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
	const cleaned = rows.map((row) => row.map(printable));
	const widths: number[] = [];
	for (const row of cleaned)
		for (const [column, cell] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, cell.length);
	const line = (row: readonly string[]): string =>
		row
			.map((cell, column) => (right.includes(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)))
			.join("  ")
			.trimEnd();
	return cleaned.map((row) => `${line(row)}\n`).join("");
}
