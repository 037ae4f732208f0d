// Called: what the handlers of the control plane's calls have in common.

import type { SecondSums } from "../../core/log/second-sums.ts";
import type { PlaneCall, PlaneCalls } from "./messages.ts";
import type { Plane } from "./plane.ts";
import type { Snapshots } from "./snapshots.ts";

/** One handler per call: calls exactly one of `done` and `fail`, now or later; or throws. */
export type Handlers<Calls extends PlaneCall = PlaneCall> = {
	readonly [K in Calls]: (
		input: PlaneCalls[K]["input"],
		done: (output: PlaneCalls[K]["output"]) => void,
		fail: (error: unknown) => void,
	) => void;
};

/** What the calls need of a plane: all but clients, so that they also run where there are none. */
export type CalledPlane = Pick<
	Plane,
	| "log"
	| "viewPoints"
	| "ages"
	| "counters"
	| "latencies"
	| "awaitWrites"
	| "clientCount"
	| "stalledCount"
	| "isReceiving"
	| "attach"
	| "flush"
	| "datasync"
	| "writeSecondTables"
	| "resize"
	| "readWhole"
	| "drain"
	| "stop"
	| "refuseWhenFull"
>;

/** What the calls work on besides the plane. */
export interface PlaneFiles {
	readonly sums: SecondSums;
	/** Descriptor of the checksums' file, for `datasync`. */
	readonly sumsFd: number;
	readonly snapshots: Snapshots;
}
