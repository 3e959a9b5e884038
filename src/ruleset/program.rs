//! The kernel's own language: expressions over registers, the objects of a table, and transactions on them.
//!
//! These are the values that the netlink room encodes and decodes and that the simulated kernel keeps. They know nothing of
//! what a rule means; that is lifted from them elsewhere. Names follow `linux/netfilter/nf_tables.h`.

use std::collections::BTreeMap;
use std::fmt;

/// The table that holds everything: `inet egressguard`.
pub const TABLE: &str = "egressguard";

/// A four-octet register, 0 to 15. Slot 0, 4, 8 and 12 begin the kernel's `NFT_REG_1` to `NFT_REG_4`; any other slot is
/// `NFT_REG32_00` plus its number. The kernel dumps registers in just this canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u8);

impl Register {
    /// The number that netlink uses.
    pub fn to_wire(self) -> u32 {
        if self.0 % 4 == 0 { 1 + u32::from(self.0) / 4 } else { 8 + u32::from(self.0) }
    }

    /// The register of a netlink number; `None` for the verdict register and for numbers that are no register.
    pub fn from_wire(number: u32) -> Option<Register> {
        match number {
            1..=4 => Some(Register(((number - 1) * 4) as u8)),
            8..=23 => Some(Register((number - 8) as u8)),
            _ => None,
        }
    }
}

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expr {
    /// `meta`: loads a fact about the packet.
    Meta {
        /// `NFT_META_*`.
        key: u32,
        /// Where to.
        into: Register,
    },
    /// `ct`: loads what connection tracking knows.
    Ct {
        /// `NFT_CT_*`.
        key: u32,
        /// `IP_CT_DIR_*`, for the keys that take one.
        direction: Option<u8>,
        /// Where to.
        into: Register,
    },
    /// `payload`: loads octets of the packet.
    Payload {
        /// `NFT_PAYLOAD_*_HEADER`.
        base: u32,
        /// Octets from the start of that header.
        offset: u32,
        /// How many octets.
        len: u32,
        /// Where to.
        into: Register,
    },
    /// `socket`: loads the id of the control group (cgroup v2) of the packet's socket: eight octets in host order.
    SocketCgroup {
        /// Which ancestor: 1 is directly below the root.
        level: u32,
        /// Where to.
        into: Register,
    },
    /// `bitwise`: `into = (from & mask) ^ xor`.
    Bitwise {
        /// From where.
        from: Register,
        /// Where to.
        into: Register,
        /// The mask; its length is the operation's length.
        mask: Vec<u8>,
        /// The exclusive or, of the same length.
        xor: Vec<u8>,
    },
    /// `cmp`: goes on only when the comparison holds.
    Compare {
        /// How.
        how: Comparison,
        /// From where.
        from: Register,
        /// With what, as the register holds it.
        data: Vec<u8>,
    },
    /// `range`: goes on only when the value lies inside (or, inverted, outside) the bounds.
    Range {
        /// Whether outside is asked for.
        inverted: bool,
        /// From where.
        from: Register,
        /// The lowest value.
        low: Vec<u8>,
        /// The highest value.
        high: Vec<u8>,
    },
    /// `lookup`: goes on only when the set holds (or, inverted, lacks) the key.
    Lookup {
        /// The set.
        set: String,
        /// Where the key begins.
        from: Register,
        /// Whether absence is asked for.
        inverted: bool,
    },
    /// `dynset`: puts the key into the set; goes on only when that worked and the element's own expressions match.
    Update {
        /// The set.
        set: String,
        /// `NFT_DYNSET_OP_*`: 0 add, 1 update, 2 delete.
        operation: u32,
        /// Where the key begins.
        from: Register,
        /// Time to live of the element in milliseconds; 0: the set's own.
        timeout_ms: u64,
        /// What each element carries: [`Expr::Counter`] or [`Expr::Limit`].
        element: Vec<Expr>,
    },
    /// `counter`. What it has counted is not part of the value.
    Counter,
    /// `limit`.
    Limit {
        /// Packets …
        rate: u64,
        /// … per so many seconds.
        unit: u64,
        /// Packets above the rate at once.
        burst: u32,
        /// `NFT_LIMIT_PKTS` 0 or `NFT_LIMIT_PKT_BYTES` 1.
        kind: u32,
        /// Whether it matches what is over the limit.
        over: bool,
    },
    /// `log` to a netlink group.
    Log {
        /// What the record begins with.
        prefix: String,
        /// The NFLOG group.
        group: u16,
        /// How many octets of the packet are copied.
        snaplen: u32,
        /// How many records are sent together.
        threshold: u16,
    },
    /// `immediate` into the verdict register.
    Verdict(Verdict),
    /// `reject`.
    Reject {
        /// `NFT_REJECT_*`: 0 ICMP unreachable, 1 TCP reset, 2 ICMPX unreachable.
        kind: u32,
        /// Its code; 0 for a reset.
        code: u8,
    },
    /// An expression of this name that is not understood, or one understood in part only.
    Foreign(String),
}

