// Metadata contexts: what block status can tell about an export, by the names under which clients select it.
//
//   base:allocation          data, or a hole that reads as zeros                     (the protocol's own)
//   vmsweep:liveness         live, proven unused by the guest map, or unknown
//   vmsweep:since:POSITION   changed since a log position, or surely not
//
// `vmsweep:` asks for all names of this namespace; a position is for the client to fill in, so what is listed for it is
// the name's beginning. Queries of other namespaces are ignored, as the document wants ("Metadata querying").

import { BASE_ALLOCATION } from "./protocol.ts";

export const LIVENESS = "vmsweep:liveness";
export const SINCE = "vmsweep:since:";

/** Flags of `vmsweep:liveness`. */
export const liveness = {
	/** The guest's file system uses it. */
	LIVE: 0,
	/** Proven unused: nobody needs its content. */
	DEAD: 1,
	/** Nothing is proven: treat it as live. */
	UNKNOWN: 2,
} as const;

/** Flags of `vmsweep:since:POSITION`. */
export const since = {
	UNCHANGED: 0,
	/** Written since, or that can't be ruled out. */
	CHANGED: 1,
} as const;

/** What a context tells. */
export type ContextKind =
	| { readonly kind: "allocation" | "liveness" }
	| { readonly kind: "since" /** A log position. */; readonly position: number };

/** Contexts that one client may select: bounds the work of a block status request. */
export const CONTEXTS_MAX = 16;

/** The context that a name stands for; undefined for names that are none. */
export function contextOf(name: string): ContextKind | undefined {
	if (name === BASE_ALLOCATION) return { kind: "allocation" };
	if (name === LIVENESS) return { kind: "liveness" };
	if (!name.startsWith(SINCE)) return undefined;
	const digits = name.slice(SINCE.length);
	const position = Number(digits);
	return /^\d{1,16}$/.test(digits) && Number.isSafeInteger(position) ? { kind: "since", position } : undefined;
}

/** The names that an export lists for the queries of NBD_OPT_LIST_META_CONTEXT; without queries all of them. */
export function listContexts(queries: readonly string[], offered: readonly ContextKind["kind"][]): string[] {
	const all = offered.map((kind) => ({ allocation: BASE_ALLOCATION, liveness: LIVENESS, since: SINCE })[kind]);
	if (queries.length === 0) return all;
	const names = new Set<string>();
	for (const query of queries) {
		for (const name of all) if (query === name || query === namespaceOf(name)) names.add(name);
		const context = contextOf(query);
		if (context !== undefined && offered.includes(context.kind)) names.add(query);
	}
	return [...names];
}

/** The contexts that queries of NBD_OPT_SET_META_CONTEXT select, each once, in the order of the queries. */
export function selectContexts(queries: readonly string[], offered: readonly ContextKind["kind"][]): string[] {
	const names = queries.filter((query) => {
		const context = contextOf(query);
		return context !== undefined && offered.includes(context.kind);
	});
	return [...new Set(names)];
}

/** With its colon. */
const namespaceOf = (name: string): string => name.slice(0, name.indexOf(":") + 1);
