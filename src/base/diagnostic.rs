//! Findings about a text a person wrote: where, what, and what to do. Rendering shows the line with a caret.
//!
//! Nothing here knows a language; whoever reads the text says where the culprit stands.

use std::fmt::Write as _;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The text cannot be used.
    Error,
    /// The text can be used, and is probably not what was meant.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// Line of the text, from 1; 0 when the finding is about the whole text.
    pub line: usize,
    /// Column in characters, from 1; 0 together with line 0.
    pub column: usize,
    /// How many characters the caret line underlines, at least 1.
    pub width: usize,
    /// How bad.
    pub severity: Severity,
    /// What is wrong: lower case, the user's words in backticks, no full stop.
    pub message: String,
    /// The next step.
    pub help: Option<String>,
}

/// Whether rendered text carries escape sequences for colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Colour {
    /// Text alone.
    Plain,
    /// ANSI escape sequences of our own; never those of the text.
    Ansi,
}

/// How many columns of a source line are shown; a longer line is cut around the caret.
const SHOWN: usize = 88;

/// How many characters of a word of the user's are repeated in a message.
const SAID: usize = 60;

/// Shows findings, each as `error: …`, `file:line:column`, the line with carets, and `help: …`, with an empty line between
/// two. Every line ends with a line feed. `text` is what the findings are about; control characters of the text, of the
/// messages and of the file's name come out as visible signs.
pub fn render(findings: &[Diagnostic], text: &str, file: &str, colour: Colour) -> String {
    let source = SourceText::new(text);
    let renderer = match colour {
        Colour::Plain => Renderer::plain(),
        Colour::Ansi => Renderer::styled(),
    }
    .term_width(10_000);
    let mut out = String::new();
    for (position, finding) in findings.iter().enumerate() {
        if position > 0 {
            out.push('\n');
        }
        let shown = renderer.render(&[group(finding, &source, file)]);
        for (number, line) in shown.lines().enumerate() {
            // The renderer joins the place and the line, which it takes for two elements, by a line of its own.
            if number == 3 && line.contains(":::") {
                continue;
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}

fn group<'a>(finding: &'a Diagnostic, source: &SourceText<'_>, file: &str) -> Group<'a> {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let origin = Origin::path(visible(file));
    let mut group = level.clone().primary_title(visible(&finding.message)).elements(Vec::<Origin<'_>>::new());
    if finding.line == 0 {
        group = group.element(origin);
    } else {
        group = group.element(origin.line(finding.line).char_column(finding.column));
        let (line, caret) = window(source.line(finding.line), finding.column.saturating_sub(1), finding.width.max(1));
        group = group.element(Snippet::source(line).line_start(finding.line).fold(false).annotation(AnnotationKind::Primary.span(caret)));
    }
    if let Some(help) = &finding.help {
        group = group.element(Level::HELP.message(visible(help)));
    }
    group
}

/// The part of a line around its characters `first .. first + width`, with every character printable, and the octets of
/// that part which these characters became.
fn window(line: &str, first: usize, width: usize) -> (String, std::ops::Range<usize>) {
    let length = line.chars().count();
    let first = first.min(length);
    let from = if length <= SHOWN || first < SHOWN / 2 { 0 } else { first - SHOWN / 3 };
    let mut out = String::new();
    if from > 0 {
        out.push('…');
    }
    let (mut start, mut end) = (None, None);
    for (position, c) in line.chars().enumerate().skip(from).take(SHOWN) {
        if position == first {
            start = Some(out.len());
        }
        if position == first + width {
            end = Some(out.len());
        }
        push_visible(&mut out, c);
    }
    let start = start.unwrap_or(out.len());
    let end = end.unwrap_or(out.len());
    if length > from + SHOWN {
        out.push('…');
    }
    if start == end {
        // A caret after the last character needs something to stand under.
        out.push(' ');
        return (out, start..start + 1);
    }
    (out, start..end)
}

/// A word of the user's for a message: in backticks, control characters visible, cut when it is long.
pub fn said(word: &str) -> String {
    let mut out = String::from("`");
    for c in word.chars().take(SAID) {
        push_visible(&mut out, c);
    }
    if word.chars().nth(SAID).is_some() {
        out.push('…');
    }
    out.push('`');
    out
}

/// The nearest of some words to a misspelt one; `None` when none is near.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.is_empty() || word.len() > 40 {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('_', "-");
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4 && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Whether a character may reach a terminal as it is: no control characters, nothing that turns the direction of writing
/// or breaks a line.
pub fn is_printable(c: char) -> bool {
    !(c.is_control() || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'))
}

fn visible(text: &str) -> String {
    let mut out = String::new();
    text.chars().for_each(|c| push_visible(&mut out, c));
    out
}

/// A tab becomes one arrow, so that it is seen and one column stays one column.
fn push_visible(out: &mut String, c: char) {
    match c {
        '\t' => out.push('→'),
        '\0'..='\u{1f}' => out.push(char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}')),
        '\u{7f}' => out.push('\u{2421}'),
        _ if is_printable(c) => out.push(c),
        _ => {
            let _ = write!(out, "<U+{:04X}>", u32::from(c));
        }
    }
}

/// A text with the places of its lines. A line ends with `\n`, `\r\n` or `\r`, as in YAML; a byte order mark at the
/// beginning belongs to no line.
#[derive(Debug, Clone)]
pub struct SourceText<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> SourceText<'t> {
    /// Finds the lines.
    pub fn new(text: &'t str) -> SourceText<'t> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let bytes = text.as_bytes();
        let mut starts = vec![0];
        for (position, byte) in bytes.iter().enumerate() {
            if *byte == b'\n' || (*byte == b'\r' && bytes.get(position + 1) != Some(&b'\n')) {
                starts.push(position + 1);
            }
        }
        SourceText { text, starts }
    }

    /// The text without its byte order mark.
    pub fn text(&self) -> &'t str {
        self.text
    }

    /// How many lines there are, at least 1.
    pub fn lines(&self) -> usize {
        self.starts.len()
    }

    /// A line by its number from 1, without its end; empty when there is no such line.
    pub fn line(&self, number: usize) -> &'t str {
        let Some(start) = number.checked_sub(1).and_then(|index| self.starts.get(index)) else { return "" };
        let end = self.starts.get(number).copied().unwrap_or(self.text.len());
        self.text.get(*start..end).unwrap_or("").trim_end_matches(['\n', '\r'])
    }

    /// The line of an octet of the text, from 1.
    pub fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// The line and the column in characters, both from 1, of an octet of the text.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line_of(offset);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        // An offset inside a character counts as that character's.
        let before = self.text.as_bytes().get(start..offset.min(self.text.len())).unwrap_or_default();
        let column = before.iter().filter(|byte| **byte & 0xc0 != 0x80).count() + 1;
        (line, column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(line: usize, column: usize, width: usize) -> Diagnostic {
        Diagnostic { line, column, width, severity: Severity::Error, message: "this is wrong".into(), help: None }
    }

    fn shown(text: &str, finding: Diagnostic) -> String {
        render(&[finding], text, "p.yaml", Colour::Plain)
    }

    /// The source line and the caret line of one rendered finding, without the gutter.
    fn caret(text: &str, finding: Diagnostic) -> (String, String) {
        let out = shown(text, finding);
        let mut lines = out.lines().skip(3).map(|line| line.split_once('|').map_or("", |(_, rest)| rest).to_string());
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
    }

    #[test]
    fn a_finding_shows_file_line_column_caret_and_help() {
        let mut finding = finding(2, 8, 4);
        finding.help = Some("write `tcp`".into());
        let expected = "\
error: this is wrong
 --> p.yaml:2:8
  |
2 |   key: valu
  |        ^^^^
  |
  = help: write `tcp`
";
        assert_eq!(shown("a: b\n  key: valu\nc: d\n", finding), expected);
    }

    #[test]
    fn a_finding_about_the_whole_text_shows_no_line() {
        assert_eq!(shown("a\n", finding(0, 0, 1)), "error: this is wrong\n--> p.yaml\n");
    }

    #[test]
    fn control_characters_never_reach_the_terminal_raw() {
        let mut finding = finding(1, 1, 3);
        finding.message = "bad \u{1b}[31m and \u{202e}".into();
        finding.help = Some("\u{7}".into());
        let out = render(&[finding], "a\u{1b}[2J\u{0}\u{9b}b\u{202e}", "\u{1b}p.yaml", Colour::Plain);
        assert!(out.chars().all(|c| c == '\n' || is_printable(c)), "{out:?}");
        assert!(out.contains('␛') && out.contains("<U+202E>") && out.contains("<U+009B>"), "{out}");
    }

    #[test]
    fn a_tab_takes_one_column_and_a_wide_character_two() {
        assert_eq!(caret("\tport: x", finding(1, 8, 1)), (" →port: x".into(), "        ^".into()));
        assert_eq!(caret("日本: x", finding(1, 5, 1)), (" 日本: x".into(), "       ^".into()));
    }

    #[test]
    fn a_very_long_line_is_cut_around_the_caret() {
        let text = format!("{}CULPRIT{}", "a".repeat(5000), "b".repeat(5000));
        let (line, carets) = caret(&text, finding(1, 5001, 7));
        assert!(line.chars().count() < 100, "{line}");
        let under: String = line.chars().zip(carets.chars()).filter(|(_, c)| *c == '^').map(|(c, _)| c).collect();
        assert_eq!(under, "CULPRIT");
    }

    #[test]
    fn a_caret_may_stand_behind_the_last_character_and_on_an_empty_line() {
        assert_eq!(caret("key:", finding(1, 5, 1)), (" key:".into(), "     ^".into()));
        assert_eq!(caret("", finding(1, 1, 1)).1, " ^");
        assert_eq!(caret("a\n", finding(7, 3, 9)).1, " ^");
    }

    #[test]
    fn lines_end_as_in_yaml_and_a_byte_order_mark_is_in_none() {
        let source = SourceText::new("\u{feff}a\r\nbé\rc\n");
        assert_eq!((1..=5).map(|n| source.line(n)).collect::<Vec<_>>(), ["a", "bé", "c", "", ""]);
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position("a\r\nbé".len()), (2, 3));
        assert_eq!(source.position(1000), (4, 1));
    }

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["port", "protocol", "from", "at-most-every"];
        assert_eq!(nearest("prot", known), Some("port"));
        assert_eq!(nearest("Protocoll", known), Some("protocol"));
        assert_eq!(nearest("at_most_every", known), Some("at-most-every"));
        assert_eq!(nearest("zebra", known), None);
        assert_eq!(nearest(&"p".repeat(100_000), known), None);
    }

    #[test]
    fn a_word_in_a_message_is_cut_and_visible() {
        assert_eq!(said("a\nb"), "`a␊b`");
        assert_eq!(said(&"x".repeat(100)).chars().count(), 63);
    }
}
