//! Steps of a transaction as one batch of netlink messages. Tables' names, chains and rules are written by libnftnl; sets and
//! elements, for which it has no fast or whole encoding, are written here.
//!
//! No message asks for an acknowledgement: errors come without being asked for, and hundreds of acknowledgements overflow the
//! socket. The encoding of sets and elements is the one of nft 1.0.6, so that `nft list` prints them alike.

use std::ffi::CStr;

use nftnl::{Chain, ChainType, MsgType, Policy, ProtoFamily, Rule, Table};

use super::expression::{Scratch, add_expressions, name};
use super::message::{Mark, Writer};
use super::uapi::*;
use crate::ruleset::program::{
    Base, ChainDef, Element, Elements, GenerationId, Hook, Key, Op, RuleProgram, SetDef, TABLE, TableDef, key_type_number,
};

/// [`TABLE`] for libnftnl; a test compares them.
const TABLE_C: &CStr = c"egressguard";

/// Another message of elements is begun when one has so many octets. A nest holds 65 535; an element is below 700.
const FULL: usize = 60_000;

/// A transaction ready to be sent.
#[derive(Debug)]
pub struct Batch {
    /// The messages, from `NFNL_MSG_BATCH_BEGIN` to `NFNL_MSG_BATCH_END`.
    pub octets: Vec<u8>,
    /// Which step each message carries out: message 1 stands first. Both ends of the batch are message 0.
    pub steps: Vec<usize>,
}

impl Batch {
    /// Encodes all steps, to be carried out only while the generation is `expected`. The error names the step that cannot be
    /// written and says why, errno first.
    pub fn encode(expected: GenerationId, ops: &[Op]) -> Result<Batch, (usize, String)> {
        let mut encoder = Encoder {
            writer: Writer::default(),
            scratch: Scratch::new(),
            table: Table::new(TABLE_C, ProtoFamily::Inet),
            steps: Vec::new(),
            step: 0,
            sets: 0,
        };
        let begin = encoder.writer.begin_raw(NFNL_MSG_BATCH_BEGIN, 0, 0, 0, NFNL_SUBSYS_NFTABLES);
        encoder.writer.u32(NFNL_BATCH_GENID, expected.0);
        encoder.writer.end(begin);
        for (step, op) in ops.iter().enumerate() {
            encoder.step = step;
            encoder.op(op).map_err(|errno| (step, errno))?;
        }
        let end = encoder.writer.begin_raw(NFNL_MSG_BATCH_END, 0, 0, 0, NFNL_SUBSYS_NFTABLES);
        encoder.writer.end(end);
        Ok(Batch { octets: encoder.writer.into_octets(), steps: encoder.steps })
    }

