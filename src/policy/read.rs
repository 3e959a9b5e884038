//! Typed reading of a YAML tree that collects every error instead of stopping at the first.
//!
//! A method that cannot read its value says so once, in [`Reader::found`], and answers `None`; callers go on with the rest.
//! Which keys and values the language has is not decided here.

use crate::base::diagnostic::{Diagnostic, Severity, SourceText, nearest, said};
use crate::base::packet::PacketError;
use crate::policy::Line;
use crate::policy::value::Complaint;
use crate::policy::yaml::{self, Node, Span, Style, Value};

/// The text that is read, and what was found in it.
pub(super) struct Reader<'s, 't> {
    pub source: &'s SourceText<'t>,
    pub found: Vec<Diagnostic>,
}

/// The entries of a mapping whose keys are all known.
pub(super) struct Fields<'n, 't> {
    entries: Vec<(&'n str, Span, &'n Node<'t>)>,
    /// Where a complaint about something that is missing points.
    pub owner: Span,
}

impl<'n, 't> Fields<'n, 't> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&'n Node<'t>> {
        self.entries.iter().find(|(name, ..)| *name == key).map(|(_, _, node)| *node)
    }

    /// Where a key stands.
    pub fn key(&self, key: &str) -> Option<Span> {
        self.entries.iter().find(|(name, ..)| *name == key).map(|(_, span, _)| *span)
    }

    /// Every entry in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&'n str, Span, &'n Node<'t>)> {
        self.entries.iter().copied()
    }
}

/// What a plain scalar of YAML 1.2's core schema is.
enum Plain {
    Nothing,
    Boolean(bool),
    Number,
    Text,
}

impl<'s, 't> Reader<'s, 't> {
    pub fn new(source: &'s SourceText<'t>) -> Reader<'s, 't> {
        Reader { source, found: Vec::new() }
    }

    pub fn error(&mut self, span: Span, message: impl Into<String>, help: Option<String>) {
        self.found.push(yaml::error_at(self.source, span, message, help));
    }

    pub fn complain(&mut self, span: Span, complaint: Complaint) {
        self.error(span, complaint.message, complaint.help);
    }

    pub fn line(&self, span: Span) -> Line {
        Line(self.source.line_of(span.start))
    }

