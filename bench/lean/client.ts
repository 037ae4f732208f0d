// The lean client: a process of its own that loads one server and prints what it saw, as JSON.
//
//   node bench/lean/client.ts '{"socket": …}'        (run-lean.ts starts it)
//
// fio's nbd engine makes two or more system calls and several switches between threads for each request. On a machine with few
// cores that is as much work as the server's, so a faster server shows only in part. This client costs less: answers
// that arrive together are taken by one recv, and the requests that follow leave with one send. It is the same for all.

import * as sys from "../../src/adapters/os/syscalls.ts";
import { PollSet } from "../../src/adapters/plane/poll-set.ts";
import { LeanConnection } from "./connection.ts";
import { LatencyHistogram } from "./histogram.ts";
import type { LoadPlan } from "./load.ts";

/** What `run-lean.ts` asks for. */
export interface LeanJob {
	readonly socket: string;
	readonly connections: number;
	/** Requests in flight, per connection. */
	readonly depth: number;
	readonly seconds: number;
	readonly plan: LoadPlan;
}

/** What it prints. */
export interface LeanReport {
	readonly operations: number;
	readonly seconds: number;
	readonly clientCpuSeconds: number;
	readonly latencyMsP50: number;
	readonly latencyMsP99: number;
	readonly latencyMsP999: number;
}

function runJob({ socket, connections, depth, seconds, plan }: LeanJob): LeanReport {
	const histogram = new LatencyHistogram();
	const all = Array.from(
		{ length: connections },
		(_, index) => new LeanConnection(socket, depth, { ...plan, seed: plan.seed + index * 7919 }, histogram),
	);
	const cpuBefore = process.cpuUsage();
	const start = performance.now();
	const end = start + seconds * 1000;
	for (const one of all) one.ask(start);
	let now = start;
	const waiter = new Waiter(all);
	while (now < end) {
		for (const one of waiter.ready()) {
			one.hear();
			now = performance.now();
			if (now < end) one.ask(now);
		}
	}
	const operations = all.reduce((sum, one) => sum + one.operations, 0);
	const elapsed = (performance.now() - start) / 1000;
	const cpu = process.cpuUsage(cpuBefore);
	while (all.some((one) => one.inFlight > 0)) for (const one of waiter.ready()) one.hear();
	for (const one of all) one.close();
	return {
		operations,
		seconds: elapsed,
		clientCpuSeconds: (cpu.user + cpu.system) / 1e6,
		latencyMsP50: histogram.percentile(0.5),
		latencyMsP99: histogram.percentile(0.99),
		latencyMsP999: histogram.percentile(0.999),
	};
}

/** Waits until a connection has something to say, and sends on where a socket was full. */
class Waiter {
	readonly #all: readonly LeanConnection[];
	readonly #polled: PollSet;

	constructor(all: readonly LeanConnection[]) {
		this.#all = all;
		this.#polled = new PollSet(all.length);
	}

	ready(): readonly LeanConnection[] {
		// One connection with nothing to send simply waits in its recv.
		if (this.#all.length === 1 && !this.#all[0]!.wantsToSend) return this.#all;
		this.#polled.clear();
		for (const one of this.#all)
			this.#polled.add(one.fd, (one.inFlight > 0 ? sys.POLLIN : 0) | (one.wantsToSend ? sys.POLLOUT : 0));
		this.#polled.wait(-1);
		const ready: LeanConnection[] = [];
		this.#all.forEach((one, index) => {
			const events = this.#polled.met(index);
			if (events & sys.POLLOUT) one.send();
			if (events & ~sys.POLLOUT) ready.push(one);
		});
		return ready;
	}
}

if (import.meta.main) console.log(JSON.stringify(runJob(JSON.parse(process.argv[2]!))));
