//! What of a policy changes and is no packet: settings. Most of them neither widen nor narrow; some do, because they say what names
//! can mean, how long, or what follows a violation.

use std::cmp::Ordering;

use crate::policy::{Alert, DnsServer, Policy, PrivateAnswers, Quarantine, QuarantineScope, RawFrames};

/// A setting that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its keys in the policy, joined by dots.
    pub name: &'static str,
    /// Its value before, in the policy's words; `None` when there was none.
    pub before: Option<String>,
    /// Its value after.
    pub after: Option<String>,
    /// What it means.
    pub effect: Effect,
    /// Why it means that, as a clause.
    pub because: &'static str,
}

/// What another value of a setting means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Something can be allowed that could not be.
    Widens,
    /// Something can no longer be allowed.
    Narrows,
    /// Neither.
    Neither,
}

/// The settings in which two policies differ, widening first.
pub fn settings(old: &Policy, new: &Policy) -> Vec<Setting> {
    let found = [
        setting("refresh.private", private(old.refresh.private), private(new.refresh.private), {
            let allows = |policy: &Policy| policy.refresh.private == PrivateAnswers::Allow;
            let why = "a name may mean private, loopback and metadata addresses";
            let no = "a name no longer means private, loopback and metadata addresses";
            by(allows(new).cmp(&allows(old)), why, no)
        }),
        setting("refresh.keep", old.refresh.keep.to_string(), new.refresh.keep.to_string(), {
            let longer = "an address stays allowed for longer after DNS last named it";
            let shorter = "an address stays allowed for less long after DNS last named it";
            by(new.refresh.keep.cmp(&old.refresh.keep), longer, shorter)
        }),
        setting("refresh.every", old.refresh.every.to_string(), new.refresh.every.to_string(), {
            (Effect::Neither, "how soon a new address of a name is known")
        }),
        setting("host.raw-frames", raw(old.host.raw_frames), raw(new.host.raw_frames), {
            let step = looseness(new.host.raw_frames).cmp(&looseness(old.host.raw_frames));
            by(step, "frames of packet sockets are held to the policy less", "frames of packet sockets are held to the policy more")
        }),
        setting("violations.quarantine", words(old.violations.quarantine.as_ref()), words(new.violations.quarantine.as_ref()), {
            quarantine(old.violations.quarantine.as_ref(), new.violations.quarantine.as_ref())
        }),
        setting("violations.alert", alert(old.violations.alert.as_ref()), alert(new.violations.alert.as_ref()), {
            (Effect::Neither, "who is told of violations")
        }),
        setting("dns.servers", servers(&old.dns), servers(&new.dns), {
            (Effect::Neither, "who says what names mean; the packets to them are listed by themselves")
        }),
    ];
    let mut settings: Vec<Setting> = found.into_iter().flatten().collect();
    settings.sort_by_key(|setting| setting.effect);
    settings
}

/// A setting, if it differs.
fn setting(
    name: &'static str,
    before: impl Into<Option<String>>,
    after: impl Into<Option<String>>,
    (effect, because): (Effect, &'static str),
) -> Option<Setting> {
    let (before, after) = (before.into(), after.into());
    (before != after).then_some(Setting { name, before, after, effect, because })
}

/// What it means that a setting went up, or down.
fn by(step: Ordering, wider: &'static str, narrower: &'static str) -> (Effect, &'static str) {
    match step {
        Ordering::Greater => (Effect::Widens, wider),
        Ordering::Less => (Effect::Narrows, narrower),
        Ordering::Equal => (Effect::Neither, wider),
    }
}

fn private(answers: PrivateAnswers) -> String {
    match answers {
        PrivateAnswers::Refuse => "refuse",
        PrivateAnswers::Allow => "allow",
    }
    .to_string()
}

fn raw(frames: RawFrames) -> String {
    match frames {
        RawFrames::Allow => "allow",
        RawFrames::Deny => "deny",
        RawFrames::BestEffort => "best-effort",
    }
    .to_string()
}

fn looseness(frames: RawFrames) -> u8 {
    match frames {
        RawFrames::Deny => 0,
        RawFrames::BestEffort => 1,
        RawFrames::Allow => 2,
    }
}

fn words(quarantine: Option<&Quarantine>) -> Option<String> {
    quarantine.map(|quarantine| {
        let scope = match quarantine.scope {
            QuarantineScope::User => "user",
            QuarantineScope::Host => "host",
        };
        format!("after {} within {} for {}, scope {scope}", quarantine.after, quarantine.within, quarantine.lasts)
    })
}

/// A quarantine is looser when somebody can break more rules before it, or is cut off more narrowly or for less long. One that is
/// looser in anything widens: somebody goes on who would have been cut off.
fn quarantine(old: Option<&Quarantine>, new: Option<&Quarantine>) -> (Effect, &'static str) {
    let goes_on = "somebody who breaks rules goes on where he was cut off";
    let cut_off = "somebody who breaks rules is cut off where he went on";
    let is_host = |quarantine: &Quarantine| quarantine.scope == QuarantineScope::Host;
    match (old, new) {
        (Some(_), None) => (Effect::Widens, goes_on),
        (None, Some(_)) => (Effect::Narrows, cut_off),
        (Some(old), Some(new)) => {
            let looser = new.after > old.after || new.within < old.within || new.lasts < old.lasts || (is_host(old) && !is_host(new));
            if looser { (Effect::Widens, goes_on) } else { (Effect::Narrows, cut_off) }
        }
        (None, None) => (Effect::Neither, ""),
    }
}

fn alert(alert: Option<&Alert>) -> Option<String> {
    alert.map(|alert| format!("run {} at most every {}", alert.run, alert.at_most_every))
}

fn servers(servers: &[DnsServer]) -> String {
    let port = |port: u16, usual: u16| if port == usual { String::new() } else { format!(":{port}") };
    let host = |address: &std::net::IpAddr, port: &str| match address {
        std::net::IpAddr::V6(v6) if !port.is_empty() => format!("[{v6}]{port}"),
        address => format!("{address}{port}"),
    };
    let written = servers.iter().map(|server| match server {
        DnsServer::System => "system".to_string(),
        DnsServer::Plain { address, port: number } => host(address, &port(*number, 53)),
        DnsServer::Tls { address, port: number, name } => format!("tls://{}#{name}", host(address, &port(*number, 853))),
    });
    written.collect::<Vec<_>>().join(", ")
}
