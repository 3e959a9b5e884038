//! The table of attempts: what was seen before and after, beside what should have been seen.

use std::io;
use std::net::SocketAddr;

use crate::demo::attempt::{Seen, Way};
use crate::demo::page::{Page, Tone};
use crate::demo::scene::{Expect, Row};

/// How many attempts there were, and how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Answered afterwards, as expected.
    pub allowed: usize,
    /// Refused afterwards, as expected.
    pub refused: usize,
    /// Not as expected, before or afterwards.
    pub surprises: usize,
}

/// Writes the table. `before` and `after` belong to the rows in their order.
pub fn write(page: &mut Page, headings: [&str; 2], rows: &[Row], before: &[Seen], after: &[Seen]) -> io::Result<Tally> {
    let mut tally = Tally::default();
    page.line(Tone::Quiet, &line("", "attempt", "way", "to", headings[0], headings[1], "what was seen"))?;
    for ((row, before), after) in rows.iter().zip(before).zip(after) {
        let as_expected = meets(before, row.before) && meets(after, row.after);
        let (mark, tone) = match (as_expected, row.after) {
            (false, _) => ("!!", Tone::Bad),
            (true, Expect::Answer) => ("ok", Tone::Good),
            (true, Expect::Refusal) => ("ok", Tone::Plain),
        };
        match (as_expected, row.after) {
            (false, _) => tally.surprises += 1,
            (true, Expect::Answer) => tally.allowed += 1,
            (true, Expect::Refusal) => tally.refused += 1,
        }
        let seen = if meets(before, row.before) { after.to_string() } else { before.to_string() };
        page.line(tone, &line(mark, row.who, &row.way.to_string(), &place(&row.way, row.to), word(before), word(after), &seen))?;
        if !as_expected {
            let sentence = format!("should have been {} and then {}", expected(row.before), expected(row.after));
            page.line(Tone::Bad, &format!("      ^ {sentence}; first: {before}; then: {after}"))?;
        }
    }
    Ok(tally)
}

fn line(mark: &str, who: &str, way: &str, to: &str, before: &str, after: &str, seen: &str) -> String {
    // Together with 17 columns of `seen` these are 100.
    let seen: String = seen.chars().take(17).collect();
    format!("  {mark:<2} {who:<24} {way:<7} {to:<28} {before:<8}{after:<8}{seen}")
}

fn place(way: &Way, to: SocketAddr) -> String {
    if matches!(way, Way::Ping) { to.ip().to_string() } else { to.to_string() }
}

fn meets(seen: &Seen, expect: Expect) -> bool {
    seen.answered() == (expect == Expect::Answer)
}

fn word(seen: &Seen) -> &'static str {
    if seen.answered() { "worked" } else { "refused" }
}

fn expected(expect: Expect) -> &'static str {
    match expect {
        Expect::Answer => "answered",
        Expect::Refusal => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::page::{Colour, WIDTH};
    use crate::demo::scene::Side;

    fn row(before: Expect, after: Expect) -> Row {
        let to = "[2606:4700:7::a29f:8cf5]:443".parse().unwrap();
        Row { who: "the backend asks the API", from: Side::Server, way: Way::DnsTcp { name: String::new() }, to, before, after }
    }

    fn write_one(row: Row, before: Seen, after: Seen) -> (Tally, String) {
        let mut out = Vec::new();
        let tally = write(&mut Page::new(&mut out, Colour::Never), ["before", "after"], &[row], &[before], &[after]).unwrap();
        (tally, String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_was_expected_is_counted_and_fits_the_page() {
        let seen = [Seen::Answered("TLS 1.3, HTTP 200".into()), Seen::Failed("ECONNREFUSED and so on".into())];
        let (tally, text) = write_one(row(Expect::Answer, Expect::Refusal), seen[0].clone(), seen[1].clone());
        assert_eq!(tally, Tally { refused: 1, ..Tally::default() });
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.contains("worked  refused ECONNREFUSED"), "{text}");
    }

    #[test]
    fn a_difference_is_said_loudly_whichever_way_it_goes() {
        let (yes, no) = (Seen::Answered("answered".into()), Seen::Failed("EPERM".into()));
        for (expect, before, after) in [(Expect::Refusal, &yes, &yes), (Expect::Answer, &yes, &no), (Expect::Refusal, &no, &no)] {
            let (tally, text) = write_one(row(Expect::Answer, expect), before.clone(), after.clone());
            assert_eq!(tally.surprises, 1);
            assert!(text.contains("!!") && text.contains("should have been"), "{text}");
        }
    }
}
