//! Netlink messages and their attributes as octets: a reader that is total, and a writer. Not what they mean.
//!
//! Headers are in host order, nf_tables' numbers in network order. A length that does not fit makes the reader answer
//! `None`; it never panics and never guesses.

use super::uapi::*;

/// One message as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Of the message that it answers.
    pub seq: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after the `nfgenmsg`.
    pub fn fields(&self) -> Option<Fields<'a>> {
        Fields::parse(self.payload.get(4..)?)
    }
}

/// The messages of one datagram; `None` when it is malformed.
pub fn messages(mut octets: &[u8]) -> Option<Vec<Message<'_>>> {
    let mut found = Vec::new();
    while !octets.is_empty() {
        let length = usize::try_from(u32::from_ne_bytes(array(octets.get(0..4)?)?)).ok()?;
        found.push(Message {
            kind: u16::from_ne_bytes(array(octets.get(4..6)?)?),
            flags: u16::from_ne_bytes(array(octets.get(6..8)?)?),
            seq: u32::from_ne_bytes(array(octets.get(8..12)?)?),
            payload: octets.get(16..length)?,
        });
        octets = octets.get(aligned(length)..).unwrap_or(&[]);
    }
    Some(found)
}

/// The attributes of one nest in their order, types without flag bits; `None` when it is malformed.
pub fn attributes(mut octets: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    while let Some((kind, payload, rest)) = next_attribute(octets)? {
        found.push((kind, payload));
        octets = rest;
    }
    Some(found)
}

/// The attributes of one nest by type. All of nf_tables' types are below 32; of a repeated one the last counts, as in the kernel.
pub struct Fields<'a> {
    slots: [Option<&'a [u8]>; 32],
    beyond: bool,
}

impl<'a> Fields<'a> {
    /// Reads a nest; `None` when it is malformed.
    pub fn parse(mut octets: &'a [u8]) -> Option<Fields<'a>> {
        let mut fields = Fields { slots: [None; 32], beyond: false };
        while let Some((kind, payload, rest)) = next_attribute(octets)? {
            match fields.slots.get_mut(usize::from(kind)) {
                Some(slot) => *slot = Some(payload),
                None => fields.beyond = true,
            }
            octets = rest;
        }
        Some(fields)
    }

    /// Whether nothing but attributes of these types is there.
    pub fn only(&self, kinds: &[u16]) -> bool {
        let known = |kind: usize| kinds.iter().any(|&listed| usize::from(listed) == kind);
        !self.beyond && self.slots.iter().enumerate().all(|(kind, slot)| slot.is_none() || known(kind))
    }

    /// The octets of one.
    pub fn octets(&self, kind: u16) -> Option<&'a [u8]> {
        self.slots.get(usize::from(kind)).copied().flatten()
    }

    /// Whether it is there.
    pub fn has(&self, kind: u16) -> bool {
        self.octets(kind).is_some()
    }

    /// A number of one octet.
    pub fn u8(&self, kind: u16) -> Option<u8> {
        self.number(kind).map(u8::from_be_bytes)
    }

    /// A number of two octets.
    pub fn u16(&self, kind: u16) -> Option<u16> {
        self.number(kind).map(u16::from_be_bytes)
    }

    /// A number of four octets.
    pub fn u32(&self, kind: u16) -> Option<u32> {
        self.number(kind).map(u32::from_be_bytes)
    }

    /// A number of eight octets.
    pub fn u64(&self, kind: u16) -> Option<u64> {
        self.number(kind).map(u64::from_be_bytes)
    }

    /// A text, up to its NUL; what is not UTF-8 in it becomes U+FFFD, which no name of ours holds.
    pub fn text(&self, kind: u16) -> Option<String> {
        self.octets(kind).map(text)
    }

    /// Whether it is this text.
    pub fn is_text(&self, kind: u16, wanted: &str) -> bool {
        self.octets(kind).is_some_and(|octets| octets.split(|&octet| octet == 0).next() == Some(wanted.as_bytes()))
    }

