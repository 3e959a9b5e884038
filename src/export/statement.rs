//! What a rule does once its tests hold, as iptables does it: counting in sets, limits, records, and the end of the packet.

use crate::base::net::Family;
use crate::export::iptables::{ELSEWHERE, Exporter, Writing};
use crate::export::names;
use crate::export::rule::{Line, Target};
use crate::export::set::{IpSet, LIFE_MAX};
use crate::export::words::{KeyPart, Match, Way, key_part};
use crate::ruleset::rule::{Action, Carries, Rate, RateUnit, Rule, Side, Statement};
use crate::ruleset::text;

/// The most packets at once that `limit` takes, and `hashlimit` (`XT_HASHLIMIT_BURST_MAX`, Linux 4.9 and newer).
const BURST_MAX: [u32; 2] = [10_000, 1_000_000];
/// The most packets a second that `limit` tells from more of them (`XT_LIMIT_SCALE`).
const RATE_MAX: u64 = 10_000;
/// The longest text that NFLOG puts before a record, in octets, without its NUL.
const LOG_PREFIX_MAX: usize = 63;

/// What a rule does once its tests hold.
pub(super) struct End {
    matches: Vec<Match>,
    target: Target,
}

impl End {
    pub(super) fn onto(self, line: Line, comment: &str) -> Line {
        self.matches.into_iter().fold(line, Line::with).to(self.target, comment)
    }
}

impl<'a> Exporter<'a> {
    /// What a rule does once its tests hold: one or several further matches, each with a target. `None` when it cannot be said.
    pub(super) fn ends(&mut self, rule: &'a Rule, action: &'a Action, writing: &mut Writing<'a>) -> Option<Vec<End>> {
        let mut matches = Vec::new();
        let mut ends: Option<Vec<End>> = None;
        for statement in &rule.statements {
            if ends.is_some() {
                self.cannot(&rule.id, format!("`{}` does more than one rule of iptables can", text::write_rule(rule)), ELSEWHERE);
                return None;
            }
            match statement {
                Statement::Limit(rate, side) => matches.push(self.limit(rule, *rate, *side, writing.name)?),
                Statement::Log { prefix } if prefix.len() <= LOG_PREFIX_MAX => {
                    ends = Some(vec![End { matches: Vec::new(), target: Target::Log(prefix.clone()) }]);
                }
                Statement::Log { prefix } => {
                    self.cannot(&rule.id, format!("`{prefix}` is longer than what NFLOG puts before a record"), ELSEWHERE);
                    return None;
                }
                Statement::Update { set, key, lives, carries } => {
                    let parts: Vec<KeyPart> = key.iter().map(|field| key_part(*field)).collect();
                    match (parts.as_slice(), carries) {
                        ([KeyPart::Everybody], Carries::Nothing) => {
                            matches.push(Match::new("recent", "--set", everybody(set, writing.family)));
                        }
                        // What all sets together leave out is not counted here: ipset has no key that every packet has.
                        ([KeyPart::Everybody], Carries::Counter) => ends = Some(Vec::new()),
                        (parts, Carries::Counter) => ends = Some(self.ledger(rule, set, parts, lives.seconds(), writing.family)?),
                        _ => {
                            self.cannot_update(rule, key);
                            return None;
                        }
                    }
                }
            }
        }
        let target = match action {
            Action::Continue => Target::Continue,
            Action::Accept => Target::Return,
            Action::Drop => Target::Drop,
            Action::Reset => Target::Reset,
            Action::Prohibit => Target::Prohibit,
            Action::Goto(name) => {
                writing.targets.push(name);
                Target::Goto(names::chain(name))
            }
            Action::Jump(_) | Action::Return => return None,
        };
        match ends {
            None => Some(vec![End { matches, target }]),
            Some(ends) if target == Target::Continue => {
                Some(ends.into_iter().map(|end| End { matches: [matches.as_slice(), &end.matches].concat(), ..end }).collect())
            }
            Some(_) => {
                self.cannot(&rule.id, format!("`{}` does more than one rule of iptables can", text::write_rule(rule)), ELSEWHERE);
                None
            }
        }
    }

