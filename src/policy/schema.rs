//! The JSON Schema of the language, for editors: it completes keys, explains them, and refuses most of what the reader refuses.
//!
//! INVARIANT: what the reader takes, the schema takes. The reader knows more (host bits, shadows, ids that are taken) and has the
//! better words; nothing is decided here. Draft 7, because that is what editors understand.

use serde_json::{Value, json};

/// The schema of a whole policy.
pub fn schema() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "egressguard policy, version 1",
        "description": "Everything a host may send and receive. What it does not say is refused.",
        "type": "object",
        "additionalProperties": false,
        "required": ["version"],
        "properties": {
            "version": {"const": 1, "description": "The version of the language."},
            "name": {"$ref": "#/definitions/slug", "description": "The policy's name. Default: the file's name without its ending."},
            "mode": {
                "enum": ["enforce", "observe"],
                "default": "enforce",
                "description": "observe: the same rules, counted and logged, and nothing is blocked."
            },
            "inbound": inbound(),
            "management": management(),
            "outbound": {
                "type": "array",
                "items": way_out(),
                "description": "The only ways out."
            },
            "dns": {
                "type": "object",
                "additionalProperties": false,
                "required": ["servers"],
                "properties": {"servers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"$ref": "#/definitions/dns-server"},
                    "default": ["system"],
                    "description": "Who is asked for addresses, in this order. Without the block: the host's own, or nobody in a policy that names no host."
                }}
            },
            "refresh": refresh(),
            "host": host(),
            "violations": violations(),
            "tests": {
                "type": "array",
                "items": policy_test(),
                "description": "What must hold; `apply` refuses to go on when one fails."
            }
        },
        "definitions": definitions()
    })
}

fn inbound() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["port"],
        "properties": {
            "port": {"$ref": "#/definitions/port"},
            "protocol": {"$ref": "#/definitions/protocol"},
            "from": {
                "anyOf": [{"const": "any"}, {"$ref": "#/definitions/networks"}],
                "default": "any",
                "description": "Who may come in."
            }
        },
        "description": "The one port that accepts connections. Absent: none."
    })
}

fn management() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["port", "from"],
        "properties": {
            "port": {"$ref": "#/definitions/port"},
            "from": {
                "allOf": [{"$ref": "#/definitions/networks"}, {"not": {"contains": {"type": "string", "pattern": "/0+$"}}}],
                "description": "Where operators come from; never everybody."
            }
        },
        "description": "A narrow way in for the operator, over TCP."
    })
}

fn way_out() -> Value {
    let name = json!({"$ref": "#/definitions/host-name"});
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["to"],
        "properties": {
            "id": {"$ref": "#/definitions/slug", "description": "Names the rule everywhere. Default: the first destination."},
            "to": {
                "anyOf": [
                    {"$ref": "#/definitions/destination"},
                    {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/destination"}}
                ],
                "description": "A name, an address, a network, or a list of them."
            },
            "port": {
                "anyOf": [
                    {"$ref": "#/definitions/port-or-range"},
                    {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/port-or-range"}}
                ],
                "description": "A port, a range such as 8000-8080, or a list of both. Default for names alone: 443."
            },
            "protocol": {"$ref": "#/definitions/protocol"},
            "for": scope()
        },
        // Only a bare name means TLS: tcp/443.
        "anyOf": [
            {"required": ["port"]},
            {"properties": {"to": {"anyOf": [name, {"type": "array", "items": name}]}, "protocol": {"const": "tcp"}}}
        ]
    })
}

fn scope() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {
            "user": {"$ref": "#/definitions/account"},
            "uid": {"$ref": "#/definitions/number-of-somebody"},
            "group": {"$ref": "#/definitions/account"},
            "gid": {"$ref": "#/definitions/number-of-somebody"},
            "service": {
                "type": "string",
                "pattern": "^[A-Za-z0-9:_.\\\\@-]{1,255}$",
                "description": "A systemd unit, matched by its control group."
            }
        },
        "description": "Whose packets the rule is for. Absent: everybody's, on the host and behind it."
    })
}

