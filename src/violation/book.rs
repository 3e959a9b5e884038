//! A book: records that are only ever added, each chained to the one before, so that what is removed or edited shows.
//!
//! A line is one JSON object. Its last member is `chain`: the SHA-256, in lower-case hexadecimal, of the chain of the line before (64
//! characters of text; nothing before the first) followed by the line's own octets without `,"chain":"…"` and without the line feed. So
//! anybody checks a book with ten lines of another language; `tests/books.rs` does it in Python.
//!
//! The book `NAME` is written to `NAME.jsonl`. A full file becomes `NAME-N.jsonl`, N being the number of its first record, and of those
//! the oldest go. `NAME.head` says where the book ends, so that a cut end shows, and where it begins. Whoever may write the files may
//! write a whole book anew: the chain shows what was changed afterwards, not who may write.
//!
//! What the files are named and hold is decided here; [`crate::state::books`] carries it out.

use std::fmt;
use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::time::Timestamp;
use crate::violation::record::{Kind, Line};

/// The most octets of one file.
pub const FILE_MAX: u64 = 16 << 20;
/// The most full files that are kept beside the one that is written.
pub const FILES_MAX: usize = 15;
/// The longest line, in octets: a longer one is no record.
pub const LINE_MAX: usize = 64 << 10;

/// What stands before the chain of a line, and after it.
const CHAIN: (&[u8], &[u8]) = (b",\"chain\":\"", b"\"}");
/// How many characters a chain has.
const CHAIN_LEN: usize = 64;
/// A record with a higher number is no record of ours: JSON numbers are exact up to here.
const SEQ_MAX: u64 = 1 << 53;

/// Where a book ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// The number of its last record; 0 without any.
    pub seq: u64,
    /// The chain of its last record; empty without any.
    pub chain: String,
}

/// What `NAME.head` says: where the book ends, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Where it ends.
    #[serde(flatten)]
    pub head: Head,
    /// The number of its first record that was not rotated away.
    pub first: u64,
    /// The chain of the record before that one; empty before the first of all, and where it is not known any more.
    #[serde(default)]
    pub before: String,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { head: Head::default(), first: 1, before: String::new() }
    }
}

impl Bounds {
    /// Reads a head file; nothing when it is damaged.
    pub fn parse(content: &[u8]) -> Option<Bounds> {
        let bounds: Bounds = serde_json::from_slice(content).ok()?;
        let is_chain = |seq: u64, chain: &str| if seq == 0 { chain.is_empty() } else { is_chain(chain.as_bytes()) };
        let whole = bounds.head.seq < SEQ_MAX && bounds.first >= 1 && bounds.first <= bounds.head.seq + 1;
        let before = bounds.before.is_empty() || is_chain(bounds.first - 1, &bounds.before);
        (whole && is_chain(bounds.head.seq, &bounds.head.chain) && before).then_some(bounds)
    }

