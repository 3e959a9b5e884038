//! Ends what the rules no longer allow, within the command that loaded them. Shared by apply, refresh and restore.
//!
//! One look after the commit is enough: what was opened since was judged by the new rules already. What is deleted and takes itself
//! up again (`nf_conntrack_tcp_loose`) is judged as new.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::command::{Exit, Failure, Output};
use crate::judge::flow::{Flow, LocalSocket, OwnerDetail, Phase, Underway};
use crate::judge::packet::STRANGER;
use crate::judge::revoke::{asks, revoke};
use crate::policy::Mode;
use crate::ruleset::Ruleset;
use crate::state::{self, LastRefresh};
use crate::world::{Ended, Flows, FlowsError, World};

/// What was ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revocation {
    /// Tracked flows that were under way.
    pub flows: usize,
    /// Sockets that a program had open.
    pub sockets: usize,
    /// Why some flow that is not allowed may be under way still.
    pub shortfall: Option<String>,
}

impl Revocation {
    /// The line for people; nothing when nothing was ended.
    pub fn words(&self) -> Option<String> {
        let anything = self.flows + self.sockets > 0;
        anything.then(|| format!("revoked {} ({} closed)", counted(self.flows, "flow"), counted(self.sockets, "socket")))
    }

    /// The first reason is the one that is told.
    fn falls_short(&mut self, why: String) {
        self.shortfall.get_or_insert(why);
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        json!({"flows": self.flows, "sockets": self.sockets})
    }

    /// The end of a command that has loaded the rules, printed its answer, and would exit with `exit`.
    pub fn conclude(self, exit: Exit) -> Result<Exit, Failure> {
        match self.shortfall {
            None => Ok(exit),
            Some(why) => Err(Failure::refused(
                format!("the rules are loaded, but flows from before may go on: {why}"),
                "mend that (a module that is missing: `modprobe`) and run this again: it revokes then",
            )),
        }
    }
}

/// The peer and the local port of the session that a command runs in.
pub type Session = Option<(IpAddr, u16)>;

/// Whether a run that loaded this generation, in this boot and namespace, has come to the end of its revocation. The note of it is the
/// one that saves the next refresh its look at the kernel: it is written when a run is done, and by `restore` for no namespace.
pub fn was_done(generation: u64, world: &World) -> bool {
    let is_this = |last: LastRefresh| last.generation == generation && last.namespace == world.host.namespace();
    state::last_refresh(world.files).is_some_and(is_this)
}

/// Whether nothing that the rules do not allow is left of this revocation, or of none at all.
pub fn is_complete(revocation: Option<&Revocation>) -> bool {
    revocation.is_none_or(|revocation| revocation.shortfall.is_none())
}

/// Ends what these rules, which the kernel holds now, do not allow. Rules that only observe end nothing and look at nothing. `session` is
/// asked, which takes a walk through the ancestors of this process, when something is to end.
pub fn end(ruleset: &Ruleset, flows: &mut dyn Flows, session: impl FnOnce() -> Session, output: &mut Output) -> Option<Revocation> {
    if ruleset.identity.mode == Mode::Observe {
        return None;
    }
    let mut revocation = Revocation::default();
    let underway = match look(ruleset, flows, &mut revocation) {
        Ok(underway) => underway,
        Err(error) => {
            revocation.shortfall = Some(error.to_string());
            return Some(revocation);
        }
    };
    let revoked = revoke(ruleset, &underway);
    if revoked.is_nothing() {
        return Some(revocation);
    }
    let session = session();
    let (own_flows, other_flows): (Vec<_>, Vec<_>) = revoked.flows.into_iter().partition(|flow| carries(flow, session));
    let (own_sockets, other_sockets): (Vec<_>, Vec<_>) = revoked.sockets.into_iter().partition(|socket| serves(socket, session));
    say_unknown_groups(ruleset, &other_sockets, output);
    let mut ending = Ending { flows, revocation: &mut revocation, unclosable: 0 };
    // ORDER: sockets before their entries. The reset by which a closed socket takes leave of its peer passes while the flow is
    // tracked; afterwards it would be refused, the peer would wait in vain, and the ledger would count a violation.
    ending.sockets(&other_sockets);
    ending.flows(&other_flows);
    if let Some((peer, port)) = session.filter(|_| !own_flows.is_empty() || !own_sockets.is_empty()) {
        // ORDER: the session that this runs in comes last, because its end can be the end of this process.
        output.warn(&format!("this session from {peer} to port {port} is not allowed either, and ends now"));
        ending.sockets(&own_sockets);
        ending.flows(&own_flows);
    }
    if ending.unclosable > 0 {
        let sockets = counted(ending.unclosable, "socket");
        output.warn(&format!("this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY): {sockets} will learn it by the next packet"));
    }
    Some(revocation)
}

