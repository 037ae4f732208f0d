// Interruption: Ctrl-C and SIGTERM. The first asks for an orderly end, the second ends the process at once, which is
// safe as well: whatever vmsweep does survives a crash at any point.

const signals = ["SIGINT", "SIGTERM"] as const;

/**
 * Runs `work` with a signal that aborts at the first SIGINT or SIGTERM. `onMore` is done at each further one: by default the
 * process ends.
 */
export async function interruptible<T>(
	work: (signal: AbortSignal) => Promise<T>,
	onMore: () => void = () => process.exit(1),
): Promise<T> {
	const controller = new AbortController();
	const onSignal = (): void => {
		if (controller.signal.aborted) onMore();
		else controller.abort();
	};
	for (const signal of signals) process.on(signal, onSignal);
	try {
		return await work(controller.signal);
	} finally {
		for (const signal of signals) process.off(signal, onSignal);
	}
}

/** Runs `work`, which has no orderly end before its own: the first signal says `line` and ends the process. */
export function endingAtOnce<T>(line: string, work: () => Promise<T>): Promise<T> {
	return interruptible((signal) => {
		signal.addEventListener("abort", () => {
			process.stderr.write(`vmsweep: ${line}\n`);
			process.exit(1);
		});
		return work();
	});
}
