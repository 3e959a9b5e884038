//! Asks DNS servers for addresses, over UDP, TCP and TLS. Nothing is cached, no search domain is added, no hosts file is read:
//! an answer is what a server of the policy said just now. What an answer means for pins is not decided here.
//!
//! Sockets are opened by the thread that calls, in its network namespace.

mod chain;
mod exchange;
mod roots;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::RecordType;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::base::name::DnsName;
use crate::base::net::Family;
use crate::pins::Answer;
use crate::policy::DnsServer;
use crate::system::resolver::chain::{Step, Walk};
use crate::system::resolver::exchange::Server;
use crate::system::resolver::roots::Roots;
use crate::world::Resolver;

/// How many questions are under way at once, each with one socket.
const AT_ONCE: usize = 128;

/// The longest time one server has for one family of one name, through every CNAME and repetition.
const SERVER_LIMIT: Duration = Duration::from_secs(12);

/// A [`Resolver`] that asks real servers.
///
/// Servers are asked in the order of the policy: the next one when one fails, is silent, answers SERVFAIL or REFUSED, or refers
/// elsewhere. A server has two tries of two seconds; one that is silent again and again is asked last and once, so that a dead
/// server costs seconds, not seconds for each name. NXDOMAIN and an empty answer are answers. A server that cannot be reached
/// over TLS is never asked in the clear.
#[derive(Debug, Clone, Default)]
pub struct DnsResolver {
    roots: Option<PathBuf>,
}

impl DnsResolver {
    /// A resolver that proves `tls://` servers by the system's certificates, or by the file that `SSL_CERT_FILE` names.
    pub fn new() -> DnsResolver {
        DnsResolver::default()
    }

    /// A resolver that proves `tls://` servers by the certificates of this PEM file alone.
    pub fn with_roots(file: PathBuf) -> DnsResolver {
        DnsResolver { roots: Some(file) }
    }
}

impl Resolver for DnsResolver {
    fn resolve(
        &mut self,
        names: &[DnsName],
        servers: &[DnsServer],
        progress: &mut dyn FnMut(&DnsName, &Answer),
    ) -> BTreeMap<DnsName, Answer> {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
            Ok(runtime) => runtime,
            Err(why) => return fail_all(names, &format!("cannot wait for answers: {}", exchange::words(&why)), progress),
        };
        let needs_roots = servers.iter().any(|server| matches!(server, DnsServer::Tls { .. }));
        let roots = if needs_roots { Roots::read(self.roots.as_deref()) } else { Roots::unread() };
        let servers: Vec<Server> = servers.iter().filter_map(|server| Server::new(server, &roots)).collect();
        if servers.is_empty() {
            return fail_all(names, "there is no DNS server to ask", progress);
        }
        runtime.block_on(ask_all(names, servers.into(), progress))
    }
}

fn fail_all(names: &[DnsName], reason: &str, progress: &mut dyn FnMut(&DnsName, &Answer)) -> BTreeMap<DnsName, Answer> {
    let mut answers = BTreeMap::new();
    for name in names {
        let answer = Answer::Failed { reasons: vec![reason.to_string()] };
        progress(name, &answer);
        answers.insert(name.clone(), answer);
    }
    answers
}

/// Asks for both families of every name, each question by itself.
async fn ask_all(names: &[DnsName], servers: Arc<[Server]>, progress: &mut dyn FnMut(&DnsName, &Answer)) -> BTreeMap<DnsName, Answer> {
    let mut names: Vec<&DnsName> = names.iter().collect();
    names.sort();
    names.dedup();
    let mut questions = names.into_iter().flat_map(|name| Family::BOTH.map(|family| (name.clone(), family)));
    let mut under_way = JoinSet::new();
    let mut halves: BTreeMap<DnsName, BTreeMap<Family, Told>> = BTreeMap::new();
    let mut answers = BTreeMap::new();
    loop {
        while under_way.len() < AT_ONCE {
            let Some((name, family)) = questions.next() else { break };
            let servers = Arc::clone(&servers);
            under_way.spawn(async move {
                let told = ask(&name, family, &servers).await;
                (name, family, told)
            });
        }
        let Some(done) = under_way.join_next().await else { break };
        // A question that panicked is missing below and counts as unanswered.
        let Ok((name, family, told)) = done else { continue };
        let half = halves.entry(name.clone()).or_default();
        half.insert(family, told);
        if half.len() == Family::BOTH.len() {
            let answer = join(halves.remove(&name).unwrap_or_default());
            progress(&name, &answer);
            answers.insert(name, answer);
        }
    }
    for (name, half) in halves {
        let answer = join(half);
        progress(&name, &answer);
        answers.insert(name, answer);
    }
    answers
}

/// What was found out about one family of one name.
struct Told {
    end: End,
    /// What went wrong on the way, server by server.
    complaints: Vec<String>,
}

enum End {
    Addresses { chain: Vec<String>, addresses: Vec<(std::net::IpAddr, u32)>, server: String },
    Empty { server: String },
    NoSuchName { server: String },
    Nobody,
}