    /// Whether there is nothing between both ends.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

struct Encoder {
    writer: Writer,
    scratch: Scratch,
    table: Table,
    steps: Vec<usize>,
    step: usize,
    sets: u32,
}

impl Encoder {
    fn op(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::AddTable(table) => self.add_table(table),
            Op::DeleteTable => self.delete_table(),
            Op::AddChain(chain) => self.chain(chain, MsgType::Add),
            Op::DeleteChain(name) => self.chain(&ChainDef { name: name.clone(), base: None }, MsgType::Del),
            Op::FlushChain(name) => self.rule(name, &RuleProgram { exprs: Vec::new(), comment: String::new() }, MsgType::Del),
            Op::AddRule { chain, rule } => self.rule(chain, rule, MsgType::Add),
            Op::AddSet(set) => self.add_set(set),
            Op::DeleteSet(set) => self.delete_set(set),
            Op::AddElements { set, elements } => self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, elements),
            Op::DeleteElements { set, elements } => self.elements(NFT_MSG_DELSETELEM, 0, set, elements),
        }
    }

    /// The number of the next message, which belongs to the step at hand.
    fn seq(&mut self) -> u32 {
        self.steps.push(self.step);
        self.steps.len() as u32
    }

    fn add_table(&mut self, table: &TableDef) -> Result<(), String> {
        let comment = comment(&table.comment)?;
        let seq = self.seq();
        let message = self.writer.begin(NFT_MSG_NEWTABLE, NLM_F_CREATE, seq);
        self.writer.text(NFTA_TABLE_NAME, TABLE);
        self.writer.u32(NFTA_TABLE_FLAGS, table.flags);
        if !comment.is_empty() {
            self.writer.octets(NFTA_TABLE_USERDATA, &comment);
        }
        self.writer.end(message);
        Ok(())
    }

    fn delete_table(&mut self) -> Result<(), String> {
        let seq = self.seq();
        let message = self.writer.adopt(self.scratch.write(&self.table, seq, MsgType::Del), 0);
        self.writer.end(message);
        Ok(())
    }

    fn chain(&mut self, def: &ChainDef, kind: MsgType) -> Result<(), String> {
        let seq = self.seq();
        let mut chain = Chain::new(name(&def.name)?, &self.table);
        if let Some(base) = &def.base {
            set_base(&mut chain, base)?;
        }
        // Without NONREC the kernel would delete the chain's rules with it.
        let flags = if kind == MsgType::Del { NLM_F_NONREC } else { 0 };
        let message = self.writer.adopt(self.scratch.write(&chain, seq, kind), flags);
        self.writer.end(message);
        Ok(())
    }

    /// Appends a rule, or, deleting one without a handle, removes all rules of the chain.
    fn rule(&mut self, chain: &str, program: &RuleProgram, kind: MsgType) -> Result<(), String> {
        let comment = comment(&program.comment)?;
        let seq = self.seq();
        let chain = Chain::new(name(chain)?, &self.table);
        let mut rule = Rule::new(&chain);
        add_expressions(&mut rule, &program.exprs)?;
        let message = self.writer.adopt(self.scratch.write(&rule, seq, kind), 0);
        if !comment.is_empty() {
            self.writer.octets(NFTA_RULE_USERDATA, &comment);
        }
        self.writer.end(message);
        Ok(())
    }

    fn add_set(&mut self, set: &SetDef) -> Result<(), String> {
        if let Some(what) = &set.foreign {
            return Err(format!("EOPNOTSUPP: {what}"));
        }
        name(&set.name)?;
        let concatenated = set.key.len() > 1;
        let mut flags = 0;
        for (flag, is_set) in [
            (NFT_SET_INTERVAL, set.interval),
            (NFT_SET_CONCAT, set.interval && concatenated),
            (NFT_SET_TIMEOUT, set.timeout),
            (NFT_SET_EVAL, set.dynamic),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let seq = self.seq();
        self.sets += 1;
        // EXCL: kernels before 6.0 would take another definition of a set that is there for the same one.
        let message = self.writer.begin(NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL, seq);
        self.writer.text(NFTA_SET_TABLE, TABLE);
        self.writer.text(NFTA_SET_NAME, &set.name);
        self.writer.u32(NFTA_SET_FLAGS, flags);
        self.writer.u32(NFTA_SET_KEY_TYPE, key_type_number(&set.key));
        self.writer.u32(NFTA_SET_KEY_LEN, key_octets(set));
        self.writer.u32(NFTA_SET_ID, self.sets);
        self.set_description(set, set.interval && concatenated);
        // nft 1.0.6 prints keys in host order wrongly unless it is told.
        if let [single] = set.key.as_slice() {
            let order: u32 = if single.host_order() { 1 } else { 2 };
            self.writer.octets(NFTA_SET_USERDATA, &[&[UDATA_SET_KEYBYTEORDER, 4][..], &order.to_ne_bytes()].concat());
        }
        if set.counter {
            let nest = self.writer.open(NFTA_SET_EXPR);
            self.writer.text(NFTA_EXPR_NAME, "counter");
            let data = self.writer.open(NFTA_EXPR_DATA);
            self.writer.close(data);
            self.writer.close(nest);
        }
        self.writer.end(message);
        Ok(())
    }

    /// The size, and for a concatenation of intervals the length of each field, without its padding.
    fn set_description(&mut self, set: &SetDef, concatenated_intervals: bool) {
        if set.size.is_none() && !concatenated_intervals {
            return;
        }
        let description = self.writer.open(NFTA_SET_DESC);
        if let Some(size) = set.size {
            self.writer.u32(NFTA_SET_DESC_SIZE, size);
        }
        if concatenated_intervals {
            let fields = self.writer.open(NFTA_SET_DESC_CONCAT);
            for field in &set.key {
                let item = self.writer.open(NFTA_LIST_ELEM);
                self.writer.u32(NFTA_SET_FIELD_LEN, field.octets());
                self.writer.close(item);
            }
            self.writer.close(fields);
        }
        self.writer.close(description);
    }

    fn delete_set(&mut self, set: &str) -> Result<(), String> {
        name(set)?;
        let seq = self.seq();
        let message = self.writer.begin(NFT_MSG_DELSET, 0, seq);
        self.writer.text(NFTA_SET_TABLE, TABLE);
        self.writer.text(NFTA_SET_NAME, set);
        self.writer.end(message);
        Ok(())
    }

    /// As many messages as it takes. None at all for no elements: a deletion without elements would empty the set.
    fn elements(&mut self, kind: u16, flags: u16, set: &SetDef, elements: &Elements) -> Result<(), String> {
        name(&set.name)?;
        self.writer.reserve(elements.len() * 48);
        let mut open: Option<(Mark, Mark)> = None;
        for (key, element) in elements {
            let (message, list) = match open {
                Some(open) => open,
                None => self.begin_elements(kind, flags, set),
            };
            self.element(set, key, element, kind == NFT_MSG_NEWSETELEM)?;
            open = Some((message, list));
            if self.writer.since(message) > FULL {
                self.end_elements(message, list);
                open = None;
            }
        }
        if let Some((message, list)) = open {
            self.end_elements(message, list);
        }
        Ok(())
    }

    fn begin_elements(&mut self, kind: u16, flags: u16, set: &SetDef) -> (Mark, Mark) {
        let seq = self.seq();
        let message = self.writer.begin(kind, flags, seq);
        self.writer.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
        self.writer.text(NFTA_SET_ELEM_LIST_SET, &set.name);
        (message, self.writer.open(NFTA_SET_ELEM_LIST_ELEMENTS))
    }

    fn end_elements(&mut self, message: Mark, list: Mark) {
        self.writer.close(list);
        self.writer.end(message);
    }

    fn element(&mut self, set: &SetDef, key: &Key, element: &Element, whole: bool) -> Result<(), String> {
        if key.len() > NFT_DATA_VALUE_MAXLEN {
            return Err("EINVAL: a key has at most 64 octets".into());
        }
        if key.is_empty() {
            // What holds everything else (`*`) has no key. It is never ours, but it has to be removed where somebody put it.
            let item = self.writer.open(NFTA_LIST_ELEM);
            self.writer.u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_CATCHALL);
            if whole {
                self.carried(element, End::Said)?;
            }
            self.writer.close(item);
            return Ok(());
        }
        let last = element.last.as_ref().unwrap_or(key);
        if last.len() != key.len() || last < key {
            return Err("EINVAL: an interval ends before it begins".into());
        }
        let tree = set.interval && set.key.len() == 1;
        // In a tree of intervals an element says where membership begins, and a flagged one where it ends: the value after the
        // last. After the last value of all there is none, and nft wants to be told so.
        let end = if tree { after(last) } else { None };
        let item = self.writer.open(NFTA_LIST_ELEM);
        self.writer.data(NFTA_SET_ELEM_KEY, key);
        if !tree && (set.interval || element.last.is_some()) {
            self.writer.data(NFTA_SET_ELEM_KEY_END, last);
        }
        if whole {
            self.carried(element, if tree && end.is_none() { End::Open } else { End::Said })?;
        }
        self.writer.close(item);
        if let Some(end) = end {
            let item = self.writer.open(NFTA_LIST_ELEM);
            self.writer.u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            self.writer.data(NFTA_SET_ELEM_KEY, &end);
            self.writer.close(item);
        }
        Ok(())
    }

    /// What an element carries besides its key.
    fn carried(&mut self, element: &Element, end: End) -> Result<(), String> {
        if let Some(timeout) = element.timeout_ms {
            self.writer.u64(NFTA_SET_ELEM_TIMEOUT, timeout);
        }
        let mut udata = comment(&element.comment)?;
        if end == End::Open && udata.len() + 6 <= NFT_USERDATA_MAXLEN {
            udata.extend_from_slice(&[UDATA_SET_ELEM_FLAGS, 4]);
            udata.extend_from_slice(&1u32.to_ne_bytes());
        }
        if !udata.is_empty() {
            self.writer.octets(NFTA_SET_ELEM_USERDATA, &udata);
        }
        if let Some((packets, octets)) = element.counted {
            self.counter(packets, octets);
        }
        Ok(())
    }

    fn counter(&mut self, packets: u64, octets: u64) {
        let nest = self.writer.open(NFTA_SET_ELEM_EXPR);
        self.writer.text(NFTA_EXPR_NAME, "counter");
        let data = self.writer.open(NFTA_EXPR_DATA);
        self.writer.u64(NFTA_COUNTER_BYTES, octets);
        self.writer.u64(NFTA_COUNTER_PACKETS, packets);
        self.writer.close(data);
        self.writer.close(nest);
    }
}

