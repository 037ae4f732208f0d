// TLS credentials for tests: an authority, a server, a client and a stranger, in folders with QEMU's and libnbd's names.

import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { runOk } from "./processes.ts";

/** Folders of PEM files. */
export interface Certificates {
	/** ca-cert.pem, server-cert.pem, server-key.pem. */
	readonly server: string;
	/** ca-cert.pem, client-cert.pem, client-key.pem. */
	readonly client: string;
	/** ca-cert.pem only: a client that shows no certificate. */
	readonly nobody: string;
	/** A client's certificate by another authority, and the right authority to check the server with. */
	readonly stranger: string;
}

/** Makes them below `folder`. Needs openssl. */
export async function makeCertificates(folder: string): Promise<Certificates> {
	const at = (name: string): string => join(folder, name);
	for (const name of ["server", "client", "nobody", "stranger"]) await mkdir(at(name), { recursive: true });
	await makeAuthority(at("ca"));
	await makeAuthority(at("other-ca"));
	await makeCertificate(at("ca"), at("server/server"), "localhost", "serverAuth");
	await makeCertificate(at("ca"), at("client/client"), "vm-host", "clientAuth");
	await makeCertificate(at("other-ca"), at("stranger/client"), "stranger", "clientAuth");
	for (const name of ["server", "client", "nobody", "stranger"])
		await copyFile(at("ca-cert.pem"), join(at(name), "ca-cert.pem"));
	return { server: at("server"), client: at("client"), nobody: at("nobody"), stranger: at("stranger") };
}

const newKey = (path: string): string[] => [
	"-newkey",
	"ec",
	"-pkeyopt",
	"ec_paramgen_curve:P-256",
	"-nodes",
	"-keyout",
	path,
];

async function makeAuthority(path: string): Promise<void> {
	await runOk("openssl", [
		"req",
		"-x509",
		"-days",
		"2",
		"-subj",
		"/CN=test authority",
		"-out",
		`${path}-cert.pem`,
		...newKey(`${path}-key.pem`),
		"-addext",
		"keyUsage=critical,keyCertSign,cRLSign",
	]);
}

async function makeCertificate(authority: string, path: string, name: string, usage: string): Promise<void> {
	await runOk("openssl", ["req", "-subj", `/CN=${name}`, "-out", `${path}.csr`, ...newKey(`${path}-key.pem`)]);
	const extensions = [
		"basicConstraints=critical,CA:FALSE",
		"keyUsage=critical,digitalSignature",
		`extendedKeyUsage=${usage}`,
		"subjectAltName=DNS:localhost,IP:127.0.0.1",
	];
	await writeFile(`${path}.ext`, extensions.join("\n"));
	await runOk("openssl", [
		"x509",
		"-req",
		"-in",
		`${path}.csr`,
		"-days",
		"2",
		"-extfile",
		`${path}.ext`,
		"-CAcreateserial",
		"-CA",
		`${authority}-cert.pem`,
		"-CAkey",
		`${authority}-key.pem`,
		"-out",
		`${path}-cert.pem`,
	]);
}