/// How many flows and sockets would end if these rules were held.
pub fn would_end(ruleset: &Ruleset, flows: &mut dyn Flows) -> Result<(usize, usize), Failure> {
    let wrap = |error: FlowsError| Failure::refused(error.to_string(), "run it as root, or with CAP_NET_ADMIN");
    let (addresses, tracked, sockets) =
        (flows.addresses().map_err(wrap)?, flows.tracked().map_err(wrap)?, flows.sockets(&asks(ruleset)).map_err(wrap)?);
    let underway = Underway { flows: tracked, sockets, addresses };
    let revoked = revoke(ruleset, &underway);
    Ok((revoked.flows.len(), revoked.sockets.len()))
}

/// What is under way. Without sockets nobody owns a flow; without tracked flows sockets speak for themselves.
fn look(ruleset: &Ruleset, flows: &mut dyn Flows, revocation: &mut Revocation) -> Result<Underway, FlowsError> {
    let addresses = flows.addresses()?;
    let tracked = flows.tracked().unwrap_or_else(|error| {
        revocation.falls_short(error.to_string());
        Vec::new()
    });
    let sockets = flows.sockets(&asks(ruleset)).unwrap_or_else(|error| {
        revocation.falls_short(error.to_string());
        Vec::new()
    });
    Ok(Underway { flows: tracked, sockets, addresses })
}

/// Says that somebody may have lost a flow which his group may have.
fn say_unknown_groups(ruleset: &Ruleset, sockets: &[&LocalSocket], output: &mut Output) {
    let unknown = sockets.iter().filter(|socket| socket.owner.as_ref().is_some_and(|owner| owner.group == STRANGER)).count();
    if unknown > 0 && asks(ruleset).contains(&OwnerDetail::Group) {
        output.warn(&format!(
            "the group of {} could not be found out, so what only a group may have was revoked; programs may connect again",
            counted(unknown, "socket")
        ));
    }
}

/// Whether this flow is the session.
fn carries(flow: &Flow, session: Session) -> bool {
    let Some((peer, port)) = session else { return false };
    let (original, reply) = (&flow.original, &flow.reply);
    (original.source == peer && reply.payload.source_port() == Some(port))
        || (reply.source == peer && original.payload.source_port() == Some(port))
}

fn serves(socket: &LocalSocket, session: Session) -> bool {
    session.is_some_and(|(peer, port)| socket.local.port() == port && socket.remote.is_some_and(|remote| remote.ip() == peer))
}

struct Ending<'a> {
    flows: &'a mut dyn Flows,
    revocation: &'a mut Revocation,
    /// Sockets that this kernel cannot close.
    unclosable: usize,
}

impl Ending<'_> {
    /// A socket that no process has any more is closed all the same, and is none of those that people count.
    fn sockets(&mut self, sockets: &[&LocalSocket]) {
        let (owned, orphaned): (Vec<_>, Vec<_>) = sockets.iter().partition(|socket| socket.owner.is_some());
        self.revocation.sockets += self.destroy(&owned);
        self.destroy(&orphaned);
    }

    fn destroy(&mut self, sockets: &[&LocalSocket]) -> usize {
        if sockets.is_empty() {
            return 0;
        }
        match self.flows.destroy(sockets) {
            Ok(mut ended) => {
                // Their flows are deleted, and the rules refuse what comes next: nothing passes.
                self.unclosable += ended.refused.remove("EOPNOTSUPP").unwrap_or(0);
                self.count(ended, "socket", "closed")
            }
            Err(error) => self.nothing(&error),
        }
    }

    /// An entry that outlives its connection is deleted all the same, for packets pass by it; it is no flow that people count.
    fn flows(&mut self, flows: &[&Flow]) {
        let (live, over): (Vec<_>, Vec<_>) = flows.iter().partition(|flow| flow.phase == Phase::Live);
        self.revocation.flows += self.delete(&live);
        self.delete(&over);
    }

    fn delete(&mut self, flows: &[&Flow]) -> usize {
        if flows.is_empty() {
            return 0;
        }
        match self.flows.delete(flows) {
            Ok(ended) => self.count(ended, "tracked flow", "deleted"),
            Err(error) => self.nothing(&error),
        }
    }

    fn count(&mut self, Ended { ended, refused }: Ended, what: &str, done: &str) -> usize {
        if !refused.is_empty() {
            let errnos = refused.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            self.revocation.falls_short(format!("{} could not be {done} ({errnos})", counted(refused.values().sum(), what)));
        }
        ended
    }

    fn nothing(&mut self, error: &FlowsError) -> usize {
        self.revocation.falls_short(error.to_string());
        0
    }
}

/// A number with its word.
pub fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
