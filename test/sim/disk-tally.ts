// Tallies: what simulated histories of a disk reached.

/** What histories reached, to see that they reach what they are meant to. */
export interface DiskTally {
	lives: number;
	cuts: number;
	kills: number;
	cleanRestarts: number;
	lostEvents: number;
	records: number;
	rounds: number;
	brokenRounds: number;
	droppedBlocks: number;
	movedBlocks: number;
	freedSegments: number;
	stalls: number;
	noSpace: number;
	poisoned: number;
	viewsChecked: number;
	settledDisks: number;
	/** Times that the second image was made whole by itself, and that this was looked at after an end. */
	folds: number;
	standsChecked: number;
	snapshots: number;
	snapshotsResumed: number;
	snapshotsChecked: number;
	undone: number;
	qcow2Checked: number;
}

/** What histories with broken storage reached. */
export interface RotTally {
	rotted: number;
	refused: number;
	rottenReads: number;
	/** Blocks that read as they were before, since the storage lost them together with their checksums. */
	olderPairs: number;
}

export const emptyDiskTally = (): DiskTally => ({
	lives: 0,
	cuts: 0,
	kills: 0,
	cleanRestarts: 0,
	lostEvents: 0,
	records: 0,
	rounds: 0,
	brokenRounds: 0,
	droppedBlocks: 0,
	movedBlocks: 0,
	freedSegments: 0,
	stalls: 0,
	noSpace: 0,
	poisoned: 0,
	viewsChecked: 0,
	settledDisks: 0,
	folds: 0,
	standsChecked: 0,
	snapshots: 0,
	snapshotsResumed: 0,
	snapshotsChecked: 0,
	undone: 0,
	qcow2Checked: 0,
});
