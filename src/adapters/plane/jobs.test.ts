import assert from "node:assert/strict";
import { test } from "node:test";
import { closeRings, openRings } from "../../../test/support/rings.ts";
import * as sys from "../os/syscalls.ts";
import { JOB_DATASYNC, UringJobs } from "./jobs.ts";

test("what the kernel doesn't take rings the bell, so that a thread that sleeps hands it over again", (t) => {
	const bell = sys.eventfd(0, sys.EFD_NONBLOCK | sys.EFD_CLOEXEC);
	const others = openRings();
	const jobs = UringJobs.open(bell);
	if (jobs === undefined) return t.skip("this host forbids io_uring");
	const count = sys.pin(8);
	try {
		jobs.submit();
		assert.equal(sys.read(bell, count.address, 8), -sys.EAGAIN);
		closeRings(others);
		jobs.queue(JOB_DATASYNC, 0, 0, 0, 0);
		for (const again of [() => jobs.submit(), () => jobs.collect(() => assert.fail("nothing can have finished"))]) {
			again();
			assert.equal(sys.read(bell, count.address, 8), 8);
		}
	} finally {
		sys.close(bell);
	}
});
