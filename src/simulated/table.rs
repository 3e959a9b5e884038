//! Our table in memory, and one step of a transaction on it, with the errno the kernel gives where it cannot be done.

use std::collections::BTreeMap;

use crate::ruleset::program::{ChainDef, Element, Elements, Expr, Hook, Key, Op, RuleProgram, SetDef, TableDef, TableDump, Verdict};
use crate::world::Depth;

/// The kernel's size of a set that rules add to and that states none.
const DEFAULT_SIZE: u32 = 65_535;

/// The longest comment that fits nft's user data.
const LONGEST_COMMENT: usize = 253;

/// The table. INVARIANT: `expires_ms` of its elements is when they expire on the clock, not how long they have left.
#[derive(Debug, Clone)]
pub struct Table(TableDump);

/// Carries out one step; whether the kernel would call it a change. The error is the name of an errno.
pub fn step(table: &mut Option<Table>, op: &Op, now: u64) -> Result<bool, &'static str> {
    match (op, table.as_mut()) {
        (Op::AddTable(def), None) => {
            comment_fits(&def.comment)?;
            *table = Some(Table(TableDump { table: def.clone(), chains: Vec::new(), sets: BTreeMap::new(), foreign: Vec::new() }));
            Ok(true)
        }
        (Op::AddTable(def), Some(found)) => Ok(found.update(def)),
        (Op::DeleteTable, Some(_)) => {
            *table = None;
            Ok(true)
        }
        (_, None) => Err("ENOENT"),
        (Op::AddChain(chain), Some(found)) => found.add_chain(chain),
        (Op::DeleteChain(name), Some(found)) => found.delete_chain(name),
        (Op::FlushChain(name), Some(found)) => found.flush_chain(name),
        (Op::AddRule { chain, rule }, Some(found)) => found.add_rule(chain, rule),
        (Op::AddSet(set), Some(found)) => found.add_set(set),
        (Op::DeleteSet(name), Some(found)) => found.delete_set(name),
        (Op::AddElements { set, elements }, Some(found)) => found.add_elements(&set.name, elements, now),
        (Op::DeleteElements { set, elements }, Some(found)) => found.delete_elements(&set.name, elements, now),
    }
}

/// The jumps that a packet may be deep in (`NFT_JUMP_STACK_SIZE`).
const JUMPS: usize = 16;