    /// The head file.
    pub fn print(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// The file that a book is written to.
pub fn file(name: &str) -> String {
    format!("{name}.jsonl")
}

/// The file of a book's bounds.
pub fn head_file(name: &str) -> String {
    format!("{name}.head")
}

/// What the file becomes when it is full.
pub fn full_file(name: &str, first: u64) -> String {
    format!("{name}-{first}.jsonl")
}

/// The number of the first record of a full file of this book; nothing for any other file.
pub fn first_of(name: &str, file: &str) -> Option<u64> {
    file.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".jsonl")?.parse().ok()
}

/// The files of this book among all of a directory, oldest first.
pub fn files(name: &str, all: &[String]) -> Vec<String> {
    let mut full: Vec<(u64, &String)> = all.iter().filter_map(|file| Some((first_of(name, file)?, file))).collect();
    full.sort();
    let mut files: Vec<String> = full.into_iter().map(|(_, file)| file.clone()).collect();
    files.extend(all.contains(&file(name)).then(|| file(name)));
    files
}

/// These records as lines that follow `head`, and where the book then ends.
pub fn append(head: &Head, at: Timestamp, kinds: &[Kind]) -> (Vec<u8>, Head) {
    let (mut lines, mut head) = (Vec::new(), head.clone());
    for kind in kinds {
        let mut line = body(head.seq + 1, at, kind);
        if line.len() > LINE_MAX - 100 {
            // No reader would take it. That something was here is said.
            line = body(head.seq + 1, at, &Kind::Lost { count: 1 });
        }
        let chain = chained(&head.chain, &line);
        line.pop();
        line.extend_from_slice(CHAIN.0);
        line.extend_from_slice(chain.as_bytes());
        line.extend_from_slice(CHAIN.1);
        lines.append(&mut line);
        lines.push(b'\n');
        head = Head { seq: head.seq + 1, chain };
    }
    (lines, head)
}

/// A line without its chain.
fn body(seq: u64, at: Timestamp, kind: &Kind) -> Vec<u8> {
    // A kind is an object with at least its own name in it.
    let kind = serde_json::to_string(kind).unwrap_or_else(|_| "{\"kind\":\"unknown\"}".to_string());
    format!("{{\"seq\":{seq},\"at\":\"{at}\",{}", &kind[1..]).into_bytes()
}

/// The chain of a line, given without its own.
fn chained(before: &str, body: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(before.as_bytes());
    digest.update(body);
    hexadecimal(&digest.finalize())
}

fn hexadecimal(octets: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    octets.iter().flat_map(|octet| [DIGITS[usize::from(octet >> 4)], DIGITS[usize::from(octet & 15)]]).map(char::from).collect()
}

fn is_chain(text: &[u8]) -> bool {
    text.len() == CHAIN_LEN && text.iter().all(|octet| octet.is_ascii_digit() || (b'a'..=b'f').contains(octet))
}

/// A line taken apart: its number, its octets before the chain, and its chain.
struct Chained<'a> {
    seq: u64,
    /// Without the brace that ends the object.
    body: &'a [u8],
    chain: &'a str,
}

impl<'a> Chained<'a> {
    fn parse(line: &'a [u8]) -> Option<Chained<'a>> {
        let rest = line.strip_suffix(CHAIN.1)?;
        let (rest, chain) = rest.split_at_checked(rest.len().checked_sub(CHAIN_LEN)?)?;
        let chain = std::str::from_utf8(chain).ok().filter(|chain| is_chain(chain.as_bytes()))?;
        let body = rest.strip_suffix(CHAIN.0)?;
        let digits = body.strip_prefix(b"{\"seq\":")?;
        let end = digits.iter().position(|octet| !octet.is_ascii_digit())?;
        let seq = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        (1..SEQ_MAX).contains(&seq).then_some(Chained { seq, body, chain })
    }

    fn follows(&self, before: &str) -> bool {
        let mut digest = Sha256::new();
        digest.update(before.as_bytes());
        digest.update(self.body);
        digest.update(b"}");
        hexadecimal(&digest.finalize()) == self.chain
    }

    fn head(&self) -> Head {
        Head { seq: self.seq, chain: self.chain.to_string() }
    }
}

/// How a file ends, as its last octets show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ending {
    /// The octets after its last line feed: of a write that was interrupted.
    pub torn: u64,
    /// Its last record; nothing when there is none in these octets.
    pub head: Option<Head>,
}

impl Ending {
    /// Reads the last octets of a file.
    pub fn of(tail: &[u8]) -> Ending {
        let whole = tail.iter().rposition(|octet| *octet == b'\n').map_or(0, |end| end + 1);
        let lines = tail[..whole].split(|octet| *octet == b'\n').rev();
        let head = lines.filter_map(Chained::parse).map(|line| line.head()).next();
        Ending { torn: (tail.len() - whole) as u64, head }
    }
}

/// The number of the first record of a file, by its first line.
pub fn first_record(line: &[u8]) -> Option<u64> {
    Chained::parse(line).map(|line| line.seq)
}

/// Where to write on: after the later of what the files hold and what the head file says they held, and how many records are missing
/// between the two. What is missing or was changed stays visible, because the chain goes on from what was there.
pub fn resume(held: Option<Head>, noted: Option<Head>) -> (Head, u64) {
    let (held, noted) = (held.unwrap_or_default(), noted.unwrap_or_default());
    match noted.seq.checked_sub(held.seq) {
        Some(missing) => (noted, missing),
        None => (held, 0),
    }
}

