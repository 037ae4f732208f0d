// What a running server costs: processor time, storage reads and memory, from proc(5). Children count too.

import { readFileSync } from "node:fs";

/** Clock ticks per second of /proc; the kernel's interface fixes it at 100 on all current architectures. */
const TICKS_PER_SECOND = 100;
const KIB = 1024;

/** Processor time that a process and its living children took so far, user and kernel, all threads. */
export const cpuSeconds = (pid: number): number => sumOverTree(pid, ownCpuSeconds);

/** Bytes that a process and its living children made the kernel read from storage: what the page cache did not have. */
export const storageReadBytes = (pid: number): number =>
	sumOverTree(pid, (one) => numberBehind(readFileSync(`/proc/${one}/io`, "utf8"), "read_bytes"));

/** Memory in bytes: resident, and the same with shared pages divided among those who share them. */
export interface Memory {
	readonly residentBytes: number;
	readonly proportionalBytes: number;
}

/** Memory of a process and its living children. */
export function memoryOf(pid: number): Memory {
	const all = processTree(pid).map((one) => readFileSync(`/proc/${one}/smaps_rollup`, "utf8"));
	const sum = (name: string): number => all.reduce((total, text) => total + numberBehind(text, name) * KIB, 0);
	return { residentBytes: sum("Rss"), proportionalBytes: sum("Pss") };
}

/** Fields 14 (utime) and 15 (stime), counted behind the command's name, which may hold anything. */
function ownCpuSeconds(pid: number): number {
	const text = readFileSync(`/proc/${pid}/stat`, "utf8");
	const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
	return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** The number in a line `name: number`. */
export function numberBehind(text: string, name: string): number {
	const line = text.split("\n").find((one) => one.startsWith(`${name}:`));
	return Number.parseInt(line?.slice(name.length + 1) ?? "", 10);
}

function sumOverTree(pid: number, figure: (pid: number) => number): number {
	return processTree(pid).reduce((sum, one) => sum + figure(one), 0);
}

function processTree(pid: number): number[] {
	const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
	return [pid, ...(children === "" ? [] : children.split(" ").flatMap((child) => processTree(Number(child))))];
}
