// libnbd's own interfaces, as its shell and small tools have them: what its test suite asks of other servers, asked of
// this one. The scripts run in nbdsh; `h` is a handle that isn't connected yet, and each ends by saying that it came through.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { nbdsh, nbdshKnowsExtendedHeaders } from "../support/nbd-shell.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

interface Fixture extends AsyncDisposable {
	readonly uri: string;
}

const fixture = (...options: readonly string[]): Promise<Fixture> => fixtureOf("64M", ...options);

async function fixtureOf(size: string, ...options: readonly string[]): Promise<Fixture> {
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const disk = folder.file("web01");
	await createDisk(disk, { size });
	const server = stack.use(await SweepServer.serve(disk, "--clean", "off", ...options));
	return { uri: server.uri, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

/** Runs a script of nbdsh with the URI in `uri`; a failed assertion of it fails the test. */
async function shell(uri: string, script: string): Promise<void> {
	const text = `import nbd\nuri = ${JSON.stringify(uri)}\n${script.replaceAll(/^\t+/gm, (tabs) => tabs.slice(3))}\nprint("through")\n`;
	const { stdout, stderr, exitCode } = await nbdsh("-c", text);
	assert.equal(exitCode, 0, stderr);
	assert.match(stdout, /^through$/m);
}

describe("nbdsh", () => {
	test("lists, asks about and chooses exports and contexts", async (t) => {
		if (!requireTool(t, "nbdsh")) return;
		await using f = await fixture();
		await shell(
			f.uri,
			`
			h.set_opt_mode(True)
			h.connect_uri(uri)
			found = []
			assert h.opt_list(lambda name, text: found.append((name, text))) == 1
			assert found[0][0] == "web01" and found[0][1].endswith("/web01"), found
			for query, names in [
				([], ["base:allocation", "vmsweep:liveness", "vmsweep:since:"]),
				(["base:"], ["base:allocation"]),
				(["vmsweep:"], ["vmsweep:liveness", "vmsweep:since:"]),
				(["vmsweep:since:5", "x-none:"], ["vmsweep:since:5"]),
				(["qemu:"], []),
			]:
				seen = []
				h.clear_meta_contexts()
				for one in query:
					h.add_meta_context(one)
				h.opt_list_meta_context(lambda name: seen.append(name))
				assert seen == names, (query, seen)
			h.set_export_name("nowhere")
			try:
				h.opt_info()
				assert False
			except nbd.Error as ex:
				pass
			h.set_export_name("web01")
			h.clear_meta_contexts()
			h.add_meta_context("base:allocation")
			h.add_meta_context("vmsweep:since:0")
			h.opt_info()
			assert h.get_size() == 64 << 20
			h.opt_go()
			assert h.get_structured_replies_negotiated()
			assert h.can_meta_context("base:allocation") and h.can_meta_context("vmsweep:since:0")
			assert not h.can_meta_context("vmsweep:liveness")
			assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_PREFERRED) == 4096
			assert h.can_df() and h.can_multi_conn() and h.can_fast_zero() and h.can_cache() and not h.is_read_only()
			h.shutdown()
			`,
		);
	});

	test("structured reads: data and holes, in one chunk where that is asked for", async (t) => {
		if (!requireTool(t, "nbdsh")) return;
		await using f = await fixture();
		await shell(
			f.uri,
			`
			h.connect_uri(uri)
			h.pwrite(b"\\x55" * 262144, 0)
			h.zero(65536, 65536)
			def chunks(length, flags):
				seen = []
				def chunk(data, offset, status, error):
					assert error.value == 0
					if status == nbd.READ_HOLE:
						assert data == bytearray(len(data))
					else:
						assert status == nbd.READ_DATA
					seen.append((status, offset, len(data)))
				data = h.pread_structured(length, 0, chunk, flags)
				assert data == b"\\x55" * 65536 + bytes(65536) + b"\\x55" * (length - 131072)
				return sorted(seen, key=lambda one: one[1])
			D, H = nbd.READ_DATA, nbd.READ_HOLE
			assert chunks(262144, 0) == [(D, 0, 65536), (H, 65536, 65536), (D, 131072, 131072)]
			assert chunks(262144, nbd.CMD_FLAG_DF) == [(D, 0, 262144)]
			h.shutdown()
			`,
		);
	});

	test("block status of several contexts, one extent where that is asked for", async (t) => {
		if (!requireTool(t, "nbdsh")) return;
		await using f = await fixture();
		await shell(
			f.uri,
			`
			for context in ["base:allocation", "vmsweep:liveness", "vmsweep:since:0"]:
				h.add_meta_context(context)
			h.connect_uri(uri)
			h.pwrite(b"1" * 8192, 4096)
			def status(flags):
				seen = {}
				def extents(context, offset, entries, error):
					assert error.value == 0 and offset == 0 and context not in seen
					seen[context] = entries
				h.block_status(65536, 0, extents, flags)
				return seen
			assert status(0) == {
				"base:allocation": [4096, 3, 8192, 0, 53248, 3],
				"vmsweep:liveness": [65536, 2],
				"vmsweep:since:0": [65536, 1],
			}, status(0)
			assert status(nbd.CMD_FLAG_REQ_ONE)["base:allocation"] == [4096, 3]
			h.shutdown()
			`,
		);
	});

	test("what a client must not ask: an error each, and it stays connected", async (t) => {
		if (!requireTool(t, "nbdsh")) return;
		await using f = await fixture();
		await shell(
			f.uri,
			`
			import errno
			h.add_meta_context("base:allocation")
			h.connect_uri(uri)
			h.set_strict_mode(0)
			size = h.get_size()
			def fails(number, call):
				try:
					call()
				except nbd.Error as ex:
					assert ex.errnum == number, (ex.errnum, number)
				else:
					assert False, "it went well"
			fails(errno.EINVAL, lambda: h.pread(1, size))
			fails(errno.ENOSPC, lambda: h.pwrite(b"1", size))
			fails(errno.ENOSPC, lambda: h.zero(4096, size - 1))
			fails(errno.EINVAL, lambda: h.trim(4096, size - 1))
			fails(errno.EINVAL, lambda: h.cache(4096, size))
			fails(errno.EINVAL, lambda: h.flush(nbd.CMD_FLAG_DF))
			fails(errno.EINVAL, lambda: h.trim(512, 0, nbd.CMD_FLAG_REQ_ONE))
			fails(errno.ENOTSUP, lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE))
			fails(errno.EINVAL, lambda: h.pread(33 << 20, 0))
			fails(errno.EINVAL, lambda: h.block_status(4096, size, lambda *args: 0))
			h.pwrite(b"2" * 512, size - 512, nbd.CMD_FLAG_FUA)
			assert h.pread(512, size - 512) == b"2" * 512
			h.shutdown()
			`,
		);
	});

	test("many requests under way, over two connections, answered in any order", async (t) => {
		if (!requireTool(t, "nbdsh")) return;
		await using f = await fixture();
		await shell(
			f.uri,
			`
			other = nbd.NBD()
			for one in (h, other):
				one.connect_uri(uri)
			buffers = [nbd.Buffer.from_bytearray(bytearray([i % 251 + 1]) * 65536) for i in range(256)]
			cookies = [(h, other)[i % 2].aio_pwrite(buffer, i * 65536) for i, buffer in enumerate(buffers)]
			for one in (h, other):
				while one.aio_in_flight() > 0:
					one.poll(-1)
			h.flush()
			for i in range(256):
				data = (other, h)[i % 2].pread(65536, i * 65536)
				assert data == bytes([i % 251 + 1]) * 65536, i
			for one in (h, other):
				one.shutdown()
			`,
		);
	});

	test("extended headers: lengths beyond 32 bits, and the status of one context alone", async (t) => {
		if (!requireTool(t, "nbdsh")) return;
		if (!(await nbdshKnowsExtendedHeaders()))
			return t.skip("this libnbd is older than 1.18 (make test-clients has Debian 13's)");
		await using f = await fixtureOf("10G");
		await shell(
			f.uri,
			`
			GiB = 1 << 30
			for context in ("base:allocation", "vmsweep:liveness"):
				h.add_meta_context(context)
			h.connect_uri(uri)
			assert h.get_extended_headers_negotiated() and h.can_block_status_payload()
			h.pwrite(b"1" * 65536, 1 * GiB)
			h.pwrite(b"2" * 65536, 6 * GiB)
			def status(ask):
				seen = {}
				def extent(name, at, entries, error):
					seen.setdefault(name, []).extend(entries)
				ask(extent)
				return seen
			whole = status(lambda extent: h.block_status_64(10 * GiB, 0, extent))
			data, hole = 0, nbd.STATE_HOLE | nbd.STATE_ZERO
			written = [(GiB, hole), (65536, data), (5 * GiB - 65536, hole), (65536, data), (4 * GiB - 65536, hole)]
			assert whole["base:allocation"] == written, whole
			assert sum(length for length, state in whole["vmsweep:liveness"]) == 10 * GiB, whole
			one = status(lambda extent: h.block_status_filter(10 * GiB, 0, ["base:allocation"], extent))
			assert one == {"base:allocation": written}, one
			h.zero(5 * GiB, 4096)
			assert h.pread(8192, 1 * GiB) == bytes(8192)
			h.trim(4 * GiB + 1 * GiB, 5 * GiB)
			h.cache(10 * GiB, 0)
			h.flush()
			emptied = status(lambda extent: h.block_status_filter(10 * GiB, 0, ["base:allocation"], extent))
			assert all(state == hole for length, state in emptied["base:allocation"]), emptied
			assert sum(length for length, state in emptied["base:allocation"]) == 10 * GiB, emptied
			try:
				h.set_strict_mode(0)
				h.zero(5 * GiB, 6 * GiB)
				assert False
			except nbd.Error as ex:
				assert ex.errno in ("ENOSPC", "EINVAL"), ex
			h.shutdown()
			`,
		);
	});

	test("read-only exports, and simple replies where a client wants nothing else", async (t) => {
		if (!requireTool(t, "nbdsh")) return;
		await using f = await fixture("--read-only");
		await shell(
			f.uri,
			`
			import errno
			h.set_request_structured_replies(False)
			h.connect_uri(uri)
			assert h.is_read_only() and not h.get_structured_replies_negotiated() and not h.can_df()
			assert not h.can_trim() and not h.can_zero()
			assert h.pread(70000, 5) == bytes(70000)
			h.set_strict_mode(0)
			try:
				h.pwrite(b"1", 0)
				assert False
			except nbd.Error as ex:
				assert ex.errnum == errno.EPERM
			h.shutdown()
			`,
		);
	});
});

test("nbddump shows what was written", async (t) => {
	if (!requireTool(t, "nbddump", "qemu-io")) return;
	await using f = await fixture();
	await runOk("qemu-io", ["-f", "raw", "-c", "write -q -P 0x41 1M 32", "-c", "write -q -P 0x42 63M 16", f.uri]);
	const dump = await runOk("nbddump", [f.uri]);
	assert.match(dump, /^0000100000: 41 41 .*A{16}\|$/m);
	assert.match(dump, /^0003f00000: 42 42 .*B{16}\|$/m);
});