/// How `cmp` compares: unsigned, octet by octet from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What a rule says in the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The packet passes this table.
    Accept,
    /// The packet is gone.
    Drop,
    /// Go on with the next rule.
    Continue,
    /// Go back to where the chain was jumped from.
    Return,
    /// Go through that chain, then come back.
    Jump(String),
    /// Go through that chain, and do not come back.
    Goto(String),
}

/// The rules of one chain as the kernel holds them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleProgram {
    /// Its expressions.
    pub exprs: Vec<Expr>,
    /// Its comment; empty when it has none.
    pub comment: String,
}

/// A hook of the packet path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Ingress,
}

impl Hook {
    /// `NF_INET_*`.
    pub fn to_wire(self) -> u32 {
        self as u32
    }

    /// The hook of a number.
    pub fn from_wire(number: u32) -> Option<Hook> {
        Some(match number {
            0 => Hook::Prerouting,
            1 => Hook::Input,
            2 => Hook::Forward,
            3 => Hook::Output,
            4 => Hook::Postrouting,
            5 => Hook::Ingress,
            _ => return None,
        })
    }

    /// The word nft uses.
    pub fn keyword(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
            Hook::Ingress => "ingress",
        }
    }
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Where packets meet it.
    pub hook: Hook,
    /// Lower comes first; `filter` is 0.
    pub priority: i32,
    /// What becomes of a packet that no rule decides: `true` accepts it.
    pub accepts: bool,
}

/// A chain without its rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainDef {
    /// Its name.
    pub name: String,
    /// Hook and policy of a base chain.
    pub base: Option<Base>,
}

/// The type of one field of a set's key. The numbers are nft's `TYPE_*` (kept by nft for printing only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum KeyType {
    Ipv4Addr,
    Ipv6Addr,
    InetProto,
    InetService,
    Mark,
    Uid,
    Gid,
    IcmpType,
    Icmpv6Type,
    CgroupV2,
    /// A type of this number and this length in octets that the ruleset never uses.
    Foreign {
        number: u32,
        octets: u32,
    },
}

/// nft's number, name, length in octets, and whether the register holds the value in host order.
const KEY_TYPES: [(KeyType, u32, &str, u32, bool); 10] = [
    (KeyType::Ipv4Addr, 7, "ipv4_addr", 4, false),
    (KeyType::Ipv6Addr, 8, "ipv6_addr", 16, false),
    (KeyType::InetProto, 12, "inet_proto", 1, false),
    (KeyType::InetService, 13, "inet_service", 2, false),
    (KeyType::IcmpType, 14, "icmp_type", 1, false),
    (KeyType::Mark, 19, "mark", 4, true),
    (KeyType::Uid, 24, "uid", 4, true),
    (KeyType::Gid, 25, "gid", 4, true),
    (KeyType::Icmpv6Type, 29, "icmpv6_type", 1, false),
    (KeyType::CgroupV2, 46, "cgroupsv2", 8, true),
];

impl KeyType {
    /// nft's number of the type.
    pub fn number(self) -> u32 {
        match self {
            KeyType::Foreign { number, .. } => number,
            known => KEY_TYPES.iter().find(|row| row.0 == known).map_or(0, |row| row.1),
        }
    }

    /// nft's name of the type.
    pub fn name(self) -> &'static str {
        KEY_TYPES.iter().find(|row| row.0 == self).map_or("unknown", |row| row.2)
    }

    /// Its length in octets.
    pub fn octets(self) -> u32 {
        match self {
            KeyType::Foreign { octets, .. } => octets,
            known => KEY_TYPES.iter().find(|row| row.0 == known).map_or(0, |row| row.3),
        }
    }

    /// Whether registers and elements hold it in host order.
    pub fn host_order(self) -> bool {
        KEY_TYPES.iter().any(|row| row.0 == self && row.4)
    }

    /// The type of a number, with the length that the set states.
    pub fn from_number(number: u32, octets: u32) -> KeyType {
        KEY_TYPES.iter().find(|row| row.1 == number && row.3 == octets).map_or(KeyType::Foreign { number, octets }, |row| row.0)
    }
}

/// The kernel's number for a concatenation: six bits a field, as nft does it.
pub fn key_type_number(key: &[KeyType]) -> u32 {
    key.iter().fold(0, |number, field| (number << 6) | field.number())
}

/// A set without its elements.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetDef {
    /// Its name.
    pub name: String,
    /// The fields of its key; two or more are a concatenation, each padded to four octets.
    pub key: Vec<KeyType>,
    /// Elements are intervals.
    pub interval: bool,
    /// Elements may have a timeout.
    pub timeout: bool,
    /// Rules may add elements.
    pub dynamic: bool,
    /// Each element counts packets and octets.
    pub counter: bool,
    /// The most elements it takes.
    pub size: Option<u32>,
    /// A flag, data type or statement that the ruleset never uses, in words; a set that has one is not ours.
    pub foreign: Option<String>,
}

