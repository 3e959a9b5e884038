//! Sets and their elements as the kernel dumps them.
//!
//! Timeouts pass through jiffies in the kernel: whole seconds come back as they were given whatever `CONFIG_HZ` is, single
//! milliseconds may come back rounded down.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::super::message::{Fields, Message, attributes, text, udata};
use super::super::uapi::*;
use super::expression::{counted, expression, expressions};
use super::optional;
use crate::ruleset::program::{Element, Elements, Expr, Key, KeyType, SetDef, TABLE};

/// One set; nothing when it is another table's.
pub fn set(message: &Message<'_>) -> Option<Option<SetDef>> {
    let fields = message.fields()?;
    if !fields.is_text(NFTA_SET_TABLE, TABLE) {
        return Some(None);
    }
    let flags = optional(&fields, NFTA_SET_FLAGS)?.unwrap_or(0);
    let mut foreign = foreign_flags(flags);
    for (kind, what) in [
        (NFTA_SET_TIMEOUT, "a default timeout"),
        (NFTA_SET_GC_INTERVAL, "a collection interval"),
        (NFTA_SET_OBJ_TYPE, "objects"),
        (NFTA_SET_DATA_TYPE, "data"),
    ] {
        if fields.has(kind) {
            foreign.push(what.into());
        }
    }
    if optional(&fields, NFTA_SET_POLICY)?.unwrap_or(0) != 0 {
        foreign.push("a policy of memory".into());
    }
    let carried = carried(&fields)?;
    let counter = carried == [Expr::Counter];
    if !counter && !carried.is_empty() {
        foreign.push("statements on each element".into());
    }
    let (size, lengths) = description(&fields)?;
    Some(Some(SetDef {
        name: fields.text(NFTA_SET_NAME)?,
        key: key(fields.u32(NFTA_SET_KEY_TYPE).unwrap_or(0), fields.u32(NFTA_SET_KEY_LEN)?, &lengths),
        interval: flags & NFT_SET_INTERVAL != 0,
        timeout: flags & NFT_SET_TIMEOUT != 0,
        dynamic: flags & NFT_SET_EVAL != 0,
        counter,
        size,
        foreign: (!foreign.is_empty()).then(|| foreign.join(", ")),
    }))
}

/// One set with its handle; nothing when it is another table's.
pub fn set_with_handle(message: &Message<'_>) -> Option<Option<(SetDef, u64)>> {
    let Some(set) = set(message)? else { return Some(None) };
    Some(Some((set, message.fields()?.u64(NFTA_SET_HANDLE)?)))
}

fn foreign_flags(flags: u32) -> Vec<String> {
    const KNOWN: u32 = NFT_SET_INTERVAL | NFT_SET_TIMEOUT | NFT_SET_EVAL | NFT_SET_CONCAT | NFT_SET_EXPR;
    const NAMED: [(u32, &str); 4] =
        [(NFT_SET_ANONYMOUS, "anonymous"), (NFT_SET_CONSTANT, "constant"), (NFT_SET_MAP, "a map"), (NFT_SET_OBJECT, "a map of objects")];
    let mut words: Vec<String> = NAMED.iter().filter(|row| flags & row.0 != 0).map(|row| row.1.to_owned()).collect();
    let rest = NAMED.iter().fold(flags & !KNOWN, |rest, row| rest & !row.0);
    if rest != 0 {
        words.push(format!("flags {rest:#x}"));
    }
    words
}

/// The expressions that every element carries.
fn carried(fields: &Fields<'_>) -> Option<Vec<Expr>> {
    let mut carried = Vec::new();
    if let Some(single) = fields.octets(NFTA_SET_EXPR) {
        carried.push(expression(single)?);
    }
    if let Some(list) = fields.octets(NFTA_SET_EXPRESSIONS) {
        carried.extend(expressions(list)?);
    }
    Some(carried)
}

/// The size, and the lengths of the fields of a concatenation where the kernel knows them.
fn description(fields: &Fields<'_>) -> Option<(Option<u32>, Vec<u32>)> {
    if !fields.has(NFTA_SET_DESC) {
        return Some((None, Vec::new()));
    }
    let description = fields.nest(NFTA_SET_DESC)?;
    let mut lengths = Vec::new();
    if let Some(list) = description.octets(NFTA_SET_DESC_CONCAT) {
        for (_, item) in attributes(list)? {
            lengths.push(Fields::parse(item)?.u32(NFTA_SET_FIELD_LEN)?);
        }
    }
    Some((optional(&description, NFTA_SET_DESC_SIZE)?, lengths))
}

