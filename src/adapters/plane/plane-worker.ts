// Entry of a disk's data-plane thread: opens the first image, then serves until it is told to stop.

import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { crc32 } from "@node-rs/crc32";
import { FirstImage } from "../../core/log/first-image.ts";
import { assert, isVmsweepError } from "../../foundations/errors.ts";
import { byteCount } from "../../foundations/units.ts";
import { OsHostFile } from "../os/host-file.ts";
import * as sys from "../os/syscalls.ts";
import { planeHandlers } from "./handlers.ts";
import type { PlaneEvent, PlaneReply, PlaneRequest, WorkerSetup } from "./messages.ts";
import { Plane } from "./plane.ts";

function serve(setup: WorkerSetup): void {
	const port = parentPort;
	assert(port !== null, "the data plane runs in a worker thread");
	const say = (reply: PlaneReply): void => port.postMessage(reply);
	const tell = (event: PlaneEvent): void => say({ event });
	const fail = (id: number, error: unknown): void => {
		const code = isVmsweepError(error) ? error.code : "BUG";
		say({ id, error: { code, message: error instanceof Error ? error.message : String(error) } });
	};

	const file = new OsHostFile(setup.logFd, setup.logName);
	let log: FirstImage;
	try {
		log = FirstImage.open(file, {
			checksum: (bytes) => crc32(bytes),
			allocatePinned: sys.pin,
			expectedUuid: setup.uuid,
			...(setup.limitBytes === undefined ? {} : { limitBytes: setup.limitBytes }),
			name: setup.logName,
		});
	} catch (error) {
		fail(0, error);
		return;
	}
	const plane = new Plane({
		log,
		logFd: setup.logFd,
		secondFd: setup.secondFd,
		secondSize: byteCount(setup.secondSize),
		diskSize: log.diskBytes,
		helperMemory: setup.helperMemory,
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
	});
	const handlers = planeHandlers(plane, file);
	say({ id: 0, output: undefined });
	plane.run();
	port.close();
}

serve(workerData as WorkerSetup);
