// Breadth: `make test` runs a part of the long tables of variants, `make soak` (VMSWEEP_THOROUGH=1) all of them.

export const isThorough: boolean = process.env.VMSWEEP_THOROUGH === "1";

/** All variants in a soak; otherwise every `step`-th, from the first on. */
export const someOf = <T>(variants: readonly T[], step: number): readonly T[] =>
	isThorough ? variants : variants.filter((_, index) => index % step === 0);
