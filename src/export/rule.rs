//! One rule of iptables, in the words and the order in which `iptables-save` prints it.

use std::fmt::Write;

use crate::base::net::{Family, Protocol};
use crate::export::words::{Match, Piece};
use crate::ruleset::LOG_GROUP;

/// A rule without its chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line {
    /// With its option, as in `! -s 192.0.2.1/32`; so is the destination.
    source: Option<String>,
    destination: Option<String>,
    input: Option<String>,
    output: Option<String>,
    protocol: Option<u8>,
    not_protocols: Vec<u8>,
    matches: Vec<Match>,
    /// The id of the rule of the ruleset.
    pub comment: String,
    /// What becomes of the packet.
    pub target: Target,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// The next rule decides.
    #[default]
    Continue,
    /// Back to the chain that jumped here. From a chain of ours that is iptables' own, so the packet passes as far as we are asked,
    /// and other people's rules are asked next.
    Return,
    /// It is gone without a word.
    Drop,
    /// The sender is told: a TCP reset.
    Reset,
    /// The sender is told: administratively prohibited.
    Prohibit,
    /// Through that chain, then on.
    Jump(String),
    /// Through that chain, and no further.
    Goto(String),
    /// A record to the NFLOG group, beginning with this.
    Log(String),
    /// Into a set by this key; the element lives so many seconds.
    AddTo {
        /// The set.
        set: String,
        /// The key, as ipset names its parts.
        key: String,
        /// Seconds.
        lives: u64,
    },
}

/// Why pieces make no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLine {
    /// No packet meets them all.
    Contradiction,
    /// One rule of iptables cannot ask for them all.
    TooMany,
}

impl Line {
    /// The rule that asks for all of these.
    pub fn of(pieces: &[Piece]) -> Result<Line, NoLine> {
        let mut line = Line::default();
        for piece in pieces {
            match piece {
                Piece::Always => {}
                Piece::Never => return Err(NoLine::Contradiction),
                Piece::Input(name) => once(&mut line.input, name)?,
                Piece::Output(name) => once(&mut line.output, name)?,
                Piece::Source(address) => once(&mut line.source, &format!("-s {address}"))?,
                Piece::Destination(address) => once(&mut line.destination, &format!("-d {address}"))?,
                Piece::NotSource(address) => once(&mut line.source, &format!("! -s {address}"))?,
                Piece::NotDestination(address) => once(&mut line.destination, &format!("! -d {address}"))?,
                Piece::Protocol(number) => match line.protocol {
                    Some(other) if other != *number => return Err(NoLine::Contradiction),
                    _ => line.protocol = Some(*number),
                },
                Piece::NotProtocol(number) => line.not_protocols.push(*number),
                Piece::Match(asked) => {
                    if !line.matches.contains(asked) {
                        line.matches.push(asked.clone());
                    }
                }
                Piece::Lookup(..) | Piece::Numbers(..) | Piece::Cgroup(_) | Piece::Everybody(_) | Piece::Unsayable => {
                    return Err(NoLine::TooMany);
                }
            }
        }
        if let Some(protocol) = line.protocol {
            if line.not_protocols.contains(&protocol) {
                return Err(NoLine::Contradiction);
            }
            line.not_protocols.clear();
        }
        line.not_protocols.sort_unstable();
        line.not_protocols.dedup();
        Ok(line)
    }

    /// The protocols that a packet must not carry, when they are more than the one that a rule can name. They are gone from the rule.
    pub fn take_excluded(&mut self) -> Vec<u8> {
        if self.not_protocols.len() > 1 { std::mem::take(&mut self.not_protocols) } else { Vec::new() }
    }

    /// The same rule with one match more.
    pub fn with(mut self, asked: Match) -> Line {
        self.matches.push(asked);
        self
    }

    /// The same rule with this end.
    pub fn to(self, target: Target, comment: &str) -> Line {
        Line { target, comment: comment.to_string(), ..self }
    }

    /// Whether no packet gets past it.
    pub fn ends_all(&self) -> bool {
        let asks_nothing = Line { comment: String::new(), target: Target::Continue, ..self.clone() } == Line::default();
        asks_nothing && !matches!(self.target, Target::Continue | Target::Jump(_) | Target::Log(_) | Target::AddTo { .. })
    }

    /// As it is written.
    pub fn write(&self, family: Family) -> String {
        let mut words = Vec::new();
        words.extend([&self.source, &self.destination].into_iter().flatten().cloned());
        let interfaces = [("-i", &self.input), ("-o", &self.output)];
        words.extend(interfaces.into_iter().filter_map(|(option, value)| Some(format!("{option} {}", value.as_ref()?))));
        words.extend(self.protocol.map(|number| format!("-p {}", protocol_name(number))));
        words.extend(self.not_protocols.first().map(|number| format!("! -p {}", protocol_name(*number))));
        words.extend(write_matches(&self.matches));
        if !self.comment.is_empty() {
            words.push(format!("-m comment --comment {}", quoted(&self.comment)));
        }
        words.extend(self.target.write(family));
        words.join(" ")
    }
}

