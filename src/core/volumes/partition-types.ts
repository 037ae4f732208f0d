// Partition types that forbid to look inside: what such a partition holds is arranged by an owner that is not read
// here, and a file system's marks in it may be stale, or tell only a part. (Types of the usual kinds say nothing that
// the marks inside don't say better.)
//
// Names as in util-linux, include/pt-gpt-partnames.h and pt-mbr-partnames.h.

const gptOwners: ReadonlyMap<string, string> = new Map([
	["af9b60a0-1431-4f62-bc68-3311714a69ad", "a Windows dynamic disk"],
	["5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", "a Windows dynamic disk"],
	["e75caf8f-f680-4cee-afa3-b001e56efc2d", "Windows Storage Spaces"],
	["37affc90-ef7d-4e96-91c3-2d7ae055b174", "IBM's General Parallel File System"],
	["516e7cb4-6ecf-11d6-8ff8-00022d09712b", "FreeBSD"],
	["516e7cb6-6ecf-11d6-8ff8-00022d09712b", "FreeBSD"],
	["516e7cb8-6ecf-11d6-8ff8-00022d09712b", "FreeBSD"],
	["516e7cba-6ecf-11d6-8ff8-00022d09712b", "FreeBSD"],
	["48465300-0000-11aa-aa11-00306543ecac", "macOS"],
	["7c3457ef-0000-11aa-aa11-00306543ecac", "macOS"],
	["55465300-0000-11aa-aa11-00306543ecac", "macOS"],
	["52414944-0000-11aa-aa11-00306543ecac", "macOS"],
	["53746f72-6167-11aa-aa11-00306543ecac", "macOS"],
	["aa31e02a-400f-11db-9590-000c2911d1b8", "VMware"],
	["381cfccc-7288-11e0-92ee-000c2911d0b2", "VMware"],
	["824cc7a0-36a8-11e3-890a-952519ad3f61", "OpenBSD"],
	["49f48d5a-b10e-11dc-b99b-0019d1879648", "NetBSD"],
	["49f48d82-b10e-11dc-b99b-0019d1879648", "NetBSD"],
	["49f48daa-b10e-11dc-b99b-0019d1879648", "NetBSD"],
	["2db519c4-b10f-11dc-b99b-0019d1879648", "NetBSD"],
	["2db519ec-b10f-11dc-b99b-0019d1879648", "NetBSD"],
	["6a898cc3-1dd2-11b2-99a6-080020736631", "ZFS"],
]);

const mbrOwners: ReadonlyMap<number, string> = new Map([
	[0x42, "a Windows dynamic disk"],
	[0xa5, "FreeBSD"],
	[0xa6, "OpenBSD"],
	[0xa8, "macOS"],
	[0xa9, "NetBSD"],
	[0xaf, "macOS"],
	[0xbf, "Solaris"],
	[0xfb, "VMware"],
]);

/** Whose partition it is by its GPT type, as text in lower case; null where the marks inside decide. */
export const ownerByGptType = (type: string): string | null => gptOwners.get(type) ?? null;

/** The same for a type of the MBR. */
export const ownerByMbrType = (type: number): string | null => mbrOwners.get(type) ?? null;
