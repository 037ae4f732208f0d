// A guest agent that answers as a test wants: true, false, late, or not at all. What it freezes is up to its handlers.

import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";

/** What it answers to a command: the value of `return`, or raw bytes. Undefined for silence. */
export type Answer = { readonly return: unknown } | { readonly raw: string | Buffer } | undefined;

export type AgentHandlers = Readonly<Record<string, (agent: FakeAgent) => Answer | Promise<Answer>>>;

export class FakeAgent implements AsyncDisposable {
	readonly path: string;
	/** Commands in the order in which they came, without synchronisation. */
	readonly heard: string[] = [];
	/** How many clients came. */
	clients = 0;
	/** Sent to each client before anything else: what an earlier one left in the channel. */
	stale: string | Buffer = "";
	readonly #server: Server;
	readonly #sockets = new Set<Socket>();
	readonly #handlers: AgentHandlers;

	private constructor(path: string, handlers: AgentHandlers) {
		this.path = path;
		this.#handlers = handlers;
		this.#server = createServer((socket) => this.#serve(socket));
	}

	static async listen(path: string, handlers: AgentHandlers): Promise<FakeAgent> {
		const agent = new FakeAgent(path, handlers);
		agent.#server.listen(path);
		await once(agent.#server, "listening");
		return agent;
	}

	/** Closes the connection of whoever is connected. */
	hangUp(): void {
		for (const socket of this.#sockets) socket.destroy();
	}

	#serve(socket: Socket): void {
		this.clients++;
		this.#sockets.add(socket);
		socket.on("close", () => this.#sockets.delete(socket));
		socket.on("error", () => {});
		if (this.stale.length > 0) socket.write(this.stale);
		let text = "";
		let turn: Promise<void> = Promise.resolve();
		socket.on("data", (bytes: Buffer) => {
			text += bytes.toString("latin1");
			const lines = text.split("\n");
			text = lines.pop()!;
			for (const line of lines) turn = turn.then(() => this.#answer(socket, line));
		});
	}

	async #answer(socket: Socket, line: string): Promise<void> {
		const { execute, arguments: given } = JSON.parse(line.slice(line.indexOf("{"))) as {
			execute: string;
			arguments?: { id: number };
		};
		if (execute === "guest-sync-delimited") {
			socket.write(Buffer.concat([Buffer.of(0xff), Buffer.from(`${JSON.stringify({ return: given!.id })}\n`)]));
			return;
		}
		this.heard.push(execute);
		const answer = await this.#handlers[execute]?.(this);
		if (answer === undefined) return;
		socket.write("raw" in answer ? answer.raw : `${JSON.stringify(answer)}\n`);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.hangUp();
		this.#server.close();
		await once(this.#server, "close");
	}
}
