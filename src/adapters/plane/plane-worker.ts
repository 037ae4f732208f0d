// Entry of a disk's data-plane thread: opens the first image, then serves until it is told to stop.

import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { crc32 } from "@node-rs/crc32";
import { FirstImage } from "../../core/log/first-image.ts";
import { SecondSums } from "../../core/log/second-sums.ts";
import { assert, isVmsweepError, VmsweepError } from "../../foundations/errors.ts";
import { logPosition } from "../../foundations/units.ts";
import { OsHostFile } from "../os/host-file.ts";
import { askForSlices } from "../os/scheduling.ts";
import * as sys from "../os/syscalls.ts";
import { planeHandlers } from "./handlers.ts";
import { HelperPool } from "./helpers.ts";
import { type JobQueue, UringJobs } from "./jobs.ts";
import type { PlaneEvent, PlaneReply, PlaneRequest, WorkerSetup } from "./messages.ts";
import { Plane } from "./plane.ts";
import { ReadBatch } from "./read-batch.ts";
import type { SecondReader } from "./second-reader.ts";
import { secondReader } from "./second-readers.ts";
import { Snapshots } from "./snapshots.ts";

/** The cleaner, the client and the kernel's own work share processors with this thread: it must not wait for their slices to end. */
const SLICE_NS = 100_000;

function serve(setup: WorkerSetup): void {
	askForSlices(SLICE_NS);
	const port = parentPort;
	assert(port !== null, "the data plane runs in a worker thread");
	const say = (reply: PlaneReply): void => port.postMessage(reply);
	const tell = (event: PlaneEvent): void => say({ event });
	const fail = (id: number, error: unknown): void => {
		const code = isVmsweepError(error) ? error.code : "BUG";
		say({ id, error: { code, message: error instanceof Error ? error.message : String(error) } });
	};

	const file = new OsHostFile(setup.logFd, setup.logName);
	const checksum = (bytes: Uint8Array): number => crc32(bytes);
	const snapshots = new Snapshots(checksum);
	let log: FirstImage;
	let jobs: JobQueue;
	let sums: SecondSums;
	let second: SecondReader;
	try {
		jobs = openJobs(setup);
		second = secondReader(setup.second);
		log = FirstImage.open(file, {
			checksum,
			allocatePinned: sys.pin,
			expectedUuid: setup.uuid,
			...(setup.limitBytes === undefined ? {} : { limitBytes: setup.limitBytes }),
			name: setup.logName,
			viewsAtEntries: setup.viewsAtEntries,
		});
		if (setup.holdsAll) log.holdFrom(logPosition(0));
		sums = new SecondSums(new OsHostFile(setup.sumsFd, setup.sumsName), setup.uuid, setup.sumsName);
		for (const snapshot of setup.snapshots) snapshots.add(snapshot);
	} catch (error) {
		fail(0, error);
		return;
	}
	const plane = new Plane({
		log,
		logFd: setup.logFd,
		second,
		sums,
		snapshots,
		jobs,
		batch: setup.helperMemory === null ? ReadBatch.open() : undefined,
		bell: setup.bell,
		onBell: () => {
			for (let message = receiveMessageOnPort(port); message; message = receiveMessageOnPort(port)) {
				const request = message.message as PlaneRequest;
				try {
					handlers.handle(
						request.kind,
						request.input,
						(output) => say({ id: request.id, output }),
						(error) => fail(request.id, error),
					);
				} catch (error) {
					fail(request.id, error);
				}
			}
		},
		onStalled: () => tell({ kind: "stalled" }),
		onPoisoned: (reason) => tell({ kind: "poisoned", reason }),
		onRotten: (block) => tell({ kind: "rotten", block }),
		onRested: () => tell({ kind: "rested" }),
	});
	const handlers = planeHandlers(plane, { sums, sumsFd: setup.sumsFd, snapshots });
	say({ id: 0, output: undefined });
	plane.run();
	port.close();
}

function openJobs({ helperMemory, bell }: WorkerSetup): JobQueue {
	const jobs = helperMemory === null ? UringJobs.open(bell) : new HelperPool(helperMemory);
	if (jobs !== undefined) return jobs;
	throw new VmsweepError(
		"IO",
		"io_uring failed, which worked a moment ago. Set VMSWEEP_NO_IO_URING=1 to do without it.",
	);
}

serve(workerData as WorkerSetup);
