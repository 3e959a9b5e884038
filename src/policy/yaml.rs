//! YAML as a tree in which every value knows its octets of the text. The only file that knows the YAML parser.
//!
//! It decides what YAML a policy may be: one document of UTF-8, no tags, no directives, no tabs, no invisible characters,
//! shallow, and aliases only as far as they stay small. What the values mean is not decided here.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span as EventSpan, StructureStyle};

use crate::base::diagnostic::{Diagnostic, Severity, SourceText, is_printable, said};

/// The largest file that is read: 1 MiB.
pub const MAX_OCTETS: usize = 1 << 20;

/// How deep collections may nest. The language itself needs five levels.
const MAX_DEPTH: usize = 16;

/// How many values all anchors and aliases of a file may stand for together.
const MAX_ALIASED: usize = 10_000;

/// Octets `start .. end` of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node<'t> {
    pub value: Value<'t>,
    /// A scalar with its quotes; of a collection the `[`, the `{`, or the first octet of its first entry.
    pub span: Span,
}

/// What stands there.
#[derive(Debug, Clone)]
pub(super) enum Value<'t> {
    Scalar { text: Cow<'t, str>, style: Style },
    List(Vec<Node<'t>>),
    Map(Vec<(Node<'t>, Node<'t>)>),
}

/// Whether a scalar was written with quotes: only without them it can be a number, a boolean or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Quoted,
    Block,
}

impl Node<'_> {
    /// How many values the tree holds.
    fn weight(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Node::weight).sum(),
            Value::Map(entries) => entries.iter().map(|(key, value)| key.weight() + value.weight()).sum(),
        }
    }
}

/// An error about octets of the text.
pub(super) fn error_at(source: &SourceText<'_>, span: Span, message: impl Into<String>, help: Option<String>) -> Diagnostic {
    finding_at(source, span, Severity::Error, message, help)
}

/// A finding about octets of the text; underlined as far as its first line goes.
pub(super) fn finding_at(
    source: &SourceText<'_>,
    span: Span,
    severity: Severity,
    message: impl Into<String>,
    help: Option<String>,
) -> Diagnostic {
    let (line, column) = source.position(span.start);
    let underlined = source.text().get(span.start..span.end).unwrap_or("");
    let width = underlined.split(['\n', '\r']).next().map_or(1, |first| first.chars().count()).max(1);
    Diagnostic { line, column, width, severity, message: message.into(), help }
}

/// Reads one document.
pub(super) fn parse<'t>(source: &SourceText<'t>) -> Result<Node<'t>, Vec<Diagnostic>> {
    let found = forbidden_characters(source);
    if !found.is_empty() {
        return Err(found);
    }
    let mut tree = Tree { source, open: Vec::new(), root: None, documents: 0, anchors: HashMap::new(), aliased: 0, found: Vec::new() };
    let mut options = Options::default();
    options.disallow_directives = true;
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    options.set_emit_comments(false);
    for event in Parser::new_from_str_with_options(source.text(), options) {
        match event {
            Ok((event, span)) => {
                if let Some(tag) = span.tag_span() {
                    tree.refuse_tag(octets(&tag));
                }
                tree.take(event, octets(&span));
            }
            Err(error) => {
                tree.found.push(syntax_error(source, &error));
                break;
            }
        }
        if tree.documents > 1 || tree.aliased > MAX_ALIASED {
            break;
        }
    }
    match tree.root {
        _ if !tree.found.is_empty() => Err(tree.found),
        Some(root) => Ok(root),
        None => Err(vec![empty()]),
    }
}

/// What is said of a file without a policy in it.
fn empty() -> Diagnostic {
    Diagnostic {
        line: 0,
        column: 0,
        width: 1,
        severity: Severity::Error,
        message: "the policy is empty".to_string(),
        help: Some("the smallest policy is `version: 1`: nothing comes in, nothing goes out".to_string()),
    }
}

