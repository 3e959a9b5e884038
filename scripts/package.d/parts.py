"""The crates that the program links, as a CycloneDX 1.5 document on standard output. Reads `cargo metadata` from standard input; the lock
file tells the digests. Arguments: the lock file, the version, the time in seconds since 1970."""

import datetime
import json
import sys
import tomllib

lock, version, when = sys.argv[1:]
metadata = json.load(sys.stdin)
with open(lock, "rb") as file:
    digests = {(package["name"], package["version"]): package.get("checksum") for package in tomllib.load(file)["package"]}
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
root = metadata["resolve"]["root"]


def needed(identity):
    """What a crate needs when it is built and when it runs, without what only its tests need."""
    return [dep["pkg"] for dep in nodes[identity]["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])]


found, open_ = set(), [root]
while open_:
    identity = open_.pop()
    if identity not in found:
        found.add(identity)
        open_.extend(needed(identity))


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package):
    entry = {"type": "library", "bom-ref": reference(package), "name": package["name"], "version": package["version"]}
    digest = digests.get((package["name"], package["version"]))
    if digest:
        entry["hashes"] = [{"alg": "SHA-256", "content": digest}]
    if package["license"]:
        entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    entry["purl"] = reference(package)
    return entry


crates = sorted((packages[identity] for identity in found if identity != root), key=lambda package: (package["name"], package["version"]))
program = {"type": "application", "bom-ref": f"pkg:cargo/egressguard@{version}", "name": "egressguard", "version": version}
program["licenses"] = [{"expression": packages[root]["license"]}]
names = {identity: (program["bom-ref"] if identity == root else reference(packages[identity])) for identity in found}
document = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"timestamp": datetime.datetime.fromtimestamp(int(when), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "component": program},
    "components": [component(package) for package in crates],
    "dependencies": sorted(
        ({"ref": names[identity], "dependsOn": sorted({names[dep] for dep in needed(identity)})} for identity in found), key=lambda entry: entry["ref"]
    ),
}
json.dump(document, sys.stdout, indent=1)
print()
