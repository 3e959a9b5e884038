//! Names: of hosts, of policies and rules, of sets and chains.

use std::fmt;

use thiserror::Error;

use crate::base::diagnostic::{nearest, said};

/// A DNS host name in A-label form: lower case, no final dot, at most 253 octets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Box<str>);

/// Why a text is not a host name that can be pinned. [`NameError::help`] says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum NameError {
    #[error("a host name is empty")]
    Empty,
    #[error("a wildcard cannot be resolved ahead of the packet")]
    Wildcard,
    #[error("a host name has at most 253 octets, this one has {0}")]
    TooLong(usize),
    #[error("a label of a host name has 1 to 63 octets, {} has {n}", said(.0), n = .0.len())]
    Label(String),
    #[error("a label neither starts nor ends with a hyphen: {}", said(.0))]
    Hyphen(String),
    #[error("{} is not allowed in a host name", said(&.0.to_string()))]
    Character(char),
    #[error("an internationalised name is written in its A-label form")]
    NotAscii {
        /// The A-label form, when there is one.
        a_label: Option<String>,
    },
    #[error("the last label of a host name is not a number")]
    NumericTop,
}

impl DnsName {
    /// Parses and lower-cases a name. One final dot is accepted and dropped.
    pub fn parse(text: &str) -> Result<DnsName, NameError> {
        if !text.is_ascii() {
            // Four octets are the longest character; nothing longer than this has an A-label form that fits.
            let a_label = Some(text).filter(|text| text.len() <= 4 * 253);
            let a_label = a_label.and_then(|text| idna::domain_to_ascii(text).ok()).filter(|ascii| DnsName::parse(ascii).is_ok());
            return Err(NameError::NotAscii { a_label });
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.contains('*') {
            return Err(NameError::Wildcard);
        }
        if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))) {
            return Err(NameError::Character(bad));
        }
        if text.len() > 253 {
            return Err(NameError::TooLong(text.len()));
        }
        for label in text.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(NameError::Label(label.to_string()));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(NameError::Hyphen(label.to_string()));
            }
        }
        let top = text.rsplit('.').next().unwrap_or(text);
        if top.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NameError::NumericTop);
        }
        Ok(DnsName(text.to_ascii_lowercase().into()))
    }

    /// The name, lower case, without a final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NameError {
    /// The next step.
    pub fn help(&self) -> Option<String> {
        match self {
            NameError::Wildcard => Some("list every name that is needed, each by itself".to_string()),
            NameError::Hyphen(_) | NameError::Character(_) => {
                Some("a host name has letters, digits, hyphens and dots, and nothing else".to_string())
            }
            NameError::Label(label) if label.is_empty() => Some("take one of two dots in a row away".to_string()),
            NameError::NotAscii { a_label: Some(a_label) } => Some(format!("write `{a_label}`")),
            NameError::NumericTop => Some("an IPv4 address has four numbers from 0 to 255".to_string()),
            NameError::NotAscii { a_label: None } | NameError::Empty | NameError::TooLong(_) | NameError::Label(_) => None,
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A short name that is safe everywhere a name is printed: 1 to 63 of `a-z 0-9 - . _`, beginning with a letter or digit.
/// Names policies and rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slug(Box<str>);

impl Slug {
    /// Takes the text when it is a slug.
    pub fn parse(text: &str) -> Option<Slug> {
        let first = text.bytes().next()?;
        let fits = text.len() <= 63
            && first.is_ascii_alphanumeric()
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte));
        fits.then(|| Slug(text.into()))
    }

    /// The nearest slug to any text; `fallback` (itself a slug) when nothing of the text can stay.
    pub fn nearest(text: &str, fallback: &str) -> Slug {
        let mut out = String::new();
        for c in text.chars() {
            let c = c.to_ascii_lowercase();
            if c.is_ascii_alphanumeric() || (!out.is_empty() && matches!(c, '-' | '.' | '_')) {
                out.push(c);
            } else if !out.is_empty() && !out.ends_with('-') {
                out.push('-');
            }
            if out.len() == 63 {
                break;
            }
        }
        let trimmed = out.trim_end_matches('-');
        Slug(if trimmed.is_empty() { fallback.into() } else { trimmed.into() })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a systemd unit that runs processes may end with: each has a control group of its own.
const UNIT_SUFFIXES: [&str; 6] = ["service", "slice", "scope", "socket", "mount", "swap"];

/// The full name of a systemd unit: as it stands, or with `.service` when no type is said, as `systemctl` reads it.
/// The error is a sentence. Units that run nothing (timers, targets) are refused. Source: systemd.unit(5).
pub fn unit(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 255 {
        return Err("the name of a unit has 1 to 255 octets".to_string());
    }
    if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || ":-_.\\@".contains(*c))) {
        return Err(format!("{} is not allowed in the name of a unit", said(&bad.to_string())));
    }
    match text.rsplit_once('.') {
        None if text.len() > 255 - ".service".len() => Err("the name of a unit has 1 to 255 octets".to_string()),
        None => Ok(format!("{text}.service")),
        Some(("", _)) => Err("the name of a unit has something before its type".to_string()),
        Some((_, suffix)) if UNIT_SUFFIXES.contains(&suffix) => Ok(text.to_string()),
        Some((_, suffix)) if ["timer", "target", "path", "device", "automount"].contains(&suffix) => {
            Err(format!("a unit that ends with `.{suffix}` runs no processes"))
        }
        Some((_, suffix)) => Err(match nearest(suffix, UNIT_SUFFIXES) {
            Some(near) => format!("{} is no type of unit, did you mean `.{near}`?", said(&format!(".{suffix}"))),
            None => format!("{} is no type of unit, write the full name: `{text}.service`", said(&format!(".{suffix}"))),
        }),
    }
}