    /// Counts in a set of ipset: an element that is there counts by being looked up, one that is not is added with its first packet.
    /// Adding it again would begin its count anew, and so nothing renews its time.
    fn ledger(&mut self, rule: &Rule, set: &str, parts: &[KeyPart], lives: u64, family: Family) -> Option<Vec<End>> {
        let mut addresses: Vec<&str> = Vec::new();
        for part in parts {
            match part {
                KeyPart::Address(way) => addresses.push(way.keyword()),
                // ipset keeps protocol and port together, and the port of protocols that have none is 0. It knows no users: what they
                // did is counted together.
                KeyPart::Protocol | KeyPart::Port(Way::Destination) | KeyPart::Owner => {}
                KeyPart::Port(Way::Source) | KeyPart::Everybody | KeyPart::Nothing => {
                    self.cannot(&rule.id, format!("the key of the set `{set}` cannot be said in ipset"), ELSEWHERE);
                    return None;
                }
            }
        }
        let (kind, key) = match addresses.as_slice() {
            // Every set with a port has an address: our own, of which there are few.
            [] => ("hash:ip,port", "dst,dst".to_string()),
            [one] => ("hash:ip,port", format!("{one},dst")),
            [one, other] => ("hash:ip,port,ip", format!("{one},dst,{other}")),
            _ => {
                self.cannot(&rule.id, format!("the key of the set `{set}` cannot be said in ipset"), ELSEWHERE);
                return None;
            }
        };
        let meaning = names::meaning(self.ruleset.sets.get(set)?, family);
        let name = self.names.get(&meaning)?.to_string();
        let lives = lives.min(LIFE_MAX);
        let made = IpSet::filled_by_rules(kind, name.clone(), meaning, family, lives);
        self.sets.entry(name.clone()).or_insert(made);
        let there = Match::new("set", "--match-set", format!("{name} {key}"));
        let absent = Match::new("set", "--match-set", format!("{name} {key} ! --update-counters")).not();
        Some(vec![
            // ORDER: counted before it is added, or the first packet would count twice.
            End { matches: vec![there], target: Target::Continue },
            End { matches: vec![absent], target: Target::AddTo { set: name, key, lives } },
        ])
    }

    fn limit(&mut self, rule: &Rule, rate: Rate, side: Side, chain: &str) -> Option<Match> {
        let unit = match rate.unit {
            RateUnit::Second => Some("sec"),
            RateUnit::Minute => Some("min"),
            RateUnit::Hour => Some("hour"),
            RateUnit::Day => Some("day"),
            RateUnit::Week => None,
        };
        let most = match side {
            Side::Below => BURST_MAX[0],
            Side::Over => BURST_MAX[1],
        };
        let too_fast = rate.packets > RATE_MAX * rate.unit.seconds();
        let Some(unit) = unit.filter(|_| rate.burst <= most && !too_fast && rate.packets > 0) else {
            let words = format!("{} packets in a {}, {} at once", rate.packets, rate.unit.keyword(), rate.burst);
            self.cannot(
                &rule.id,
                format!("a limit of {words} cannot be said in iptables"),
                "iptables counts up to a million packets, by the second, minute, hour or day",
            );
            return None;
        };
        Some(match side {
            Side::Below => Match::new("limit", "--limit", format!("{}/{unit} --limit-burst {}", rate.packets, rate.burst)),
            Side::Over => {
                // The kernel keeps what a name has counted, with the limit that it was first given: another limit, another name.
                let name = format!("{}{chain}-{}-{unit}-{}", names::PREFIX, rate.packets, rate.burst);
                let value = format!("{}/{unit} --hashlimit-burst {} --hashlimit-name {name}", rate.packets, rate.burst);
                Match::new("hashlimit", "--hashlimit-above", value)
            }
        })
    }
}

/// What `recent` remembers, of which the address is no part.
pub(super) fn everybody(set: &str, family: Family) -> String {
    format!("--name {} --mask {} --rsource", names::recent(set, family), family.unspecified())
}