fn refresh() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "every": {"$ref": "#/definitions/period", "default": "60s", "description": "How often the timer asks."},
            "keep": {
                "$ref": "#/definitions/period",
                "default": "24h",
                "description": "How long a pin outlives its last confirmation."
            },
            "private": {
                "enum": ["refuse", "allow"],
                "default": "refuse",
                "description": "What becomes of answers in private and other special-purpose ranges."
            }
        }
    })
}

fn host() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "dhcp": {"type": "boolean", "default": true, "description": "Whether the host may renew its lease."},
            "ntp": {
                "type": "array",
                "items": {"$ref": "#/definitions/destination"},
                "description": "Time servers, udp/123."
            },
            "ping": {"type": "boolean", "default": false, "description": "Whether echo requests are answered."},
            "raw-frames": {"enum": ["allow", "deny", "best-effort"], "default": "allow"},
            "forward": {
                "enum": ["contain", "deny"],
                "default": "contain",
                "description": "contain: containers and machines behind the host obey the same policy; deny: they send nothing."
            }
        }
    })
}

fn violations() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "quarantine": {
                "type": "object",
                "additionalProperties": false,
                "required": ["after", "within", "for"],
                "properties": {
                    "after": {"type": "integer", "minimum": 1, "maximum": 1_000_000, "description": "More refused packets than this, …"},
                    "within": {"$ref": "#/definitions/period", "description": "… in this time …"},
                    "for": {"$ref": "#/definitions/period", "description": "… cut off for this long."},
                    "scope": {"enum": ["user", "host"], "default": "user", "description": "Who is cut off."}
                },
                "description": "When the kernel cuts somebody off by itself. Absent: never."
            },
            "alert": {
                "type": "object",
                "additionalProperties": false,
                "required": ["run"],
                "properties": {
                    "run": {"type": "string", "pattern": "^/\\S*[^/\\s]$", "description": "The absolute path of a program."},
                    "at-most-every": {"$ref": "#/definitions/period", "default": "1m"}
                }
            }
        }
    })
}

fn policy_test() -> Value {
    let packet = json!({
        "type": "string",
        "pattern": "\\S",
        "description": "A packet: [in|out|forward] PROTOCOL [from ADDR[:PORT]] [to ADDR|NAME[:PORT]] [user NAME] [service UNIT] [state STATE]"
    });
    json!({
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {"allow": packet, "deny": packet}
    })
}

fn definitions() -> Value {
    json!({
        "slug": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$"},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "port-or-range": {
            "anyOf": [
                {"$ref": "#/definitions/port"},
                {"type": "string", "pattern": "^[1-9][0-9]{0,4}\\s*-\\s*[1-9][0-9]{0,4}$"}
            ]
        },
        "protocol": {"enum": ["tcp", "udp"], "default": "tcp"},
        "period": {
            "type": "string",
            "pattern": "^0*[1-9][0-9]*[smhd]$",
            "examples": ["90s", "15m", "24h", "7d"]
        },
        "host-name": {
            "type": "string",
            "maxLength": 254,
            "pattern": "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\\.?$",
            "not": {"anyOf": [{"pattern": "(^|\\.)[0-9]+\\.?$"}, {"enum": ["any", "all", "localhost"]}]}
        },
        "network": {
            "type": "string",
            "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:]*:?[0-9A-Fa-f.:]*)(/[0-9]{1,3})?$"
        },
        "networks": {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/network"}},
        "destination": {"anyOf": [{"$ref": "#/definitions/host-name"}, {"$ref": "#/definitions/network"}]},
        "dns-server": {
            "type": "string",
            "pattern": "^(system|tls://\\[?[0-9A-Fa-f.:]+\\]?(:[0-9]+)?#\\S+|\\[?[0-9A-Fa-f]*[.:][0-9A-Fa-f.:]*\\]?(:[0-9]+)?)$"
        },
        "account": {"type": "string", "pattern": "^[^\\s:/-][^\\s:/]{0,254}$", "not": {"pattern": "^[0-9]+$"}},
        "number-of-somebody": {"type": "integer", "minimum": 0, "maximum": 4_294_967_294_u32}
    })
}