/// Whether the end of an interval is written down; behind the last value of all there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Said,
    Open,
}

fn set_base(chain: &mut Chain<'_>, base: &Base) -> Result<(), String> {
    let hook = match base.hook {
        Hook::Prerouting => nftnl::Hook::PreRouting,
        Hook::Input => nftnl::Hook::In,
        Hook::Forward => nftnl::Hook::Forward,
        Hook::Output => nftnl::Hook::Out,
        Hook::Postrouting => nftnl::Hook::PostRouting,
        Hook::Ingress => nftnl::Hook::Ingress,
    };
    chain.set_hook(hook, base.priority);
    chain.set_type(match base.kind.as_str() {
        "filter" => ChainType::Filter,
        "nat" => ChainType::Nat,
        "route" => ChainType::Route,
        other => return Err(format!("EOPNOTSUPP: there is no chain of type `{other}`")),
    });
    chain.set_policy(if base.accepts { Policy::Accept } else { Policy::Drop });
    Ok(())
}

/// The length of a key in octets. A field is padded to four octets when there are several.
fn key_octets(set: &SetDef) -> u32 {
    match set.key.as_slice() {
        [single] => single.octets(),
        fields => fields.iter().map(|field| field.octets().next_multiple_of(4)).sum(),
    }
}

/// nft's user data for a comment; empty for none.
fn comment(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.len() + 1 + 2 > NFT_USERDATA_MAXLEN {
        return Err("ENAMETOOLONG: a comment has at most 253 octets".into());
    }
    if text.contains('\0') {
        return Err("EINVAL: a comment holds a NUL".into());
    }
    Ok([&[UDATA_COMMENT, text.len() as u8 + 1][..], text.as_bytes(), &[0]].concat())
}