/// The lines of a file, one after the other; never more of them in memory than one.
pub struct Lines<R> {
    from: io::BufReader<R>,
    line: Vec<u8>,
}

/// A line of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum RawLine<'a> {
    /// A whole one, without its line feed.
    Whole(&'a [u8]),
    /// The last one, which has no line feed.
    Torn(&'a [u8]),
    /// Longer than any record: so many octets.
    TooLong(u64),
}

impl<R: Read> Lines<R> {
    /// The lines of this file.
    pub fn new(from: R) -> Lines<R> {
        Lines { from: io::BufReader::with_capacity(256 << 10, from), line: Vec::new() }
    }

    /// The next line; nothing after the last.
    pub fn next_line(&mut self) -> io::Result<Option<RawLine<'_>>> {
        self.line.clear();
        let read = (&mut self.from).take(LINE_MAX as u64 + 1).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            return Ok(Some(RawLine::Whole(&self.line)));
        }
        if read <= LINE_MAX {
            return Ok(Some(RawLine::Torn(&self.line)));
        }
        Ok(Some(RawLine::TooLong(read as u64 + self.skip_line()?)))
    }

    /// Passes over the rest of a line; how long that was.
    fn skip_line(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let octets = self.from.fill_buf()?;
            let end = octets.iter().position(|octet| *octet == b'\n');
            let (used, last) = (end.map_or(octets.len(), |end| end + 1), end.is_some() || octets.is_empty());
            self.from.consume(used);
            skipped += used as u64;
            if last {
                return Ok(skipped);
            }
        }
    }

    /// Hands every record to `take`, in order; what is no record is passed over.
    pub fn records(&mut self, mut take: impl FnMut(Line<'_>)) -> io::Result<()> {
        while let Some(line) = self.next_line()? {
            if let RawLine::Whole(line) | RawLine::Torn(line) = line
                && let Some(record) = Line::parse(line)
            {
                take(record);
            }
        }
        Ok(())
    }
}

/// Something found by a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// In which file.
    pub file: String,
    /// In which line of it; 0 for the file as a whole.
    pub line: u64,
    /// What.
    pub what: What,
}

/// What is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The line is no record.
    NoRecord,
    /// The chain does not follow from the line before and from this one: one of the two was edited.
    Edited,
    /// Records between the one before and this one are missing: the first and the last of them.
    Missing(u64, u64),
    /// The number is not higher than the one before.
    OutOfOrder,
    /// The book ends before its head says it does: the first and the last record that are missing.
    CutOff(u64, u64),
    /// The last record is not the one that the head names.
    OtherHead,
    /// A write was interrupted here; so many octets. The next record cuts them off. Nobody's doing.
    Torn(u64),
    /// The head file is missing or damaged, so that a cut end would not show. The next record writes it anew.
    NoHead,
    /// There was no head file when this record was written: what the book held before, nobody knows.
    Beheaded,
}

impl What {
    /// Whether records were changed or are missing, or may be; what is left is what a power cut or a full disk does.
    pub fn is_fault(&self) -> bool {
        !matches!(self, What::Torn(_) | What::Beheaded)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = |first: &u64, last: &u64| match first == last {
            true => format!("record {first} is missing"),
            false => format!("records {first} to {last} are missing"),
        };
        match self {
            What::NoRecord => f.write_str("this is no record"),
            What::Edited => f.write_str("the chain is broken: this record or the one before it was edited"),
            What::Missing(first, last) => write!(f, "{} before this one", records(first, last)),
            What::OutOfOrder => f.write_str("the number is not higher than the one before"),
            What::CutOff(first, last) => write!(f, "{} at the end", records(first, last)),
            What::OtherHead => f.write_str("the last record is not the one that the head file names"),
            What::Torn(octets) => write!(f, "the last {octets} octets are of an interrupted write; the next record cuts them off"),
            What::Beheaded => f.write_str("the head file was missing when this was written, so that an end cut off before would not show"),
            What::NoHead => f.write_str("missing or damaged, so that a cut end would not show; the next record writes it anew"),
        }
    }
}

/// How many findings of a check are kept; the others are counted.
const FINDINGS_MAX: usize = 100;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// The first of them.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
    /// How many records were read.
    pub records: u64,
    /// How many of those say that the book was mended.
    pub mended: u64,
}