/// The name of a user or a group, as it stands in passwd(5): no blanks, colons, slashes or control characters, at most 255
/// octets, and not a number alone. The error is a sentence.
pub fn account(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 255 {
        return Err("the name of a user or a group has 1 to 255 octets".to_string());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.$@".contains(c) || (c.is_alphanumeric() && !c.is_ascii());
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        return Err(format!("{} is not allowed in the name of a user or a group", said(&bad.to_string())));
    }
    if text.starts_with('-') {
        return Err("the name of a user or a group does not begin with a hyphen".to_string());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a name is not a number alone".to_string());
    }
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_without_a_type_is_a_service() {
        assert_eq!(unit("backend").as_deref(), Ok("backend.service"));
        assert_eq!(unit("a@b.slice").as_deref(), Ok("a@b.slice"));
        for bad in ["", ".service", "a b", "a/b", "backup.timer", "x.servce", "x.conf", &"a".repeat(250)] {
            assert!(unit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_account_is_a_name_and_not_a_number() {
        assert_eq!(account("www-data").as_deref(), Ok("www-data"));
        for bad in ["", "1000", "a b", "a:b", "-x", "a\0", "a\u{202e}"] {
            assert!(account(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_lower_cased_once_and_loses_its_final_dot() {
        assert_eq!(DnsName::parse("API.OpenAI.com.").unwrap().as_str(), "api.openai.com");
    }

    #[test]
    fn what_cannot_be_pinned_is_refused_with_its_reason() {
        let refused = [
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("*.example.com", NameError::Wildcard),
            ("a b.com", NameError::Character(' ')),
            ("a\0b.com", NameError::Character('\0')),
            ("a/b.com", NameError::Character('/')),
            ("a..com", NameError::Label(String::new())),
            ("-a.com", NameError::Hyphen("-a".into())),
            ("10.0.0.300", NameError::NumericTop),
            ("1234", NameError::NumericTop),
            ("bücher.example", NameError::NotAscii { a_label: Some("xn--bcher-kva.example".into()) }),
        ];
        for (text, why) in refused {
            assert_eq!(DnsName::parse(text), Err(why), "{text:?}");
        }
        assert!(DnsName::parse(&"a.".repeat(127)).is_ok());
        assert!(matches!(DnsName::parse(&format!("{}com", "a.".repeat(126))), Err(NameError::TooLong(255))));
        assert!(matches!(DnsName::parse(&"a".repeat(64)), Err(NameError::Label(_))));
    }

    #[test]
    fn the_nearest_slug_is_a_slug() {
        for text in ["openai", "Über policy!", "--", "", "a b c", &"x".repeat(100)] {
            let slug = Slug::nearest(text, "policy");
            assert_eq!(Slug::parse(slug.as_str()).as_ref(), Some(&slug), "{text:?}");
        }
    }
}