/// The next value of the same length; `None` after the last of all.
fn after(key: &Key) -> Option<Key> {
    let mut next = key.clone();
    for octet in next.iter_mut().rev() {
        let (value, overflowed) = octet.overflowing_add(1);
        *octet = value;
        if !overflowed {
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::message::messages;
    use super::*;
    use crate::ruleset::program::{Expr, KeyType, Register, Verdict};

    fn set(key: Vec<KeyType>, interval: bool) -> SetDef {
        SetDef { interval, ..SetDef::plain("pins", key) }
    }

    #[test]
    fn libnftnl_gets_the_name_of_our_table() {
        assert_eq!(TABLE_C.to_str(), Ok(TABLE));
    }

    #[test]
    fn a_batch_states_the_generation_and_asks_for_no_acknowledgement() {
        let rule = RuleProgram { exprs: vec![Expr::Counter, Expr::Verdict(Verdict::Accept)], comment: "one".into() };
        let ops = [
            Op::AddTable(TableDef { comment: "x".into(), flags: 0 }),
            Op::AddChain(ChainDef { name: "c".into(), base: None }),
            Op::AddRule { chain: "c".into(), rule },
            Op::FlushChain("c".into()),
            Op::DeleteChain("c".into()),
            Op::DeleteTable,
        ];
        let batch = Batch::encode(GenerationId(0x0102), &ops).unwrap();
        let messages = messages(&batch.octets).unwrap();
        assert_eq!(messages.first().unwrap().fields().unwrap().u32(NFNL_BATCH_GENID), Some(0x0102));
        assert!(messages.iter().all(|message| message.flags & NLM_F_ACK == 0 && message.flags & NLM_F_REQUEST != 0));
        assert_eq!(messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 0]);
        assert_eq!(batch.steps, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_hundred_thousand_elements_fill_messages_below_their_limit_in_one_step() {
        let elements: Elements = (0..100_000u32)
            .map(|number| (number.to_be_bytes().to_vec(), Element { comment: "api.example.org".into(), ..Element::default() }))
            .collect();
        let batch = Batch::encode(GenerationId(1), &[Op::AddElements { set: set(vec![KeyType::Ipv4Addr], true), elements }]).unwrap();
        let messages = messages(&batch.octets).unwrap();
        assert_eq!(messages.len(), batch.steps.len() + 2);
        assert!(batch.steps.len() > 100 && batch.steps.iter().all(|&step| step == 0));
        assert!(messages.iter().all(|message| message.payload.len() < 65_000 && message.fields().is_some()));
    }

    #[test]
    fn a_deletion_of_no_elements_sends_nothing_for_it_would_empty_the_set() {
        let op = Op::DeleteElements { set: set(vec![KeyType::Mark], false), elements: BTreeMap::new() };
        assert!(Batch::encode(GenerationId(1), &[op]).unwrap().is_empty());
    }

    #[test]
    fn the_value_after_the_last_does_not_exist() {
        assert_eq!(after(&vec![1, 255, 255]), Some(vec![2, 0, 0]));
        assert_eq!(after(&vec![255, 255]), None);
    }

    #[test]
    fn what_the_kernel_cannot_hold_is_refused_before_it_is_sent() {
        let rule = |exprs, comment: &str| Op::AddRule { chain: "c".into(), rule: RuleProgram { exprs, comment: comment.into() } };
        let from = Register(0);
        for (op, errno) in [
            (rule(vec![Expr::Foreign("quota".into())], ""), "EOPNOTSUPP"),
            (rule(vec![Expr::Counter; 101], ""), "E2BIG"),
            (rule(vec![], &"x".repeat(254)), "ENAMETOOLONG"),
            (rule(vec![], "a\0b"), "EINVAL"),
            (rule(vec![Expr::Lookup { set: "x".repeat(256), from, inverted: false }], ""), "ENAMETOOLONG"),
            (rule(vec![Expr::Verdict(Verdict::Jump("a\0b".into()))], ""), "EINVAL"),
            (rule(vec![Expr::Bitwise { from, into: from, mask: vec![0; 65], xor: vec![0; 65] }], ""), "EINVAL"),
            (rule(vec![Expr::Range { inverted: false, from, low: vec![], high: vec![1] }], ""), "EINVAL"),
            (Op::DeleteSet("x".repeat(300)), "ENAMETOOLONG"),
            (
                Op::AddElements {
                    set: set(vec![KeyType::Mark], true),
                    elements: [(vec![9], Element { last: Some(vec![8]), ..Element::default() })].into(),
                },
                "EINVAL",
            ),
        ] {
            let (step, why) = Batch::encode(GenerationId(1), std::slice::from_ref(&op)).unwrap_err();
            assert!(step == 0 && why.starts_with(errno), "{op:?}: {why}");
        }
    }
}
