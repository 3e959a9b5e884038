//! Findings about a text a person wrote: where, what, and what to do. Rendering shows the line with a caret.

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