impl Table {
    /// What the kernel checks of a whole table: jumps that lead back, and expressions where packets of a hook must not meet them.
    pub fn validate(&self) -> Result<(), &'static str> {
        for (def, _) in &self.0.chains {
            if let Some(base) = &def.base {
                self.walk(&def.name, base.hook, 0)?;
            }
        }
        Ok(())
    }

    fn walk(&self, chain: &str, hook: Hook, depth: usize) -> Result<(), &'static str> {
        if depth == JUMPS {
            return Err("EMLINK");
        }
        let rules = self.0.chains.iter().filter(|(def, _)| def.name == chain).flat_map(|(_, rules)| rules);
        for expr in rules.flat_map(|rule| &rule.exprs) {
            let fits = match expr {
                Expr::SocketCgroup { .. } => matches!(hook, Hook::Prerouting | Hook::Input | Hook::Output),
                Expr::Reject { .. } => hook != Hook::Postrouting,
                _ => true,
            };
            if !fits {
                return Err("EOPNOTSUPP");
            }
            if let Some(next) = target(expr) {
                self.walk(next, hook, depth + 1)?;
            }
        }
        Ok(())
    }

    /// The table of a dump that was made at this time.
    pub fn from_dump(mut dump: TableDump, now: u64) -> Table {
        for element in dump.sets.values_mut().flat_map(|(_, elements)| elements.values_mut()) {
            element.expires_ms = element.expires_ms.map(|left| now + left);
        }
        Table(dump)
    }

    /// What a dump shows at this time: no element whose time is over.
    pub fn dump(&self, depth: Depth, now: u64) -> TableDump {
        let mut dump = self.0.clone();
        for (set, elements) in dump.sets.values_mut() {
            let wanted = match depth {
                Depth::Rules => false,
                Depth::Pins => !self.0.rules_add_to(set),
                Depth::Everything => true,
            };
            elements.retain(|_, element| wanted && is_alive(element, now));
            for element in elements.values_mut() {
                element.expires_ms = element.expires_ms.map(|end| end - now);
            }
        }
        dump
    }

    /// Adds to the counter of an element; whether there is one.
    pub fn count(&mut self, set: &str, key: &Key, packets: u64, octets: u64, now: u64) -> bool {
        let element = self.0.sets.get_mut(set).and_then(|(_, elements)| elements.get_mut(key)).filter(|element| is_alive(element, now));
        match element.and_then(|element| element.counted.as_mut()) {
            Some(counted) => {
                *counted = (counted.0 + packets, counted.1 + octets);
                true
            }
            None => false,
        }
    }

    /// The names of its sets.
    pub fn set_names(&self) -> Vec<String> {
        self.0.sets.keys().cloned().collect()
    }

    /// What a rule does that updates a set; whether there was room.
    pub fn update_element(&mut self, set: &str, key: &Key, lives_ms: u64, octets: u64, now: u64) -> bool {
        let Some((def, elements)) = self.0.sets.get_mut(set) else { return false };
        elements.retain(|_, element| is_alive(element, now));
        let is_full = elements.len() >= def.size.unwrap_or(DEFAULT_SIZE) as usize;
        if is_full && !elements.contains_key(key) {
            return false;
        }
        let element = elements.entry(key.clone()).or_default();
        (element.timeout_ms, element.expires_ms) = (Some(lives_ms), Some(now + lives_ms));
        let (packets, all) = element.counted.unwrap_or_default();
        element.counted = Some((packets + 1, all + octets));
        true
    }

    /// Flags change, the comment never does.
    fn update(&mut self, def: &TableDef) -> bool {
        let changed = self.0.table.flags != def.flags;
        self.0.table.flags = def.flags;
        changed
    }

    fn rules(&self) -> impl Iterator<Item = &RuleProgram> {
        self.0.chains.iter().flat_map(|(_, rules)| rules)
    }

    fn chain(&mut self, name: &str) -> Result<&mut (ChainDef, Vec<RuleProgram>), &'static str> {
        self.0.chains.iter_mut().find(|(def, _)| def.name == name).ok_or("ENOENT")
    }

    fn add_chain(&mut self, def: &ChainDef) -> Result<bool, &'static str> {
        if let Some(base) = &def.base
            && !["filter", "nat", "route"].contains(&base.kind.as_str())
        {
            return Err("EOPNOTSUPP");
        }
        let Ok((found, _)) = self.chain(&def.name) else {
            self.0.chains.push((def.clone(), Vec::new()));
            return Ok(true);
        };
        match (&mut found.base, &def.base) {
            (_, None) => {}
            (Some(old), Some(new)) if (&old.kind, old.hook, old.priority) == (&new.kind, new.hook, new.priority) => {
                old.accepts = new.accepts;
            }
            (_, Some(_)) => return Err("EEXIST"),
        }
        Ok(true)
    }

    fn delete_chain(&mut self, name: &str) -> Result<bool, &'static str> {
        let (_, rules) = self.chain(name)?;
        if !rules.is_empty() || self.rules().flat_map(|rule| &rule.exprs).any(|expr| target(expr) == Some(name)) {
            return Err("EBUSY");
        }
        self.0.chains.retain(|(def, _)| def.name != name);
        Ok(true)
    }

    fn flush_chain(&mut self, name: &str) -> Result<bool, &'static str> {
        let (_, rules) = self.chain(name)?;
        let changed = !rules.is_empty();
        rules.clear();
        Ok(changed)
    }

    fn add_rule(&mut self, chain: &str, rule: &RuleProgram) -> Result<bool, &'static str> {
        comment_fits(&rule.comment)?;
        self.chain(chain)?;
        let mut kept = rule.clone();
        for expr in &mut kept.exprs {
            self.admit(expr)?;
        }
        self.chain(chain)?.1.push(kept);
        Ok(true)
    }

    /// Refuses what the kernel refuses, and brings the rest into the form that it keeps.
    fn admit(&self, expr: &mut Expr) -> Result<(), &'static str> {
        if let Some(name) = target(expr) {
            let (chain, _) = self.0.chains.iter().find(|(def, _)| def.name == name).ok_or("ENOENT")?;
            return if chain.base.is_some() { Err("EOPNOTSUPP") } else { Ok(()) };
        }
        match expr {
            Expr::Foreign(_) => Err("EOPNOTSUPP"),
            Expr::Lookup { set, .. } => self.0.sets.contains_key(set).then_some(()).ok_or("ENOENT"),
            Expr::Limit { burst: burst @ 0, kind: 0, .. } => {
                *burst = 5;
                Ok(())
            }
            Expr::Update { set, timeout_ms, element, .. } => {
                let (def, _) = self.0.sets.get(set).ok_or("ENOENT")?;
                if !def.dynamic || (*timeout_ms > 0 && !def.timeout) || (def.counter && !element.iter().all(|e| *e == Expr::Counter)) {
                    return Err("EOPNOTSUPP");
                }
                if def.counter {
                    element.clear();
                }
                element.iter_mut().try_for_each(|inner| self.admit(inner))
            }
            _ => Ok(()),
        }
    }

    fn add_set(&mut self, set: &SetDef) -> Result<bool, &'static str> {
        if set.foreign.is_some() {
            return Err("EOPNOTSUPP");
        }
        if self.0.sets.contains_key(&set.name) {
            return Err("EEXIST");
        }
        let size = set.size.or(set.dynamic.then_some(DEFAULT_SIZE));
        self.0.sets.insert(set.name.clone(), (SetDef { size, ..set.clone() }, Elements::new()));
        Ok(true)
    }

    fn delete_set(&mut self, name: &str) -> Result<bool, &'static str> {
        let uses = |expr: &Expr| matches!(expr, Expr::Lookup { set, .. } | Expr::Update { set, .. } if set == name);
        if !self.0.sets.contains_key(name) {
            return Err("ENOENT");
        }
        if self.rules().flat_map(|rule| &rule.exprs).any(uses) {
            return Err("EBUSY");
        }
        self.0.sets.remove(name);
        Ok(true)
    }

    fn add_elements(&mut self, set: &str, elements: &Elements, now: u64) -> Result<bool, &'static str> {
        if elements.is_empty() {
            return Ok(false);
        }
        let (def, kept) = self.0.sets.get_mut(set).ok_or("ENOENT")?;
        kept.retain(|_, element| is_alive(element, now));
        let mut changed = false;
        for (key, element) in elements {
            comment_fits(&element.comment)?;
            if key.len() != key_octets(def) || (element.timeout_ms.is_some() && !def.timeout) || (element.last.is_some() && !def.interval) {
                return Err("EINVAL");
            }
            let mut element = element.clone();
            if def.interval && element.last.is_none() {
                element.last = Some(key.clone());
            }
            if element.last.as_ref().is_some_and(|last| last < key) {
                return Err("EINVAL");
            }
            match kept.get(key) {
                Some(same) if same.last == element.last => continue,
                _ if def.interval && overlaps(def, kept, key, element.last.as_ref().unwrap_or(key)) => return Err("EEXIST"),
                _ => {}
            }
            if def.size.is_some_and(|size| kept.len() >= size as usize) {
                return Err("ENFILE");
            }
            element.expires_ms = element.timeout_ms.map(|timeout| now + timeout);
            if def.counter {
                element.counted.get_or_insert((0, 0));
            }
            kept.insert(key.clone(), element);
            changed = true;
        }
        Ok(changed)
    }

    fn delete_elements(&mut self, set: &str, elements: &Elements, now: u64) -> Result<bool, &'static str> {
        if elements.is_empty() {
            return Ok(false);
        }
        let (def, kept) = self.0.sets.get_mut(set).ok_or("ENOENT")?;
        for (key, element) in elements {
            let last = if def.interval { Some(element.last.as_ref().unwrap_or(key)) } else { None };
            match kept.get(key) {
                Some(found) if is_alive(found, now) && found.last.as_ref() == last => kept.remove(key),
                _ => return Err("ENOENT"),
            };
        }
        Ok(true)
    }
}

