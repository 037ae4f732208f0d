import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { FakeAgent } from "../../../test/support/fake-agent.ts";
import { temporaryFolder } from "../../../test/support/folders.ts";
import { isVmsweepError } from "../../foundations/errors.ts";
import { GuestAgent } from "./guest-agent.ts";

const ENOUGH = 10_000;
const SOON = 100;
const isIo = (error: unknown): boolean => isVmsweepError(error, "IO");

describe("the guest agent's client", () => {
	test("asks one thing after the other, and understands the answers", async () => {
		await using folder = await temporaryFolder();
		let status = "thawed";
		await using fake = await FakeAgent.listen(folder.file("qga"), {
			"guest-fsfreeze-status": () => ({ return: status }),
			"guest-fsfreeze-freeze": () => {
				status = "frozen";
				return { return: 2 };
			},
			"guest-fsfreeze-thaw": () => {
				status = "thawed";
				return { return: 2 };
			},
		});
		const agent = new GuestAgent(fake.path);
		const answers = await Promise.all([
			agent.status(ENOUGH),
			agent.freeze(ENOUGH),
			agent.status(ENOUGH),
			agent.thaw(ENOUGH),
			agent.status(ENOUGH),
		]);
		assert.deepEqual(answers, ["thawed", 2, "frozen", 2, "thawed"]);
		assert.equal(fake.clients, 1);
		agent.close();
		assert.equal(await agent.status(ENOUGH), "thawed");
		assert.equal(fake.clients, 2, "it connects again");
		agent.close();
	});

	test("skips what an earlier client left in the channel", async () => {
		await using folder = await temporaryFolder();
		await using fake = await FakeAgent.listen(folder.file("qga"), {
			"guest-fsfreeze-status": () => ({ return: "thawed" }),
		});
		fake.stale = Buffer.concat([
			Buffer.from('{"return": "frozen"}\n{"ret'),
			Buffer.from([0xff, 0x00, 0x0a, 0xff]),
			Buffer.from('{"return": 4294967296}\nurn": 1}\n'),
		]);
		const agent = new GuestAgent(fake.path);
		assert.equal(await agent.status(ENOUGH), "thawed");
		agent.close();
	});

	test("never takes a late answer for that of the next command", async () => {
		await using folder = await temporaryFolder();
		let asked = 0;
		const late = Promise.withResolvers<{ return: string }>();
		await using fake = await FakeAgent.listen(folder.file("qga"), {
			"guest-fsfreeze-status": () => (asked++ === 0 ? late.promise : { return: "thawed" }),
		});
		const agent = new GuestAgent(fake.path);
		await assert.rejects(agent.status(SOON), isIo);
		const next = agent.status(ENOUGH);
		late.resolve({ return: "frozen" });
		assert.equal(await next, "thawed");
		assert.equal(fake.clients, 2);
		agent.close();
	});

	const nonsense: Readonly<Record<string, string | Buffer>> = {
		"no JSON": "frozen\n",
		"no object": "[1]\n",
		"another status": '{"return": "melting"}\n',
		"no return": '{"reply": "frozen"}\n',
		"an endless line": Buffer.alloc(2 << 20, "x"),
		"an error": '{"error": {"class": "GenericError", "desc": "no\\u001b[31m"}}\n',
		"a deep answer": `{"return": ${"[".repeat(50_000)}${"]".repeat(50_000)}}\n`,
	};
	for (const [name, raw] of Object.entries(nonsense))
		test(`refuses ${name}, and lives on`, async () => {
			await using folder = await temporaryFolder();
			let asked = 0;
			await using fake = await FakeAgent.listen(folder.file("qga"), {
				"guest-fsfreeze-status": () => (asked++ === 0 ? { raw } : { return: "thawed" }),
			});
			const agent = new GuestAgent(fake.path);
			await assert.rejects(agent.status(ENOUGH), (error: Error) => {
				assert.ok(
					Buffer.from(error.message).every((byte) => byte >= 0x20),
					"its words may steer a terminal",
				);
				return isIo(error);
			});
			assert.equal(await agent.status(ENOUGH), "thawed");
			agent.close();
		});

	test("says that nobody listens, that nobody answers, and that the connection is gone", async () => {
		await using folder = await temporaryFolder();
		const nobody = new GuestAgent(folder.file("qga"));
		await assert.rejects(nobody.status(ENOUGH), isIo);
		await using fake = await FakeAgent.listen(folder.file("qga"), {
			"guest-fsfreeze-status": () => {
				fake.hangUp();
				return undefined;
			},
		});
		await assert.rejects(nobody.status(ENOUGH), isIo);
	});
});