    /// The entries of a mapping. `owner` is where complaints about missing keys point, `what` names the mapping.
    /// Unknown and duplicate keys are errors; `elsewhere` says where a key belongs that is known, but not here.
    pub fn map<'n>(
        &mut self,
        node: &'n Node<'t>,
        owner: Span,
        what: &str,
        keys: &[&str],
        elsewhere: impl Fn(&str) -> Option<String>,
    ) -> Option<Fields<'n, 't>> {
        let Value::Map(entries) = &node.value else {
            let help = format!("{what} has keys: {}", listed(keys));
            self.wrong_type(node, "keys with values", Some(help));
            return None;
        };
        let mut fields = Fields { entries: Vec::new(), owner };
        for (key_node, value) in entries {
            let Value::Scalar { text: key, .. } = &key_node.value else {
                self.error(key_node.span, "a key is one word", Some(format!("{what} has keys: {}", listed(keys))));
                continue;
            };
            if let Some(first) = fields.key(key) {
                let line = self.line(first).0;
                self.error(
                    key_node.span,
                    format!("the key {} is said twice", said(key)),
                    Some(format!("it stands on line {line} already")),
                );
            } else if keys.contains(&key.as_ref()) {
                fields.entries.push((key, key_node.span, value));
            } else {
                let help = unknown_key_help(key, what, keys, &elsewhere);
                self.error(key_node.span, format!("{what} has no key {}", said(key)), Some(help));
            }
        }
        Some(fields)
    }

    /// A key that must be there; `help` shows how it is written.
    pub fn required<'n>(&mut self, fields: &Fields<'n, 't>, what: &str, key: &str, help: &str) -> Option<&'n Node<'t>> {
        let node = fields.get(key);
        if node.is_none() {
            self.error(fields.owner, format!("{what} needs `{key}`"), Some(help.to_string()));
        }
        node
    }

    /// The items of a list.
    pub fn list<'n>(&mut self, node: &'n Node<'t>, help: &str) -> Option<&'n [Node<'t>]> {
        match &node.value {
            Value::List(items) => Some(items),
            Value::Scalar { text, style } if !matches!(plain(text, *style), Plain::Nothing) => {
                let written = text.lines().next().unwrap_or("");
                let help = if written.len() <= 60 { format!("write `[{written}]`") } else { help.to_string() };
                self.error(node.span, format!("expected a list, found {}", said(text)), Some(help));
                None
            }
            _ => {
                self.wrong_type(node, "a list", Some(help.to_string()));
                None
            }
        }
    }

    /// A text: never a number, a boolean or nothing.
    pub fn text<'n>(&mut self, node: &'n Node<'t>, expected: &str) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, style } if matches!(plain(text, *style), Plain::Text) => {
                if text.contains(|c: char| c.is_control()) {
                    let help = "one value stands on one line, without escapes".to_string();
                    self.error(node.span, format!("{} has control characters in it", said(text)), Some(help));
                    return None;
                }
                Some(text)
            }
            Value::Scalar { text, style } if matches!(plain(text, *style), Plain::Boolean(_)) => {
                self.wrong_type(node, expected, Some("text that reads like a boolean stands between quotes".to_string()));
                None
            }
            _ => {
                self.wrong_type(node, expected, None);
                None
            }
        }
    }

    /// A text through a parser of its own.
    pub fn parsed<T>(&mut self, node: &Node<'t>, expected: &str, parse: impl FnOnce(&str) -> Result<T, Complaint>) -> Option<T> {
        let text = self.text(node, expected)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(complaint) => {
                self.complain(node.span, complaint);
                None
            }
        }
    }

    /// A text that may have been written as a number: periods and the like, whose own parser has the better words.
    pub fn parsed_scalar<T>(&mut self, node: &Node<'t>, expected: &str, parse: impl FnOnce(&str) -> Result<T, Complaint>) -> Option<T> {
        match &node.value {
            Value::Scalar { text, style } if matches!(plain(text, *style), Plain::Number) => match parse(text) {
                Ok(value) => Some(value),
                Err(complaint) => {
                    self.complain(node.span, complaint);
                    None
                }
            },
            _ => self.parsed(node, expected, parse),
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(&mut self, node: &Node<'t>, what: &str, words: &[(&str, T)]) -> Option<T> {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let help = format!("one of {}", listed(&known));
        let Value::Scalar { text, style } = &node.value else {
            self.wrong_type(node, "one word", Some(help));
            return None;
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| word == text) {
            return Some(*value);
        }
        if matches!(plain(text, *style), Plain::Nothing) {
            self.wrong_type(node, "one word", Some(help));
            return None;
        }
        let help = match nearest(text, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => help,
        };
        self.error(node.span, format!("{} is no {what}", said(text)), Some(help));
        None
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, node: &Node<'t>) -> Option<bool> {
        let Value::Scalar { text, style } = &node.value else {
            self.wrong_type(node, "`true` or `false`", None);
            return None;
        };
        if let Plain::Boolean(value) = plain(text, *style) {
            return Some(value);
        }
        let meant = match text.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" | "y" | "1" => Some("write `true`"),
            "no" | "off" | "false" | "n" | "0" => Some("write `false`"),
            _ => None,
        };
        match meant {
            Some(help) => self.error(node.span, format!("{} is not a boolean", shown(text, *style)), Some(help.to_string())),
            None => self.wrong_type(node, "`true` or `false`", None),
        }
        None
    }

    /// A number between two bounds, both included, in decimal without quotes.
    pub fn number(&mut self, node: &Node<'t>, what: &str, lowest: u64, highest: u64) -> Option<u64> {
        let bounds = Some(format!("a number from {lowest} to {highest}"));
        let Value::Scalar { text, style } = &node.value else {
            self.wrong_type(node, "a number", bounds);
            return None;
        };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if *style != Style::Plain || matches!(plain(text, *style), Plain::Nothing | Plain::Boolean(_)) {
            let help = if digits { Some(format!("write it without quotes: `{text}`")) } else { bounds };
            self.wrong_type(node, "a number", help);
            return None;
        }
        if digits && text.len() > 1 && text.starts_with('0') {
            let help = "leave the leading zeros out: some read them as octal".to_string();
            self.error(node.span, format!("{} is not {what}", said(text)), Some(help));
            return None;
        }
        match text.parse::<u64>() {
            Ok(number) if digits && (lowest..=highest).contains(&number) => Some(number),
            _ => {
                self.error(node.span, format!("{} is not {what}", said(text)), bounds);
                None
            }
        }
    }

    /// Whether a scalar is a number without quotes.
    pub fn is_number(&self, node: &Node<'t>) -> bool {
        matches!(&node.value, Value::Scalar { text, style } if matches!(plain(text, *style), Plain::Number))
    }

    /// An error inside a text: at its own octets where the file spells the text as it is, at the whole value otherwise.
    pub fn packet_error(&mut self, node: &Node<'t>, text: &str, error: PacketError) {
        let spelled = self.source.text().get(node.span.start..node.span.end).unwrap_or("");
        let start = match spelled.strip_prefix(text) {
            Some(_) => Some(node.span.start),
            None => spelled.get(1..).and_then(|inside| inside.strip_prefix(text)).map(|_| node.span.start + 1),
        };
        let span = match start {
            Some(start) => Span { start: start + error.offset, end: start + error.offset + error.len },
            None => node.span,
        };
        self.error(span, error.message, error.help);
    }

    /// Says what was expected and what stands there instead.
    pub fn wrong_type(&mut self, node: &Node<'t>, expected: &str, help: Option<String>) {
        let message = match &node.value {
            Value::List(_) => format!("expected {expected}, found a list"),
            Value::Map(_) => format!("expected {expected}, found keys with values"),
            Value::Scalar { text, style } => match plain(text, *style) {
                Plain::Nothing => format!("expected {expected}, found nothing"),
                Plain::Boolean(_) => format!("expected {expected}, found the boolean {}", said(text)),
                Plain::Number => format!("expected {expected}, found the number {}", said(text)),
                Plain::Text => format!("expected {expected}, found the text {}", said(text)),
            },
        };
        self.error(node.span, message, help);
    }
}

