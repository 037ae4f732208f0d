// Logging of a running server, to standard error: plain lines on a terminal, JSON (pino's) otherwise.

import { type Logger, pino } from "pino";
import { printable } from "./output.ts";

/** The log of this process. Lines are written at once: the last one before an end is the one that matters. */
export function openLog(stream: NodeJS.WriteStream = process.stderr): Logger {
	const options = { base: { pid: process.pid } };
	if (!stream.isTTY) return pino(options, pino.destination({ fd: 2, sync: true }));
	return pino(options, { write: (line) => stream.write(plainLine(line)) });
}

/** "12:03:04 web01: text" for one of pino's JSON lines. */
export function plainLine(json: string): string {
	const { time, level, disk, msg } = JSON.parse(json) as {
		readonly time: number;
		readonly level: number;
		readonly disk?: string;
		readonly msg: string;
	};
	const clock = new Date(time).toTimeString().slice(0, 8);
	const name = level >= 50 ? "error: " : level >= 40 ? "warning: " : "";
	return `${clock} ${name}${printable(`${disk === undefined ? "" : `${disk}: `}${msg}`)}\n`;
}
