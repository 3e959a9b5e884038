//! The JSON Schema that `egressguard schema` prints, asked by somebody else: Python's jsonschema, on policies read by PyYAML.
//! What the program takes, the schema takes, or editors would mark right policies wrong; and it refuses what editors should mark.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use egressguard::policy::parse_bytes;

/// Reads `{"schema": …, "policies": {name: text}}`, answers `{name: complaint or null}`. PyYAML speaks YAML 1.1; its scalars are
/// made those of the 1.2 core schema, because `no` is a string in a policy. A text that is no YAML is a complaint too.
const VALIDATOR: &str = r#"
import json, re, sys, yaml, jsonschema
class Core(yaml.SafeLoader): pass
Core.yaml_implicit_resolvers = {}
for tag, pattern, first in [
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
]:
    Core.add_implicit_resolver("tag:yaml.org,2002:" + tag, re.compile(pattern), list(first))
# Python would read a leading zero as octal, as YAML 1.1 does.
Core.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node), 10))
given = json.load(sys.stdin)
checker = jsonschema.validators.validator_for(given["schema"])
checker.check_schema(given["schema"])
assert checker is jsonschema.Draft7Validator, checker
validator = checker(given["schema"])
def complaint(text):
    try:
        document = yaml.load(text, Loader=Core)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return "no YAML: " + str(error)
    error = next(validator.iter_errors(document), None)
    return None if error is None else f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
json.dump({name: complaint(text) for name, text in given["policies"].items()}, sys.stdout)
"#;