    /// A nest.
    pub fn nest(&self, kind: u16) -> Option<Fields<'a>> {
        Fields::parse(self.octets(kind)?)
    }

    fn number<const N: usize>(&self, kind: u16) -> Option<[u8; N]> {
        array(self.octets(kind)?)
    }
}

/// The text before the first NUL, or all of it.
pub fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets.split(|&octet| octet == 0).next().unwrap_or_default()).into_owned()
}

/// One entry of nft's user data, which is a list of (type, length, value) with lengths of one octet.
pub fn udata(mut octets: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, length, rest @ ..] = octets {
        let value = rest.get(..usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        octets = rest.get(usize::from(*length)..)?;
    }
    None
}

/// A nest's first attribute and what follows it; `Some(None)` at the end.
#[allow(clippy::type_complexity)]
fn next_attribute(octets: &[u8]) -> Option<Option<(u16, &[u8], &[u8])>> {
    if octets.is_empty() {
        return Some(None);
    }
    let length = usize::from(u16::from_ne_bytes(array(octets.get(0..2)?)?));
    let kind = u16::from_ne_bytes(array(octets.get(2..4)?)?) & NLA_TYPE_MASK;
    let payload = octets.get(4..length)?;
    Some(Some((kind, payload, octets.get(aligned(length)..).unwrap_or(&[]))))
}

