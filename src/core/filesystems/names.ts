// Names as file systems store them, as text for people.

/** A UUID in the order of its bytes, with the usual dashes. */
export function uuidText(raw: Uint8Array): string {
	const hex = [...raw].map((byte) => byte.toString(16).padStart(2, "0")).join("");
	return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

/** UTF-8 up to the first zero byte, or to the end; null where that is nothing. */
export function cString(raw: Uint8Array): string | null {
	const end = raw.indexOf(0);
	const text = new TextDecoder().decode(end < 0 ? raw : raw.subarray(0, end));
	return text === "" ? null : text;
}
