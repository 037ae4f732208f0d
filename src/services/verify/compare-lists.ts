// Compares two lists of files (list-files-worker.ts) line by line: both are in the order of the same walk.

/** An entry of a list: its path, and what it is. */
export interface Listed {
	readonly path: string;
	readonly what: string;
}

/** What two lists differ in. */
export interface ListDifference {
	readonly path: string;
	/** `missing`: only in the first list. `new`: only in the second. */
	readonly kind: "missing" | "new" | "different";
}

export interface Comparison {
	/** Files that both have, and the bytes in them. */
	readonly files: number;
	readonly bytes: number;
	/** Entries that could be read in neither. */
	readonly unreadable: number;
	/** The first of them; `count` has all. */
	readonly differences: readonly ListDifference[];
	readonly count: number;
}

/** Compares sorted lists; remembers at most `max` differences. */
export async function compareLists(
	real: AsyncIterable<string>,
	other: AsyncIterable<string>,
	max: number,
): Promise<Comparison> {
	const [left, right] = [real[Symbol.asyncIterator](), other[Symbol.asyncIterator]()];
	const differences: ListDifference[] = [];
	let [files, bytes, unreadable, count] = [0, 0, 0, 0];
	const note = (path: string, kind: ListDifference["kind"]): void => {
		count++;
		if (differences.length < max) differences.push({ path, kind });
	};
	let [a, b] = [await next(left), await next(right)];
	while (a !== undefined || b !== undefined) {
		const order = a === undefined ? 1 : b === undefined ? -1 : inOrderOfWalk(a.path, b.path);
		if (order === 0) {
			if (a!.what !== b!.what) note(a!.path, "different");
			else if (a!.what.startsWith("error ")) unreadable++;
			const size = /^file (\d+) /.exec(a!.what)?.[1];
			if (size !== undefined) {
				files++;
				bytes += Number(size);
			}
		} else note(order < 0 ? a!.path : b!.path, order < 0 ? "missing" : "new");
		if (order <= 0) a = await next(left);
		if (order >= 0) b = await next(right);
	}
	return { files, bytes, unreadable, differences, count };
}

async function next(lines: AsyncIterator<string>): Promise<Listed | undefined> {
	const { done, value } = await lines.next();
	if (done === true) return undefined;
	const [path, what] = JSON.parse(value) as [string, string];
	return { path, what };
}

/** A folder comes before what is in it, and names are compared byte by byte. */
function inOrderOfWalk(a: string, b: string): number {
	const [left, right] = [a.split("/"), b.split("/")];
	for (let i = 0; i < left.length && i < right.length; i++) {
		if (left[i]! < right[i]!) return -1;
		if (left[i]! > right[i]!) return 1;
	}
	return left.length - right.length;
}