impl Findings {
    /// Whether records were changed or are missing.
    pub fn has_fault(&self) -> bool {
        self.more > 0 || self.findings.iter().any(|finding| finding.what.is_fault())
    }
}

/// A check of one book, file by file, oldest first.
pub struct Check {
    noted: Option<Bounds>,
    found: Findings,
    /// The last record; its chain is nothing where what comes next cannot be checked by it.
    last: Option<(u64, Option<String>)>,
}

impl Check {
    /// Begins with what the head file says.
    pub fn new(noted: Option<Bounds>) -> Check {
        Check { noted, found: Findings::default(), last: None }
    }

    /// Checks the next file.
    pub fn file(&mut self, name: &str, content: impl Read) -> io::Result<()> {
        let mut lines = Lines::new(content);
        let mut number = 0;
        while let Some(line) = lines.next_line()? {
            number += 1;
            match line {
                RawLine::Whole(line) => match Chained::parse(line).filter(|_| Line::parse(line).is_some()) {
                    Some(record) => self.record(name, number, &record, line),
                    None => self.say(name, number, What::NoRecord),
                },
                RawLine::Torn(line) => self.say(name, number, What::Torn(line.len() as u64)),
                RawLine::TooLong(_) => self.say(name, number, What::NoRecord),
            }
        }
        Ok(())
    }

    fn record(&mut self, file: &str, number: u64, record: &Chained<'_>, line: &[u8]) {
        self.found.records += 1;
        if let Some(mended) = Line::parse(line).filter(|line| line.kind == "mended") {
            self.found.mended += 1;
            if mended.headless {
                self.say(file, number, What::Beheaded);
            }
        }
        let (seq, before) = match self.last.take() {
            Some(last) => last,
            None => match &self.noted {
                // Older files than the head knows of were about to be removed.
                Some(bounds) if record.seq >= bounds.first => {
                    let is_known = bounds.first == 1 || !bounds.before.is_empty();
                    (bounds.first - 1, is_known.then(|| bounds.before.clone()))
                }
                _ => (record.seq - 1, (record.seq == 1).then(String::new)),
            },
        };
        if record.seq <= seq {
            self.say(file, number, What::OutOfOrder);
        } else if record.seq > seq + 1 {
            self.say(file, number, What::Missing(seq + 1, record.seq - 1));
        } else if before.is_some_and(|before| !record.follows(&before)) {
            self.say(file, number, What::Edited);
        }
        self.last = Some((record.seq, Some(record.chain.to_string())));
    }

    /// What was found, in the end. `name` is the book's, which had `known` records at least.
    pub fn end(mut self, name: &str, known: u64) -> Findings {
        let (last, chain) = self.last.take().unwrap_or_default();
        match self.noted.take() {
            noted if known > last && noted.as_ref().is_none_or(|bounds| bounds.head.seq < known) => {
                self.say(&file(name), 0, What::CutOff(last + 1, known));
            }
            Some(Bounds { head, .. }) if head.seq > last => self.say(&file(name), 0, What::CutOff(last + 1, head.seq)),
            Some(Bounds { head, .. }) if head.seq == last && chain.is_some_and(|chain| chain != head.chain) => {
                self.say(&file(name), 0, What::OtherHead);
            }
            None if last > 0 => self.say(&head_file(name), 0, What::NoHead),
            _ => {}
        }
        self.found
    }