/// The chain that an expression goes to.
fn target(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
        _ => None,
    }
}

fn is_alive(element: &Element, now: u64) -> bool {
    element.expires_ms.is_none_or(|end| end > now)
}

fn comment_fits(comment: &str) -> Result<(), &'static str> {
    if comment.len() > LONGEST_COMMENT { Err("ENAMETOOLONG") } else { Ok(()) }
}

fn key_octets(set: &SetDef) -> usize {
    match set.key.as_slice() {
        [single] => single.octets() as usize,
        fields => fields.iter().map(|field| field.octets().next_multiple_of(4) as usize).sum(),
    }
}

/// Whether an interval shares a value with one that is there. Intervals of one field are sorted, so its neighbours tell; of several
/// fields each pair is compared field by field.
fn overlaps(set: &SetDef, kept: &Elements, key: &Key, last: &Key) -> bool {
    if set.key.len() == 1 {
        let below = kept.range(..=key.clone()).next_back().is_some_and(|(start, element)| element.last.as_ref().unwrap_or(start) >= key);
        return below || kept.range(key.clone()..=last.clone()).next().is_some();
    }
    kept.iter().any(|(start, element)| {
        let end = element.last.as_ref().unwrap_or(start);
        let mut offset = 0;
        set.key.iter().all(|field| {
            let width = field.octets().next_multiple_of(4) as usize;
            let span = offset..offset + width;
            offset += width;
            start.get(span.clone()) <= last.get(span.clone()) && key.get(span.clone()) <= end.get(span)
        })
    })
}
