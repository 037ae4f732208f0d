// Units: branded numbers, so that bytes, disk blocks, file-system blocks and log positions can't be
// swapped by mistake. Brands exist only for the compiler; at run time they are plain numbers.
//
// Conversions live here and nowhere else. Arithmetic falls back to a bare `number` on purpose:
// passing the result on needs a named conversion, which is where a reader sees the unit change.

declare const unit: unique symbol;
type Unit<U extends string> = number & { readonly [unit]: U };

/** A byte position, counted from the start of a disk, volume or file (the parameter's name says which). */
export type ByteOffset = Unit<"ByteOffset">;
/** A length in bytes. */
export type ByteCount = Unit<"ByteCount">;
/** A number of 4 KiB disk blocks. */
export type BlockCount = Unit<"BlockCount">;
/**
 * A point in the order of all guest writes, counted in data slots appended to the first image since
 * the disk was created. It only grows, survives restarts, and is the product's clock.
 */
export type LogPosition = Unit<"LogPosition">;

/** Size of a disk block, the unit of the index and of moving and dropping. */
export const BLOCK_SIZE = 4096;

export const byteOffset = (n: number): ByteOffset => n as ByteOffset;
export const byteCount = (n: number): ByteCount => n as ByteCount;
export const blockCount = (n: number): BlockCount => n as BlockCount;
export const logPosition = (n: number): LogPosition => n as LogPosition;

export const divFloor = (n: number, by: number): number => Math.floor(n / by);
export const divCeil = (n: number, by: number): number => Math.ceil(n / by);
export const roundDown = (n: number, to: number): number => divFloor(n, to) * to;
export const roundUp = (n: number, to: number): number => divCeil(n, to) * to;
export const isPowerOfTwo = (n: number): boolean => Number.isInteger(n) && n > 0 && (n & (n - 1)) === 0;
/** True where a byte position or length lies on a disk-block boundary. */
export const isBlockAligned = (n: number): boolean => n % BLOCK_SIZE === 0;

/** "1.5 GiB": a size for people, in binary units, three significant digits. */
export function formatBytes(bytes: number): string {
	const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
	let value = bytes;
	let unitIndex = 0;
	while (Math.abs(value) >= 1024 && unitIndex < units.length - 1) {
		value /= 1024;
		unitIndex++;
	}
	const digits = unitIndex === 0 || Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
	return `${value.toFixed(digits)} ${units[unitIndex]}`;
}