    fn say(&mut self, file: &str, line: u64, what: What) {
        if self.found.findings.len() < FINDINGS_MAX {
            self.found.findings.push(Finding { file: file.to_string(), line, what });
        } else {
            self.found.more += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp(1_795_492_320);

    fn lost(count: u64) -> Kind {
        Kind::Lost { count }
    }

    /// A book of so many records, and its bounds.
    fn book(records: u64) -> (Vec<u8>, Bounds) {
        let kinds: Vec<Kind> = (1..=records).map(lost).collect();
        let (lines, head) = append(&Head::default(), AT, &kinds);
        (lines, Bounds { head, ..Bounds::default() })
    }

    fn check(lines: &[u8], bounds: &Bounds) -> Vec<(u64, What)> {
        let mut check = Check::new(Some(bounds.clone()));
        check.file("b.jsonl", lines).unwrap();
        check.end("b", 0).findings.into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    fn lines_of(book: &[u8]) -> Vec<Vec<u8>> {
        book.split_inclusive(|octet| *octet == b'\n').map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_book_is_the_same_however_often_it_was_put_down_meanwhile() {
        let (whole, bounds) = book(5);
        let (first, head) = append(&Head::default(), AT, &[lost(1), lost(2)]);
        let (second, head) = append(&head, AT, &[lost(3), lost(4), lost(5)]);
        assert_eq!(([first, second].concat(), head), (whole.clone(), bounds.head.clone()));
        assert_eq!(check(&whole, &bounds), []);
        assert_eq!(Ending::of(&whole), Ending { torn: 0, head: Some(bounds.head) });
    }

    #[test]
    fn an_edited_a_removed_and_an_exchanged_record_are_found_where_they_are() {
        let (whole, bounds) = book(5);
        let edited = String::from_utf8(whole.clone()).unwrap().replace("\"count\":3", "\"count\":9");
        assert_eq!(check(edited.as_bytes(), &bounds), [(3, What::Edited)]);
        let mut lines = lines_of(&whole);
        lines.remove(2);
        assert_eq!(check(&lines.concat(), &bounds), [(3, What::Missing(3, 3))]);
        let mut lines = lines_of(&whole);
        lines.swap(1, 2);
        assert_eq!(check(&lines.concat(), &bounds), [(2, What::Missing(2, 2)), (3, What::OutOfOrder), (4, What::Missing(3, 3))]);
        let mut lines = lines_of(&whole);
        lines[2] = b"{}\n".to_vec();
        assert_eq!(check(&lines.concat(), &bounds), [(3, What::NoRecord), (4, What::Missing(3, 3))]);
    }

    #[test]
    fn an_edited_record_whose_chain_was_made_anew_breaks_the_next_one() {
        let (whole, bounds) = book(3);
        let mut lines = lines_of(&whole);
        let before = Ending::of(&lines[0]).head.unwrap();
        lines[1] = append(&before, AT, &[lost(77)]).0;
        assert_eq!(check(&lines.concat(), &bounds), [(3, What::Edited)]);
        let mut lines = lines_of(&whole);
        let before = Ending::of(&lines[1]).head.unwrap();
        lines[2] = append(&before, AT, &[lost(77)]).0;
        assert_eq!(check(&lines.concat(), &bounds), [(0, What::OtherHead)]);
    }

    #[test]
    fn a_cut_end_shows_by_the_head_and_stays_visible_when_it_is_written_on() {
        let (whole, bounds) = book(5);
        let kept = lines_of(&whole)[..3].concat();
        assert_eq!(check(&kept, &bounds), [(0, What::CutOff(4, 5))]);
        let (head, missing) = resume(Ending::of(&kept).head, Some(bounds.head));
        assert_eq!((head.seq, missing), (5, 2));
        let (more, head) = append(&head, AT, &[Kind::Mended(crate::violation::record::Mended { bytes: 0, missing, headless: false })]);
        let bounds = Bounds { head, ..Bounds::default() };
        assert_eq!(check(&[kept, more].concat(), &bounds), [(4, What::Missing(4, 5))]);
    }

    #[test]
    fn a_head_that_is_behind_is_no_fault_and_one_that_is_gone_stays_visible() {
        let (whole, bounds) = book(3);
        assert_eq!(check(&whole, &book(2).1), []);
        assert_eq!(resume(Some(bounds.head.clone()), Some(book(2).1.head)), (bounds.head.clone(), 0));
        assert_eq!(resume(Some(bounds.head.clone()), None), (bounds.head, 0));
        let mut check = Check::new(None);
        check.file("b.jsonl", &*whole).unwrap();
        let found = check.end("b", 0);
        assert!(found.has_fault() && found.records == 3, "an end that was cut off with it would not show: {found:?}");
        let mended = Kind::Mended(crate::violation::record::Mended { bytes: 0, missing: 0, headless: true });
        let (more, head) = append(&book(3).1.head, AT, &[mended]);
        assert_eq!(super::tests::check(&[whole, more].concat(), &Bounds { head, ..Bounds::default() }), [(4, What::Beheaded)]);
    }

    #[test]
    fn a_beginning_that_was_rotated_away_is_checked_by_the_head_file() {
        let (whole, bounds) = book(4);
        let lines = lines_of(&whole);
        let rotated = Bounds { first: 3, before: Ending::of(&lines[1]).head.unwrap().chain, ..bounds };
        assert_eq!(check(&lines[2..].concat(), &rotated), []);
        assert_eq!(check(&lines[3..].concat(), &rotated), [(1, What::Missing(3, 3))]);
        assert_eq!(check(&whole, &rotated), [], "killed before the oldest file was removed");
        let edited = String::from_utf8(lines[2..].concat()).unwrap().replace("\"count\":3", "\"count\":9");
        assert_eq!(check(edited.as_bytes(), &rotated), [(1, What::Edited)]);
    }

    #[test]
    fn a_book_torn_at_any_octet_is_read_up_to_the_record_before() {
        let (whole, _) = book(3);
        let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        for cut in 0..whole.len() {
            let records = ends.iter().filter(|end| **end <= cut).count() as u64;
            let ending = Ending::of(&whole[..cut]);
            assert_eq!(ending.head.map_or(0, |head| head.seq), records, "{cut}");
            let start = ends.iter().filter(|end| **end <= cut).max().copied().unwrap_or(0);
            assert_eq!(ending.torn, (cut - start) as u64, "{cut}");
        }
    }

    #[test]
    fn nothing_that_a_file_may_hold_makes_a_reader_stumble() {
        let long = vec![b'x'; LINE_MAX * 3];
        let (whole, bounds) = book(1);
        let deep = "[".repeat(50_000).into_bytes();
        for content in [&b""[..], b"\n\n", b"\0\0\0\0", &[0xff; 300], &long, &deep, &[&long[..], b"\n", &whole].concat()] {
            let mut check = Check::new(Some(bounds.clone()));
            check.file("b.jsonl", content).unwrap();
            check.end("b", 0);
            Lines::new(content).records(|_| {}).unwrap();
            Ending::of(content);
        }
        let mut lines = [&long[..], b"\n", &whole].concat();
        lines.extend(b"{\"seq\":");
        let mut seen = Vec::new();
        Lines::new(&*lines).records(|record| seen.push(record.seq)).unwrap();
        assert_eq!(seen, [1]);
    }

    #[test]
    fn head_files_that_say_what_cannot_be_are_damaged() {
        let (_, bounds) = book(2);
        assert_eq!(Bounds::parse(&bounds.print()), Some(bounds.clone()));
        assert_eq!(Bounds::parse(&Bounds::default().print()), Some(Bounds::default()));
        let empty = Bounds { head: Head { seq: 3, chain: String::new() }, ..bounds.clone() };
        let endless = Bounds { head: Head { seq: u64::MAX, ..bounds.head.clone() }, ..bounds.clone() };
        let late = Bounds { first: 9, before: bounds.head.chain.clone(), ..bounds };
        for damaged in [empty, endless, late] {
            assert_eq!(Bounds::parse(&damaged.print()), None, "{damaged:?}");
        }
        assert_eq!(Bounds::parse(b"{}"), None);
    }

    #[test]
    fn a_record_that_no_reader_would_take_is_written_as_lost() {
        let (line, head) = append(&Head::default(), AT, &[Kind::Alert { count: 1, outcome: "x".repeat(LINE_MAX) }]);
        assert!(line.len() < LINE_MAX);
        assert_eq!(Line::parse(&line[..line.len() - 1]).unwrap().kind(), Some(lost(1)));
        assert_eq!(Ending::of(&line).head, Some(head));
    }

    #[test]
    fn files_are_read_oldest_first() {
        let all = ["led-9.jsonl", "ledger-9.jsonl", "ledger-10.jsonl", "ledger.jsonl", "ledger.head", "ledger-x.jsonl", "watch.jsonl"];
        let all: Vec<String> = all.iter().map(|name| (*name).to_string()).collect();
        assert_eq!(files("ledger", &all), ["ledger-9.jsonl", "ledger-10.jsonl", "ledger.jsonl"]);
    }
}
