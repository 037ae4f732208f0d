// Reading one run of an image, complete or with an error that the rest of the product knows.

import type { FileHandle } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";
import { ioError } from "./write-run.ts";

/** Fills all of `into` from byte `at` on. Throws IO, also where the file ends before. */
export async function readRun(file: FileHandle, path: string, at: number, into: Uint8Array): Promise<void> {
	for (let done = 0; done < into.length; ) {
		const { bytesRead } = await file.read(into, done, into.length - done, at + done).catch((error: unknown) => {
			throw ioError(error, `${path}: reading at byte ${at + done} failed`);
		});
		if (bytesRead === 0)
			throw new VmsweepError("IO", `${path} ends at byte ${at + done}. Somebody made it smaller; restore it.`);
		done += bytesRead;
	}
}
