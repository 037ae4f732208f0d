// Entry of a helper thread; see helpers.ts.

import { workerData } from "node:worker_threads";
import type { HelperSetup } from "./helpers.ts";
import { runHelper } from "./helpers.ts";

runHelper(workerData as HelperSetup);
