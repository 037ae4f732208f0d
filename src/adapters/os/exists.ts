// Exists: is there something of a name?

import { access } from "node:fs/promises";

/** False also where it can't be seen: what needs it will say why. */
export const exists = (path: string): Promise<boolean> =>
	access(path).then(
		() => true,
		() => false,
	);