/// Characters that a reviewer cannot see, or that YAML forbids. Tabs, and the joiners that some scripts and signs need, may
/// stand in comments.
fn forbidden_characters(source: &SourceText<'_>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let suspicious = |c: char| c == '\t' || !is_printable(c);
    for number in 1..=source.lines() {
        let line = source.line(number);
        if line.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
            continue;
        }
        let mut comment = line.starts_with('#');
        let mut before = '\0';
        for (column, c) in line.chars().enumerate() {
            comment = comment || (c == '#' && before.is_whitespace());
            before = c;
            if !suspicious(c) || (comment && matches!(c, '\t' | '\u{200c}' | '\u{200d}')) {
                continue;
            }
            let (message, help) = match c {
                '\t' => ("a tab stands where only spaces may".to_string(), "replace every tab by spaces"),
                _ => (format!("the character U+{:04X} is not allowed", u32::from(c)), "take the invisible character away"),
            };
            let help = Some(help.to_string());
            found.push(Diagnostic { line: number, column: column + 1, width: 1, severity: Severity::Error, message, help });
            // One finding a line: a line of tabs is one mistake.
            break;
        }
    }
    found
}

fn octets(span: &EventSpan) -> Span {
    let start = span.start.byte_offset().unwrap_or(0);
    Span { start, end: span.end.byte_offset().unwrap_or(start).max(start) }
}

/// The tree while it grows.
struct Tree<'t, 's> {
    source: &'s SourceText<'t>,
    /// Collections that have begun, the innermost last.
    open: Vec<Open<'t>>,
    root: Option<Node<'t>>,
    documents: usize,
    anchors: HashMap<usize, Node<'t>>,
    /// Values that were copied for anchors and aliases.
    aliased: usize,
    found: Vec<Diagnostic>,
}

struct Open<'t> {
    span: Span,
    anchor: usize,
    items: Items<'t>,
}

enum Items<'t> {
    List(Vec<Node<'t>>),
    Map(Vec<(Node<'t>, Node<'t>)>, Option<Node<'t>>),
}

impl<'t> Tree<'t, '_> {
    fn take(&mut self, event: Event<'t>, span: Span) {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let help = "one file is one policy; take the other document away".to_string();
                    self.found.push(error_at(self.source, span, "a second document begins here", Some(help)));
                }
            }
            Event::Scalar(text, style, anchor, _) => {
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                };
                self.finish(Node { value: Value::Scalar { text, style }, span }, anchor);
            }
            Event::SequenceStart(style, anchor, _) => {
                self.open.push(Open { span: self.opening(style, span), anchor, items: Items::List(Vec::new()) });
            }
            Event::MappingStart(style, anchor, _) => {
                self.open.push(Open { span: self.opening(style, span), anchor, items: Items::Map(Vec::new(), None) });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let value = match open.items {
                        Items::List(items) => Value::List(items),
                        Items::Map(entries, _) => Value::Map(entries),
                    };
                    self.finish(Node { value, span: open.span }, open.anchor);
                }
            }
            Event::Alias(id) => self.alias(id, span),
            Event::UnresolvedAlias(name) => {
                let message = format!("nothing before this is called {}", said(&format!("&{name}")));
                let help = match name.starts_with('.') {
                    true => "`*` begins a reference; a wildcard is not meant to stand here either: list every name that is needed",
                    false => "a word that begins with `*` is a reference; put quotes around it when it is meant as text",
                };
                self.found.push(error_at(self.source, span, message, Some(help.to_string())));
                self.place(Node { value: Value::Scalar { text: "".into(), style: Style::Quoted }, span });
            }
            _ => {}
        }
    }

    /// Where a collection begins: a bracket, or the first octet of a block.
    fn opening(&self, style: StructureStyle, span: Span) -> Span {
        match style {
            StructureStyle::Flow => Span { start: span.start, end: span.start + 1 },
            StructureStyle::Block => Span { start: span.start, end: span.start },
        }
    }

    fn refuse_tag(&mut self, span: Span) {
        let help = "write the value alone; a text that begins with `!` stands between quotes".to_string();
        self.found.push(error_at(self.source, span, "tags have no meaning in a policy", Some(help)));
    }

    fn alias(&mut self, id: usize, span: Span) {
        let Some(target) = self.anchors.get(&id) else {
            self.found.push(error_at(self.source, span, "a value refers to itself", None));
            return self.place(Node { value: Value::Scalar { text: "".into(), style: Style::Quoted }, span });
        };
        self.aliased += target.weight();
        if self.aliased <= MAX_ALIASED {
            let copy = Node { value: target.value.clone(), span };
            return self.place(copy);
        }
        self.too_many_aliased(span);
    }

    fn too_many_aliased(&mut self, span: Span) {
        let message = format!("aliases stand for more than {MAX_ALIASED} values");
        self.found.push(error_at(self.source, span, message, Some("write the values out".to_string())));
    }

    /// Puts a finished value in its place and remembers it under its anchor; 0 is none.
    fn finish(&mut self, node: Node<'t>, anchor: usize) {
        if anchor > 0 {
            self.aliased += node.weight();
            if self.aliased > MAX_ALIASED {
                return self.too_many_aliased(node.span);
            }
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node);
    }

    fn place(&mut self, node: Node<'t>) {
        match self.open.last_mut().map(|open| &mut open.items) {
            None => self.root = Some(node),
            Some(Items::List(items)) => items.push(node),
            Some(Items::Map(entries, key)) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push((key, node)),
            },
        }
    }
}