fn array<const N: usize>(octets: &[u8]) -> Option<[u8; N]> {
    octets.try_into().ok()
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Writes messages one after another.
#[derive(Debug, Default)]
pub struct Writer {
    octets: Vec<u8>,
}

/// Where a message or a nest began.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl Writer {
    /// Everything written.
    pub fn into_octets(self) -> Vec<u8> {
        self.octets
    }

    /// How many octets were written since.
    pub fn since(&self, mark: Mark) -> usize {
        self.octets.len() - mark.0
    }

    /// Makes room in advance.
    pub fn reserve(&mut self, octets: usize) {
        self.octets.reserve(octets);
    }

    /// Begins a message of nf_tables about something in a table of this family.
    pub fn begin(&mut self, kind: u16, flags: u16, seq: u32) -> Mark {
        self.begin_raw(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, seq, NFPROTO_INET, 0)
    }

    /// Begins a message of any type.
    pub fn begin_raw(&mut self, kind: u16, flags: u16, seq: u32, family: u8, resource: u16) -> Mark {
        let [high, low] = resource.to_be_bytes();
        self.begin_with(kind, flags, seq, &[family, 0, high, low])
    }

    /// Begins a message of any type with the header of its own that its subsystem wants.
    pub fn begin_with(&mut self, kind: u16, flags: u16, seq: u32, header: &[u8]) -> Mark {
        let mark = Mark(self.octets.len());
        self.octets.extend_from_slice(&[0; 4]);
        self.octets.extend_from_slice(&kind.to_ne_bytes());
        self.octets.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.octets.extend_from_slice(&seq.to_ne_bytes());
        self.octets.extend_from_slice(&[0; 4]);
        self.octets.extend_from_slice(header);
        mark
    }

    /// Octets as they are: a structure, or attributes that were written before. INVARIANT: a multiple of four of them.
    pub fn verbatim(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    /// Ends a message. Its length includes everything since it began.
    pub fn end(&mut self, mark: Mark) {
        let length = (self.octets.len() - mark.0) as u32;
        self.octets[mark.0..mark.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Takes a whole message that somebody else wrote, begins it anew, and leaves it open for more attributes.
    pub fn adopt(&mut self, message: &[u8], extra_flags: u16) -> Mark {
        let mark = Mark(self.octets.len());
        self.octets.extend_from_slice(message);
        let flags = u16::from_ne_bytes([message[6], message[7]]);
        let flags = (flags | extra_flags) & !NLM_F_ACK;
        self.octets[mark.0 + 6..mark.0 + 8].copy_from_slice(&flags.to_ne_bytes());
        mark
    }

    /// An attribute. INVARIANT: its payload is below 64 KiB, because `encode` has checked names, data and comments.
    pub fn octets(&mut self, kind: u16, payload: &[u8]) {
        self.octets.extend_from_slice(&((payload.len() + 4) as u16).to_ne_bytes());
        self.octets.extend_from_slice(&kind.to_ne_bytes());
        self.octets.extend_from_slice(payload);
        self.octets.resize(aligned(self.octets.len()), 0);
    }

    /// A number of four octets.
    pub fn u32(&mut self, kind: u16, number: u32) {
        self.octets(kind, &number.to_be_bytes());
    }

    /// A number of eight octets.
    pub fn u64(&mut self, kind: u16, number: u64) {
        self.octets(kind, &number.to_be_bytes());
    }

    /// A text with its NUL.
    pub fn text(&mut self, kind: u16, text: &str) {
        self.octets(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// Begins a nest.
    pub fn open(&mut self, kind: u16) -> Mark {
        let mark = Mark(self.octets.len());
        self.octets(kind | NLA_F_NESTED, &[]);
        mark
    }

    /// Ends a nest. INVARIANT: it is below 64 KiB, because `encode` begins another message before that.
    pub fn close(&mut self, mark: Mark) {
        let length = (self.octets.len() - mark.0) as u16;
        self.octets[mark.0..mark.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// `NFTA_DATA_VALUE` inside an attribute.
    pub fn data(&mut self, kind: u16, value: &[u8]) {
        let nest = self.open(kind);
        self.octets(NFTA_DATA_VALUE, value);
        self.close(nest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut writer = Writer::default();
        let message = writer.begin(NFT_MSG_NEWSET, NLM_F_CREATE, 7);
        writer.text(NFTA_SET_NAME, "ports");
        writer.u32(NFTA_SET_FLAGS, 0x10);
        let nest = writer.open(NFTA_SET_DESC);
        writer.u32(NFTA_SET_DESC_SIZE, 1000);
        writer.close(nest);
        writer.end(message);
        let octets = writer.into_octets();

        let read = messages(&octets).unwrap();
        assert_eq!((read.len(), read[0].kind, read[0].seq), (1, 10 << 8 | 9, 7));
        let fields = read[0].fields().unwrap();
        assert_eq!(fields.text(NFTA_SET_NAME).as_deref(), Some("ports"));
        assert_eq!(fields.u32(NFTA_SET_FLAGS), Some(0x10));
        assert_eq!(fields.nest(NFTA_SET_DESC).unwrap().u32(NFTA_SET_DESC_SIZE), Some(1000));
        assert!(fields.only(&[NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_DESC]));
        assert!(!fields.only(&[NFTA_SET_NAME, NFTA_SET_FLAGS]));
    }

    #[test]
    fn a_length_that_does_not_fit_is_malformed() {
        assert!(messages(&[200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
        assert!(messages(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
        assert!(attributes(&[3, 0, 1, 0]).is_none());
        assert!(attributes(&[9, 0, 1, 0, 1, 2, 3, 4]).is_none());
        assert!(attributes(&[4, 0]).is_none());
    }

    #[test]
    fn a_last_attribute_without_padding_is_read() {
        assert_eq!(attributes(&[5, 0, 1, 0, 9]), Some(vec![(1, &[9][..])]));
    }

    #[test]
    fn user_data_is_searched_entry_by_entry() {
        assert_eq!(udata(&[3, 1, 9, 0, 3, b'a', b'b', 0], 0), Some(&b"ab\0"[..]));
        assert_eq!(udata(&[3, 1, 9, 0, 200, b'a'], 0), None);
        assert_eq!(udata(&[3], 3), None);
    }
}