/// The fields of a key. nft's number of a concatenation has six bits a field; a number that does not fit the key's length, or has
/// a field of unknown length, is one foreign type.
fn key(number: u32, octets: u32, lengths: &[u32]) -> Vec<KeyType> {
    if number < 64 {
        return vec![KeyType::from_number(number, octets)];
    }
    let mut fields = Vec::new();
    let mut rest = number;
    while rest > 0 {
        fields.push(rest & 63);
        rest >>= 6;
    }
    fields.reverse();
    let known: Vec<KeyType> = fields
        .iter()
        .enumerate()
        .map(|(position, &field)| match lengths.get(position) {
            Some(&length) => KeyType::from_number(field, length),
            None => [1, 2, 4, 8, 16]
                .into_iter()
                .map(|length| KeyType::from_number(field, length))
                .find(|found| !matches!(found, KeyType::Foreign { .. }))
                .unwrap_or(KeyType::Foreign { number: field, octets: 0 }),
        })
        .collect();
    let fits = known.iter().map(|field| u64::from(field.octets()).next_multiple_of(4)).sum::<u64>() == u64::from(octets)
        && known.iter().all(|field| field.octets() > 0)
        && (lengths.is_empty() || lengths.len() == known.len());
    if fits { known } else { vec![KeyType::Foreign { number, octets }] }
}

/// Whether a set kept its order while it was dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It did: every element came once.
    Kept,
    /// It did not: some came twice, and some may be missing.
    Changed,
}

/// The elements of one set while its messages come in.
pub struct ElementParts {
    interval: bool,
    tree: bool,
    /// In the kernel's order, which is that of a hash: sorted once, at the end.
    found: Vec<(Key, Element)>,
    ends: BTreeSet<Key>,
    strange: usize,
}

impl ElementParts {
    /// None yet.
    pub fn new(set: &SetDef) -> ElementParts {
        ElementParts {
            interval: set.interval,
            tree: set.interval && set.key.len() == 1,
            found: Vec::new(),
            ends: BTreeSet::new(),
            strange: 0,
        }
    }

    /// Takes those of one message; `None` when it is malformed.
    pub fn take(&mut self, message: &Message<'_>) -> Option<()> {
        let fields = message.fields()?;
        let Some(list) = fields.octets(NFTA_SET_ELEM_LIST_ELEMENTS) else { return Some(()) };
        for (_, octets) in attributes(list)? {
            self.element(&Fields::parse(octets)?)?;
        }
        Some(())
    }

    fn element(&mut self, fields: &Fields<'_>) -> Option<()> {
        let flags = optional(fields, NFTA_SET_ELEM_FLAGS)?.unwrap_or(0);
        // What matches everything else (`*`) has no key of its own.
        let catch_all = !fields.has(NFTA_SET_ELEM_KEY);
        let key = if catch_all { Key::new() } else { datum(fields, NFTA_SET_ELEM_KEY)? };
        if self.tree && flags & NFT_SET_ELEM_INTERVAL_END != 0 {
            self.ends.insert(key);
            return Some(());
        }
        let last = match fields.has(NFTA_SET_ELEM_KEY_END) {
            true => Some(datum(fields, NFTA_SET_ELEM_KEY_END)?),
            false => (self.interval && !catch_all).then(|| key.clone()),
        };
        let element = Element {
            last,
            timeout_ms: milliseconds(fields, NFTA_SET_ELEM_TIMEOUT)?.filter(|&timeout| timeout > 0),
            expires_ms: milliseconds(fields, NFTA_SET_ELEM_EXPIRATION)?,
            comment: fields.octets(NFTA_SET_ELEM_USERDATA).and_then(|octets| udata(octets, UDATA_COMMENT)).map(text).unwrap_or_default(),
            counted: self.statements(fields)?,
        };
        self.found.push((key, element));
        Some(())
    }

    /// The counter of an element. Any other statement makes an element hold a packet only sometimes, and is remembered.
    fn statements(&mut self, fields: &Fields<'_>) -> Option<Option<(u64, u64)>> {
        let mut counter = None;
        let single = fields.octets(NFTA_SET_ELEM_EXPR).map(|octets| (0, octets));
        let list = attributes(fields.octets(NFTA_SET_ELEM_EXPRESSIONS).unwrap_or_default())?;
        for (_, octets) in single.into_iter().chain(list) {
            match counted(octets) {
                Some(found) => counter = Some(found),
                None => self.strange += 1,
            }
        }
        Some(counter)
    }

    /// How many have come.
    pub fn count(&self) -> usize {
        self.found.len()
    }

    /// What is strange about the elements, in words. Elements that rules add carry what the rules say.
    pub fn strange(&self) -> Option<String> {
        (self.strange > 0).then(|| format!("a statement on {} of its elements", self.strange))
    }

    /// All elements, and whether each came once. In a tree of intervals one lasts until the next boundary, whichever kind it is.
    ///
    /// A dump is made of chunks, each of which goes through the set from the start and passes over as many elements as came before. While
    /// the kernel makes the hash of a growing set larger, which it does on its own time after a transaction, the order is another from
    /// chunk to chunk: elements come twice, and as many never. The generation does not tell (seen on 6.18, at 100 000 elements).
    pub fn into_elements(self) -> (Elements, Order) {
        let all = self.found.len();
        let mut elements: Elements = self.found.into_iter().collect();
        let order = if elements.len() == all { Order::Kept } else { Order::Changed };
        if self.tree {
            let starts: BTreeSet<Key> = elements.keys().filter(|key| !key.is_empty()).cloned().collect();
            for (key, element) in elements.iter_mut().filter(|(key, _)| !key.is_empty()) {
                let beyond = (Bound::Excluded(key), Bound::Unbounded);
                let end = self.ends.range::<Key, _>(beyond).next();
                let start = starts.range::<Key, _>(beyond).next();
                let boundary = match (end, start) {
                    (Some(end), Some(start)) => Some(end.min(start)),
                    (one, other) => one.or(other),
                };
                element.last = Some(boundary.map_or_else(|| vec![0xff; key.len()], before));
            }
        }
        (elements, order)
    }
}