/// What a scalar is; with quotes it is always text. Source: YAML 1.2.2, section 10.3.2.
fn plain(text: &str, style: Style) -> Plain {
    if style != Style::Plain {
        return Plain::Text;
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Nothing,
        "true" | "True" | "TRUE" => return Plain::Boolean(true),
        "false" | "False" | "FALSE" => return Plain::Boolean(false),
        ".nan" | ".NaN" | ".NAN" => return Plain::Number,
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Plain::Number;
    }
    let radix = |prefix: &str, radix: u32| {
        text.strip_prefix(prefix).is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)))
    };
    let decimal = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte))
        && unsigned.parse::<f64>().is_ok();
    if decimal || radix("0x", 16) || radix("0o", 8) { Plain::Number } else { Plain::Text }
}

fn shown(text: &str, style: Style) -> String {
    if style == Style::Plain { said(text) } else { format!("the text {}", said(text)) }
}

fn unknown_key_help(key: &str, what: &str, keys: &[&str], elsewhere: impl Fn(&str) -> Option<String>) -> String {
    if key == "<<" {
        return "merge keys are not part of the language: write the keys out".to_string();
    }
    if let Some(help) = elsewhere(key) {
        return help;
    }
    match nearest(key, keys.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{what} has keys: {}", listed(keys)),
    }
}

/// Words in backticks with commas between them.
pub(super) fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// A warning about octets of the text.
pub(super) fn warning(source: &SourceText<'_>, span: Span, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
    yaml::finding_at(source, span, Severity::Warning, message, Some(help.into()))
}