/// What the schema says of each policy: nothing, or a complaint. `None`, with a line that says so, where Python's validator is
/// missing and nobody asked for certainty.
fn complaints(policies: &BTreeMap<String, String>) -> Option<BTreeMap<String, Option<String>>> {
    let python = "/usr/bin/python3";
    let there = Command::new(python).args(["-W", "ignore", "-c", "import jsonschema, yaml"]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        assert!(
            std::env::var_os("EGRESSGUARD_REQUIRE_KERNEL").is_none(),
            "{python} has no jsonschema and yaml: install the packages `python3-jsonschema` and `python3-yaml`"
        );
        println!("skipped: {python} has no jsonschema and yaml");
        return None;
    }
    let given = serde_json::json!({"schema": printed(), "policies": policies});
    let mut command = Command::new(python);
    let mut child = command.args(["-c", VALIDATOR]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the validator fails: is the schema one?");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// What the program prints.
fn printed() -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_egressguard")).arg("schema").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The YAML files of a directory, by name. What is not UTF-8 is left out: no JSON could carry it to the validator.
fn policies_in(directory: &str) -> BTreeMap<String, String> {
    let paths = fs::read_dir(tree(directory)).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let read = |path: PathBuf| Some((path.file_name()?.to_str()?.to_string(), fs::read_to_string(&path).ok()?));
    paths.filter_map(read).collect()
}

fn is_taken(text: &str) -> bool {
    parse_bytes(text.as_bytes(), "p.yaml").is_ok()
}

#[test]
fn every_shipped_policy_is_valid_to_an_independent_validator() {
    let shipped = policies_in("policies");
    assert!(shipped.len() >= 5, "{shipped:?}");
    let Some(said) = complaints(&shipped) else { return };
    for (name, complaint) in said {
        assert_eq!(complaint, None, "{name}");
    }
}

#[test]
fn what_the_program_takes_the_schema_takes() {
    let mut taken: BTreeMap<String, String> = policies_in("tests/golden/policy");
    for entry in fs::read_dir(tree("tests/golden/ruleset")).unwrap() {
        let path = entry.unwrap().path().join("policy.yaml");
        taken.extend(fs::read_to_string(&path).ok().map(|text| (path.display().to_string(), text)));
    }
    // Spellings that the cases above do not have.
    for (name, text) in [
        ("addresses", "outbound: [{to: '2001:db8::/32', port: 1}, {to: '::1.2.3.4', port: 1}, {to: 0.0.0.0/0, port: ['1-2', 3, 4 - 5]}]"),
        ("names", "outbound: [{to: API.OpenAI.com.}, {to: [a.b, c-d.e1]}, {to: xn--bcher-kva.example, protocol: tcp}]"),
        ("servers", "dns: {servers: [system, 1.1.1.1, '1.1.1.1:53', '2001:db8::1', '[2001:db8::1]:53', 'tls://[2001:db8::1]:853#a.b']}"),
        ("scopes", "outbound: [{to: a.b, for: {gid: 0}}, {to: a.b, for: {group: www-data}}, {to: a.b, for: {service: 'a@b.slice'}}]"),
        ("nothing", "outbound: []\ntests: []\nhost: {ntp: []}\nrefresh: {}\nviolations: {}"),
    ] {
        taken.insert(name.to_string(), format!("version: 1\n{text}\n"));
    }
    taken.retain(|_, text| is_taken(text));
    assert!(taken.len() >= 30 && taken.contains_key("whole-language.yaml") && taken.contains_key("nothing"), "{:?}", taken.keys());
    let Some(said) = complaints(&taken) else { return };
    let wrong: Vec<_> = said.into_iter().filter_map(|(name, complaint)| Some((name, complaint?))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// One mistake each, in every block: keys that do not exist, values of another type, what is required and missing.
const MISTAKES: [&str; 48] = [
    "outbuond: []",
    "name: Über",
    "name: 1",
    "mode: observ",
    "inbound: 443",
    "inbound:",
    "inbound: {}",
    "inbound: {port: 0}",
    "inbound: {port: 65536}",
    "inbound: {port: '443'}",
    "inbound: {port: [80, 443]}",
    "inbound: {port: 443, form: any}",
    "inbound: {port: 443, from: []}",
    "inbound: {port: 443, from: 10.0.0.0/8}",
    "inbound: {port: 443, from: [example.com]}",
    "inbound: {port: 443, protocol: sctp}",
    "management: {port: 22}",
    "management: {port: 22, from: any}",
    "management: {port: 22, from: [0.0.0.0/0]}",
    "management: {port: 22, from: ['::/0']}",
    "management: {port: 22, from: [10.0.0.0/8], protocol: tcp}",
    "outbound: {to: a.b}",
    "outbound: [a.b]",
    "outbound: [{port: 443}]",
    "outbound: [{to: []}]",
    "outbound: [{to: '*.example.com'}]",
    "outbound: [{to: https://example.com/}]",
    "outbound: [{to: any}]",
    "outbound: [{to: 10.0.0.1}]",
    "outbound: [{to: a.b, protocol: udp}]",
    "outbound: [{to: a.b, port: []}]",
    "outbound: [{to: a.b, port: '80,443'}]",
    "outbound: [{to: a.b, for: backend}]",
    "outbound: [{to: a.b, for: {}}]",
    "outbound: [{to: a.b, for: {user: x, uid: 1}}]",
    "outbound: [{to: a.b, for: {user: 1000}}]",
    "outbound: [{to: a.b, for: {uid: root}}]",
    "dns: {}",
    "dns: {servers: []}",
    "dns: {servers: [dns.google]}",
    "refresh: {every: 60}",
    "refresh: {every: 0s}",
    "host: {dhcp: yes}",
    "host: {forward: allow}",
    "host: {ntp: time.cloudflare.com}",
    "violations: {quarantine: {after: 0, within: 1m, for: 1h}}",
    "violations: {alert: {run: page-me}}",
    "tests: [{allow: tcp, deny: tcp}]",
];

#[test]
fn what_an_editor_should_mark_the_schema_refuses_and_so_does_the_program() {
    let mistakes = MISTAKES.iter().map(|text| (text.to_string(), format!("version: 1\n{text}\n")));
    let mut mistakes: BTreeMap<String, String> = mistakes.collect();
    mistakes.insert("no version".to_string(), "outbound: []\n".to_string());
    mistakes.insert("another version".to_string(), "version: 2\n".to_string());
    for (name, text) in &mistakes {
        assert!(!is_taken(text), "the program takes `{name}`");
    }
    let Some(said) = complaints(&mistakes) else { return };
    let missed: Vec<_> = said.iter().filter(|(_, complaint)| complaint.is_none()).map(|(name, _)| name).collect();
    assert!(missed.is_empty(), "the schema takes {missed:#?}");
}