impl Target {
    fn write(&self, family: Family) -> Option<String> {
        Some(match self {
            Target::Continue => return None,
            Target::Return => "-j RETURN".to_string(),
            Target::Drop => "-j DROP".to_string(),
            Target::Reset => "-j REJECT --reject-with tcp-reset".to_string(),
            Target::Prohibit => match family {
                Family::V4 => "-j REJECT --reject-with icmp-admin-prohibited".to_string(),
                Family::V6 => "-j REJECT --reject-with icmp6-adm-prohibited".to_string(),
            },
            Target::Jump(chain) => format!("-j {chain}"),
            Target::Goto(chain) => format!("-g {chain}"),
            Target::Log(prefix) => {
                format!("-j NFLOG --nflog-prefix {} --nflog-group {LOG_GROUP} --nflog-size 128 --nflog-threshold 1", quoted(prefix))
            }
            Target::AddTo { set, key, lives } => {
                let mut out = format!("-j SET --add-set {set} {key}");
                if *lives > 0 {
                    let _ = write!(out, " --timeout {lives}");
                }
                out
            }
        })
    }
}

/// Options of `tcp` and `udp` in the order in which they are printed; they share one match.
const PORT_OPTIONS: [&str; 3] = ["--sport", "--dport", "--tcp-flags"];

fn write_matches(matches: &[Match]) -> Vec<String> {
    let shares = |asked: &Match| PORT_OPTIONS.contains(&asked.option);
    let mut words = Vec::new();
    let mut done = false;
    for asked in matches {
        if !shares(asked) {
            words.push(format!("-m {} {}", asked.module, write_option(asked)));
        } else if !done {
            done = true;
            let mut together: Vec<&Match> = matches.iter().filter(|other| shares(other)).collect();
            together.sort_by_key(|other| PORT_OPTIONS.iter().position(|option| *option == other.option));
            words.push(format!("-m {} {}", asked.module, together.into_iter().map(write_option).collect::<Vec<_>>().join(" ")));
        }
    }
    words
}

fn write_option(asked: &Match) -> String {
    format!("{}{} {}", if asked.negated { "! " } else { "" }, asked.option, asked.value).trim_end().to_string()
}

/// iptables' name of a protocol.
pub fn protocol_name(number: u8) -> String {
    match Protocol(number) {
        Protocol::ICMPV6 => "ipv6-icmp".to_string(),
        other => other.to_string(),
    }
}

/// A text as `iptables-save` prints it: bare when it is one plain word.
pub fn quoted(text: &str) -> String {
    if !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'-')) {
        return text.to_string();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

fn once(place: &mut Option<String>, value: &str) -> Result<(), NoLine> {
    match place {
        Some(other) if other != value => Err(NoLine::TooMany),
        _ => {
            *place = Some(value.to_string());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sport() -> Piece {
        Piece::Match(Match::new("tcp", "--sport", "443"))
    }

    #[test]
    fn a_rule_is_written_as_iptables_save_prints_it() {
        let pieces = [
            Piece::Protocol(6),
            Piece::Match(Match::new("tcp", "--tcp-flags", "RST,ACK NONE").not()),
            sport(),
            Piece::Match(Match::new("set", "--match-set", "EGRESSGUARD-x dst")),
            Piece::Destination("192.0.2.1/32".to_string()),
        ];
        let line = Line::of(&pieces).unwrap().to(Target::Return, "api.example.com");
        assert_eq!(
            line.write(Family::V4),
            "-d 192.0.2.1/32 -p tcp -m tcp --sport 443 ! --tcp-flags RST,ACK NONE -m set --match-set EGRESSGUARD-x dst \
             -m comment --comment \"api.example.com\" -j RETURN"
        );
    }

    #[test]
    fn protocols_that_contradict_each_other_make_no_rule() {
        let of = |pieces: &[Piece]| Line::of(pieces).map(|line| line.write(Family::V6));
        assert_eq!(of(&[Piece::Protocol(6), Piece::Protocol(17)]), Err(NoLine::Contradiction));
        assert_eq!(of(&[Piece::NotProtocol(6), Piece::Protocol(6)]), Err(NoLine::Contradiction));
        assert_eq!(of(&[Piece::NotProtocol(6), Piece::Protocol(58)]).unwrap(), "-p ipv6-icmp");
        assert_eq!(of(&[Piece::NotProtocol(6)]).unwrap(), "! -p tcp");
        assert_eq!(Line::of(&[Piece::NotProtocol(17), Piece::NotProtocol(6)]).unwrap().take_excluded(), [6, 17]);
    }

    #[test]
    fn only_a_rule_that_asks_for_nothing_and_decides_ends_all() {
        assert!(Line::default().to(Target::Drop, "x").ends_all());
        assert!(!Line::default().to(Target::Log("p ".to_string()), "x").ends_all());
        assert!(!Line::of(&[Piece::Protocol(6)]).unwrap().to(Target::Reset, "x").ends_all());
    }

    #[test]
    fn words_that_are_not_plain_are_quoted() {
        assert_eq!(quoted("refuse-out"), "refuse-out");
        assert_eq!(quoted("api.example.com"), "\"api.example.com\"");
        assert_eq!(quoted(r#"a"b\c'd"#), r#""a\"b\\c\'d""#);
        assert_eq!(quoted(""), "\"\"");
    }
}