fn datum(fields: &Fields<'_>, kind: u16) -> Option<Key> {
    fields.nest(kind)?.octets(NFTA_DATA_VALUE).map(<[u8]>::to_vec)
}

fn milliseconds(fields: &Fields<'_>, kind: u16) -> Option<Option<u64>> {
    if fields.has(kind) { fields.u64(kind).map(Some) } else { Some(None) }
}

/// The value before, of the same length; the first of all stays.
fn before(key: &Key) -> Key {
    let mut previous = key.clone();
    for octet in previous.iter_mut().rev() {
        let (value, borrowed) = octet.overflowing_sub(1);
        *octet = value;
        if !borrowed {
            return previous;
        }
    }
    key.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::program::key_type_number;
    use crate::system::netlink::message::Writer;

    #[test]
    fn a_key_number_gives_the_fields_back() {
        use KeyType::*;
        for fields in [vec![Ipv4Addr], vec![Uid, Ipv6Addr, InetProto, InetService], vec![CgroupV2, Mark], vec![Icmpv6Type]] {
            let octets = match fields.as_slice() {
                [single] => single.octets(),
                several => several.iter().map(|field| field.octets().next_multiple_of(4)).sum(),
            };
            assert_eq!(key(key_type_number(&fields), octets, &[]), fields);
        }
    }

    #[test]
    fn a_key_number_that_does_not_fit_its_length_is_foreign() {
        let number = key_type_number(&[KeyType::Ipv4Addr, KeyType::InetService]);
        assert_eq!(key(number, 12, &[]), [KeyType::Foreign { number, octets: 12 }]);
        assert_eq!(key(number, 8, &[4, 2]), [KeyType::Ipv4Addr, KeyType::InetService]);
        assert_eq!(key(number, 8, &[4, 4]), [KeyType::Ipv4Addr, KeyType::Foreign { number: 13, octets: 4 }]);
        assert_eq!(key(number, 8, &[4]), [KeyType::Foreign { number, octets: 8 }]);
        assert_eq!(key(0, 5, &[]), [KeyType::Foreign { number: 0, octets: 5 }]);
    }

    /// nft writes a statement on an element only where the set has one; the kernel takes it anywhere.
    #[test]
    fn a_statement_on_an_element_that_is_no_counter_is_not_overlooked() {
        let of = |statement: &str| {
            let mut writer = Writer::default();
            let list = writer.open(NFTA_SET_ELEM_LIST_ELEMENTS);
            let item = writer.open(NFTA_LIST_ELEM);
            writer.data(NFTA_SET_ELEM_KEY, &[7]);
            let nest = writer.open(NFTA_SET_ELEM_EXPR);
            writer.text(NFTA_EXPR_NAME, statement);
            let data = writer.open(NFTA_EXPR_DATA);
            writer.u64(NFTA_COUNTER_BYTES, 1);
            writer.u64(NFTA_COUNTER_PACKETS, 1);
            writer.close(data);
            writer.close(nest);
            writer.close(item);
            writer.close(list);
            let payload = [vec![0; 4], writer.into_octets()].concat();
            let set = SetDef::plain("s", vec![KeyType::InetProto]);
            let mut parts = ElementParts::new(&set);
            parts.take(&Message { kind: 0, flags: 0, seq: 0, payload: &payload }).unwrap();
            parts.strange()
        };
        assert_eq!(of("counter"), None);
        assert_eq!(of("limit").as_deref(), Some("a statement on 1 of its elements"));
    }

    #[test]
    fn an_element_that_comes_twice_says_that_others_may_not_have_come() {
        let parts = |keys: &[u8]| ElementParts {
            interval: false,
            tree: false,
            found: keys.iter().map(|key| (vec![*key], Element::default())).collect(),
            ends: BTreeSet::new(),
            strange: 0,
        };
        assert_eq!(parts(&[3, 1, 2]).into_elements().1, Order::Kept);
        assert_eq!(parts(&[3, 1, 2, 3]).into_elements().1, Order::Changed);
    }

    #[test]
    fn an_interval_lasts_until_the_next_boundary() {
        let start = |key: u8| (vec![key], Element::default());
        let parts = ElementParts {
            interval: true,
            tree: true,
            found: [start(200), start(10), start(30), start(20)].into(),
            ends: [vec![0], vec![15], vec![20], vec![40]].into(),
            strange: 0,
        };
        let intervals: Vec<(u8, u8)> =
            parts.into_elements().0.into_iter().map(|(key, element)| (key[0], element.last.unwrap()[0])).collect();
        assert_eq!(intervals, [(10, 14), (20, 29), (30, 39), (200, 255)]);
    }
}