impl SetDef {
    /// A set without flags.
    pub fn plain(name: impl Into<String>, key: impl Into<Vec<KeyType>>) -> SetDef {
        let (name, key) = (name.into(), key.into());
        SetDef { name, key, interval: false, timeout: false, dynamic: false, counter: false, size: None, foreign: None }
    }
}

/// The key of an element as the kernel holds it: all fields, each padded to four octets when there are several. In an
/// interval set it is the first value of the interval.
pub type Key = Vec<u8>;

/// One element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Element {
    /// The last value of the interval, included; `None` in sets without intervals.
    pub last: Option<Key>,
    /// Milliseconds that it lives from being added; `None`: for ever. From the kernel: as it was added.
    pub timeout_ms: Option<u64>,
    /// Milliseconds left, from the kernel only.
    pub expires_ms: Option<u64>,
    /// Its comment; empty when it has none.
    pub comment: String,
    /// Packets and octets counted. Carried into the kernel when an element is made anew.
    pub counted: Option<(u64, u64)>,
}

/// The elements of a set, by key.
pub type Elements = BTreeMap<Key, Element>;

/// Whose table it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDef {
    /// Its comment; empty when it has none.
    pub comment: String,
    /// `NFT_TABLE_F_*`.
    pub flags: u32,
}

/// Our table as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDump {
    /// The table itself.
    pub table: TableDef,
    /// Chains in the kernel's order, with their rules.
    pub chains: Vec<(ChainDef, Vec<RuleProgram>)>,
    /// Sets by name, anonymous ones too, with the elements that were asked for.
    pub sets: BTreeMap<String, (SetDef, Elements)>,
    /// Objects of other kinds in the table, flowtables among them, in words.
    pub foreign: Vec<String>,
}

impl TableDump {
    /// Whether rules may add elements to the set: it says so, or one does.
    pub fn rules_add_to(&self, set: &SetDef) -> bool {
        let updates = |expr: &Expr| matches!(expr, Expr::Update { set: name, .. } if *name == set.name);
        set.dynamic || self.chains.iter().flat_map(|(_, rules)| rules).any(|rule| rule.exprs.iter().any(updates))
    }
}

/// What the sets of our table have counted that rules fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// The kernel's handle of the table: no other table of the namespace has had it in this boot.
    pub table: u64,
    /// The sets, by name.
    pub sets: Vec<CountingSet>,
}

/// A set that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountingSet {
    /// The set.
    pub def: SetDef,
    /// The kernel's handle of the set: no other set of this table has had it.
    pub handle: u64,
    /// Its elements.
    pub elements: Elements,
    /// Whether these are all: while the kernel makes a set larger some of its elements are not told.
    pub whole: bool,
}

/// How many transactions a network namespace has seen. Any change, of anybody's table, makes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u32);

/// One step of a transaction on our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Make the table; nothing happens when it is there.
    AddTable(TableDef),
    /// Remove the table and all in it.
    DeleteTable,
    /// Make a chain, or change the policy of a base chain that is there.
    AddChain(ChainDef),
    /// Remove an empty chain that nothing jumps to.
    DeleteChain(String),
    /// Remove the rules of a chain.
    FlushChain(String),
    /// Append a rule.
    AddRule {
        /// To which chain.
        chain: String,
        /// The rule.
        rule: RuleProgram,
    },
    /// Make a set.
    AddSet(SetDef),
    /// Remove a set that no rule uses.
    DeleteSet(String),
    /// Add elements. One that is there already stays as it is, except that kernels from 6.12 renew its timeout.
    AddElements {
        /// To which set.
        set: SetDef,
        /// Which.
        elements: Elements,
    },
    /// Remove elements, all of which must be there.
    DeleteElements {
        /// From which set.
        set: SetDef,
        /// Which; only keys and ends of intervals matter.
        elements: Elements,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::AddTable(_) => write!(f, "add table `{TABLE}`"),
            Op::DeleteTable => write!(f, "delete table `{TABLE}`"),
            Op::AddChain(chain) => write!(f, "add chain `{}`", chain.name),
            Op::DeleteChain(name) => write!(f, "delete chain `{name}`"),
            Op::FlushChain(name) => write!(f, "flush chain `{name}`"),
            Op::AddRule { chain, rule } if rule.comment.is_empty() => write!(f, "add a rule to chain `{chain}`"),
            Op::AddRule { chain, rule } => write!(f, "add rule `{}` to chain `{chain}`", rule.comment),
            Op::AddSet(set) => write!(f, "add set `{}`", set.name),
            Op::DeleteSet(name) => write!(f, "delete set `{name}`"),
            Op::AddElements { set, elements } => write!(f, "add {} elements to set `{}`", elements.len(), set.name),
            Op::DeleteElements { set, elements } => write!(f, "delete {} elements of set `{}`", elements.len(), set.name),
        }
    }
}