/// Asks one server after the other until one answers.
async fn ask(name: &DnsName, family: Family, servers: &[Server]) -> Told {
    let record = match family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    };
    let mut complaints = Vec::new();
    let (usual, silent): (Vec<&Server>, Vec<&Server>) = servers.iter().partition(|server| !server.is_silent());
    for server in usual.into_iter().chain(silent) {
        let end = match timeout(SERVER_LIMIT, walk(name, record, server)).await {
            Ok(Ok(end)) => end,
            Ok(Err(why)) => {
                complaints.push(format!("{record} from {server}: {why}"));
                continue;
            }
            Err(_) => {
                complaints.push(format!("{record} from {server}: no end after {} s", SERVER_LIMIT.as_secs()));
                continue;
            }
        };
        return Told { end, complaints };
    }
    Told { end: End::Nobody, complaints }
}

/// Follows a name through its CNAMEs at one server.
async fn walk(name: &DnsName, record: RecordType, server: &Server) -> Result<End, String> {
    let mut walk = Walk::new(name, record)?;
    loop {
        let message = server.ask(&walk.question()).await?;
        match walk.read(&message)? {
            Step::AskAgain => {}
            Step::Addresses(addresses) => return Ok(End::Addresses { chain: walk.chain(), addresses, server: server.to_string() }),
            Step::Empty => return Ok(End::Empty { server: server.to_string() }),
            Step::NoSuchName => return Ok(End::NoSuchName { server: server.to_string() }),
        }
    }
}

/// One answer of the answers for both families.
///
/// A name that does not exist has no addresses of either family, so one NXDOMAIN is enough without addresses; that a name has
/// none is only known when both families were answered.
fn join(halves: BTreeMap<Family, Told>) -> Answer {
    let mut found = BTreeMap::new();
    let mut first_chain: Option<Vec<String>> = None;
    let mut complaints = Vec::new();
    let (mut empty, mut no_such_name) = (Vec::new(), None);
    for told in halves.into_values() {
        complaints.extend(told.complaints);
        match told.end {
            End::Addresses { chain, addresses, server } => {
                first_chain.get_or_insert(chain);
                found.extend(addresses.into_iter().map(|(address, ttl)| (address, (ttl, server.clone()))));
            }
            End::Empty { server } => empty.push(server),
            End::NoSuchName { server } => no_such_name = Some(server),
            End::Nobody => {}
        }
    }
    if let Some(chain) = first_chain {
        return Answer::Addresses { chain, addresses: found, complaints };
    }
    if let Some(server) = no_such_name {
        return Answer::NoSuchName { server };
    }
    match <[String; 2]>::try_from(empty) {
        Ok([server, _]) => Answer::Empty { server },
        Err(_) if complaints.is_empty() => Answer::Failed { reasons: vec!["the question was not carried out".to_string()] },
        Err(_) => Answer::Failed { reasons: complaints },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(end: End, complaint: &str) -> Told {
        Told { end, complaints: if complaint.is_empty() { vec![] } else { vec![complaint.to_string()] } }
    }

    fn addresses(text: &str) -> End {
        End::Addresses { chain: vec!["cdn.example".to_string()], addresses: vec![(text.parse().unwrap(), 60)], server: "s".to_string() }
    }

    fn joined(v4: Told, v6: Told) -> Answer {
        join([(Family::V4, v4), (Family::V6, v6)].into())
    }

    fn empty() -> End {
        End::Empty { server: "s".to_string() }
    }

    fn no_such_name() -> End {
        End::NoSuchName { server: "s".to_string() }
    }

    #[test]
    fn addresses_of_both_families_are_joined() {
        let Answer::Addresses { chain, addresses, complaints } =
            joined(told(addresses("1.1.1.1"), ""), told(addresses("2606:4700::1"), ""))
        else {
            panic!()
        };
        assert_eq!((chain, addresses.len(), complaints), (vec!["cdn.example".to_string()], 2, vec![]));
    }

    #[test]
    fn addresses_of_one_family_stand_with_the_complaint_about_the_other() {
        let Answer::Addresses { addresses, complaints, .. } = joined(told(addresses("1.1.1.1"), ""), told(End::Nobody, "AAAA late")) else {
            panic!()
        };
        assert_eq!((addresses.len(), complaints), (1, vec!["AAAA late".to_string()]));
    }

    #[test]
    fn a_name_is_empty_only_when_both_families_are() {
        assert_eq!(joined(told(empty(), ""), told(empty(), "")), Answer::Empty { server: "s".to_string() });
        assert_eq!(joined(told(empty(), ""), told(End::Nobody, "AAAA late")), Answer::Failed { reasons: vec!["AAAA late".to_string()] });
    }

    #[test]
    fn one_nxdomain_is_enough_and_addresses_outweigh_it() {
        assert_eq!(joined(told(no_such_name(), ""), told(End::Nobody, "late")), Answer::NoSuchName { server: "s".to_string() });
        assert!(matches!(joined(told(no_such_name(), ""), told(addresses("2606:4700::1"), "")), Answer::Addresses { .. }));
    }

    #[test]
    fn without_a_server_every_name_fails_with_the_reason() {
        let names = [DnsName::parse("a.example").unwrap()];
        let mut seen = 0;
        let answers = DnsResolver::new().resolve(&names, &[DnsServer::System], &mut |_, _| seen += 1);
        assert_eq!(answers[&names[0]], Answer::Failed { reasons: vec!["there is no DNS server to ask".to_string()] });
        assert_eq!(seen, 1);
    }
}