/// An error of the YAML parser in words that name the usual cause.
fn syntax_error(source: &SourceText<'_>, error: &ScanError) -> Diagnostic {
    let start = error.marker().byte_offset().unwrap_or(0).min(source.text().len());
    let (message, help) = match error.kind() {
        ErrorKind::UnclosedQuotedScalar => ("a quote is not closed".to_string(), "put the missing quote at the end of the text"),
        ErrorKind::UnclosedFlowCollection { open } => (format!("`{open}` is not closed"), "put the missing bracket after the last value"),
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            (format!("`{open}` is closed by `{close}`"), "close every bracket by its own kind")
        }
        ErrorKind::MisplacedFlowCollectionEnd => ("a bracket closes nothing".to_string(), "take it away, or open it before"),
        ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping
        | ErrorKind::ExpectedFlowSequenceSeparator
        | ErrorKind::ExpectedFlowMappingSeparator => {
            ("the values between brackets are not finished".to_string(), "put a comma between two values, and the closing bracket last")
        }
        ErrorKind::RecursionLimitExceeded => (format!("values nest deeper than {MAX_DEPTH} levels"), "a policy needs five levels at most"),
        ErrorKind::DirectiveDisallowed => ("directives have no meaning in a policy".to_string(), "take the line with `%` away"),
        ErrorKind::UnexpectedCharacter { character } => {
            let sign = if *character == '`' { "a backtick".to_string() } else { said(&character.to_string()) };
            (format!("a value cannot begin with {sign}"), "put quotes around the value, or nothing at all")
        }
        ErrorKind::UnknownQuotedScalarEscape => {
            ("an escape after `\\` is not known".to_string(), "between single quotes `\\` is an ordinary character")
        }
        ErrorKind::BlockEntryInFlowCollection => ("`-` begins no item between brackets".to_string(), "separate items by commas"),
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => (
            "a `:` stands where no key can be".to_string(),
            "look for a key on the same line, for the indentation above, or put quotes around a text with `: ` in it",
        ),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            ("a key without its `:`".to_string(), "write `key: value`, with a space after the colon")
        }
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::InvalidIndentation
        | ErrorKind::BlockSequenceEntryNotAllowed
        | ErrorKind::MappingKeyNotAllowed
        | ErrorKind::InvalidFlowScalarIndent => {
            ("the indentation fits nothing above it".to_string(), "begin keys of one block, and items of one list, in the same column")
        }
        ErrorKind::CommentNotSeparated => ("a comment needs a space before `#`".to_string(), "put a space before `#`"),
        ErrorKind::InvalidTrailingSingleQuotedScalar | ErrorKind::InvalidTrailingDoubleQuotedScalar => {
            ("something follows the closing quote".to_string(), "put quotes around the whole value, or around nothing")
        }
        ErrorKind::InvalidDocumentEnd => ("something follows the end of the document".to_string(), "take it away"),
        other => (format!("this is not YAML: {other}"), "look at this line and at the one above it"),
    };
    let end = source.text().get(start..).and_then(|rest| rest.chars().next()).map_or(start, |c| start + c.len_utf8());
    error_at(source, Span { start, end }, message, Some(help.to_string()))
}
