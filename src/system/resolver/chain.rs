//! Reads the addresses of a name out of DNS messages: from the name asked for, through its CNAMEs, to the owner of the addresses.
//! Records of any other owner are not looked at, whoever put them there. No sockets here.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::base::name::DnsName;

/// How many CNAMEs are followed.
pub const LONGEST_CHAIN: usize = 16;

/// The way from a name to its addresses, as far as it is known.
pub struct Walk {
    record: RecordType,
    /// Where the way has come to: whose records are looked for next.
    owner: Name,
    /// The targets of the CNAMEs so far, in order.
    chain: Vec<Name>,
    seen: HashSet<Name>,
    /// The least time to live of the CNAMEs so far.
    ttl: u32,
}

/// What one message says.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The end of the chain has these addresses, with the least time to live on the way.
    Addresses(Vec<(IpAddr, u32)>),
    /// The message leads to a name and says nothing of it: it is to be asked for.
    AskAgain,
    /// The end of the chain has no address of this family.
    Empty,
    /// The end of the chain does not exist.
    NoSuchName,
}

impl Walk {
    /// The way that begins at a name, to records of type A or AAAA.
    pub fn new(name: &DnsName, record: RecordType) -> Result<Walk, String> {
        let owner = Name::from_ascii(format!("{name}.")).map_err(|why| format!("`{name}` cannot be asked for: {why}"))?;
        Ok(Walk { record, seen: HashSet::from([owner.clone()]), owner, chain: Vec::new(), ttl: u32::MAX })
    }

    /// What is to be asked next.
    pub fn question(&self) -> Query {
        Query::query(self.owner.clone(), self.record)
    }

    /// The targets of the CNAMEs in order, lower-cased, as visible ASCII.
    pub fn chain(&self) -> Vec<String> {
        self.chain.iter().map(visible).collect()
    }

    /// Goes as far as the answer to [`Walk::question`] leads. Fails, with a clause about the server, when the message is no
    /// answer or the chain has no end.
    pub fn read(&mut self, message: &Message) -> Result<Step, String> {
        let code = message.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Err(format!("answered {}", code_name(code)));
        }
        let asked = self.owner.clone();
        while let Some((target, ttl)) = self.cname(&message.answers) {
            if self.chain.len() == LONGEST_CHAIN {
                return Err(format!("more than {LONGEST_CHAIN} CNAMEs in a row"));
            }
            if !self.seen.insert(target.clone()) {
                return Err(format!("the CNAMEs go in a circle at {}", visible(&target)));
            }
            self.ttl = self.ttl.min(ttl);
            self.chain.push(target.clone());
            self.owner = target;
        }
        let addresses = self.addresses(&message.answers);
        if !addresses.is_empty() {
            return Ok(Step::Addresses(addresses));
        }
        if code == ResponseCode::NXDomain {
            return Ok(Step::NoSuchName);
        }
        // RFC 2308: the SOA of a zone above the name says that there is nothing.
        let denied = message.authorities.iter().any(|record| record.record_type() == RecordType::SOA && record.name.zone_of(&self.owner));
        if self.owner != asked && !denied {
            return Ok(Step::AskAgain);
        }
        let refers = message.authorities.iter().any(|record| record.record_type() == RecordType::NS);
        if refers && !denied && !message.metadata.authoritative && !message.metadata.recursion_available {
            return Err("refers to other servers instead of answering".to_string());
        }
        Ok(Step::Empty)
    }

    fn cname(&self, answers: &[Record]) -> Option<(Name, u32)> {
        self.owned(answers).find_map(|record| match &record.data {
            RData::CNAME(target) => Some((target.0.clone(), record.ttl)),
            _ => None,
        })
    }

    fn addresses(&self, answers: &[Record]) -> Vec<(IpAddr, u32)> {
        let mut addresses = Vec::new();
        for record in self.owned(answers) {
            let address = match (&record.data, self.record) {
                (RData::A(v4), RecordType::A) => IpAddr::V4(v4.0),
                (RData::AAAA(v6), RecordType::AAAA) => IpAddr::V6(v6.0),
                _ => continue,
            };
            addresses.push((address, self.ttl.min(record.ttl)));
        }
        addresses
    }

    fn owned<'answer>(&self, answers: &'answer [Record]) -> impl Iterator<Item = &'answer Record> {
        answers.iter().filter(|record| record.name == self.owner && record.dns_class == DNSClass::IN)
    }
}

/// A response code as operators know it.
fn code_name(code: ResponseCode) -> String {
    match code {
        ResponseCode::FormErr => "FORMERR".to_string(),
        ResponseCode::ServFail => "SERVFAIL".to_string(),
        ResponseCode::NotImp => "NOTIMP".to_string(),
        ResponseCode::Refused => "REFUSED".to_string(),
        other => format!("response code {}", u16::from(other)),
    }
}

/// A name as one word: lower case, without the final dot, octets other than visible ASCII as `\DDD` (RFC 4343).
fn visible(name: &Name) -> String {
    let mut out = String::new();
    for label in name.iter() {
        if !out.is_empty() {
            out.push('.');
        }
        for octet in label {
            match octet {
                b'.' | b'\\' => out.extend(['\\', char::from(*octet)]),
                octet if octet.is_ascii_graphic() => out.push(char::from(octet.to_ascii_lowercase())),
                octet => out.push_str(&format!("\\{octet:03}")),
            }
        }
    }
    if out.is_empty() { ".".to_string() } else { out }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{MessageType, OpCode};
    use hickory_resolver::proto::rr::rdata::{A, CNAME, NS, SOA};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, address: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(address.parse().unwrap())))
    }

    fn cname(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn message(code: ResponseCode, answers: Vec<Record>) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.answers = answers;
        message
    }

    fn walk() -> Walk {
        Walk::new(&DnsName::parse("www.example").unwrap(), RecordType::A).unwrap()
    }

    fn read(answers: Vec<Record>) -> Result<Step, String> {
        walk().read(&message(ResponseCode::NoError, answers))
    }

    fn one(address: &str, ttl: u32) -> Result<Step, String> {
        Ok(Step::Addresses(vec![(address.parse().unwrap(), ttl)]))
    }

    #[test]
    fn addresses_of_the_name_itself_are_taken() {
        assert_eq!(read(vec![a("WWW.Example.", 60, "1.1.1.1")]), one("1.1.1.1", 60));
    }

    #[test]
    fn a_chain_is_followed_in_any_order_and_its_least_ttl_counts() {
        let mut walk = walk();
        let answers = vec![a("c.example.", 60, "1.1.1.1"), cname("b.example.", 20, "C.example."), cname("www.example.", 300, "b.example.")];
        assert_eq!(walk.read(&message(ResponseCode::NoError, answers)), one("1.1.1.1", 20));
        assert_eq!(walk.chain(), ["b.example", "c.example"]);
    }

    #[test]
    fn records_of_other_owners_are_not_looked_at() {
        let planted = || a("evil.example.", 60, "6.6.6.6");
        assert_eq!(read(vec![planted(), a("www.example.", 60, "1.1.1.1")]), one("1.1.1.1", 60));
        assert_eq!(read(vec![planted()]), Ok(Step::Empty));
        let beside_cname = vec![cname("www.example.", 60, "b.example."), a("www.example.", 60, "6.6.6.6"), a("b.example.", 60, "1.1.1.1")];
        assert_eq!(read(beside_cname), one("1.1.1.1", 60));
    }

    #[test]
    fn a_cname_without_addresses_is_asked_for() {
        let mut walk = walk();
        let first = message(ResponseCode::NoError, vec![cname("www.example.", 30, "b.other.")]);
        assert_eq!(walk.read(&first), Ok(Step::AskAgain));
        assert_eq!(*walk.question().name(), name("b.other."));
        assert_eq!(walk.read(&message(ResponseCode::NoError, vec![a("b.other.", 60, "1.1.1.1")])), one("1.1.1.1", 30));
        assert_eq!(walk.chain(), ["b.other"]);
    }

    #[test]
    fn a_cname_whose_zone_denies_the_address_is_not_asked_for() {
        let mut nodata = message(ResponseCode::NoError, vec![cname("www.example.", 30, "b.other.")]);
        let soa = SOA::new(name("ns.other."), name("root.other."), 1, 60, 60, 60, 60);
        nodata.authorities.push(Record::from_rdata(name("other."), 60, RData::SOA(soa.clone())));
        assert_eq!(walk().read(&nodata), Ok(Step::Empty));
        nodata.authorities = vec![Record::from_rdata(name("example."), 60, RData::SOA(soa))];
        assert_eq!(walk().read(&nodata), Ok(Step::AskAgain), "a zone speaks for its own names only");
    }

    #[test]
    fn chains_without_an_end_are_refused() {
        let circle = vec![cname("www.example.", 60, "b.example."), cname("b.example.", 60, "www.example.")];
        assert_eq!(read(circle), Err("the CNAMEs go in a circle at www.example".to_string()));
        let mut long: Vec<Record> = (0..20).map(|n| cname(&format!("n{n}.example."), 60, &format!("n{}.example.", n + 1))).collect();
        long.push(cname("www.example.", 60, "n0.example."));
        assert_eq!(read(long), Err("more than 16 CNAMEs in a row".to_string()));
    }

    #[test]
    fn nxdomain_and_an_empty_answer_are_answers_and_other_codes_are_not() {
        assert_eq!(walk().read(&message(ResponseCode::NXDomain, vec![])), Ok(Step::NoSuchName));
        assert_eq!(walk().read(&message(ResponseCode::NXDomain, vec![cname("www.example.", 60, "b.")])), Ok(Step::NoSuchName));
        assert_eq!(read(vec![]), Ok(Step::Empty));
        assert_eq!(walk().read(&message(ResponseCode::ServFail, vec![])), Err("answered SERVFAIL".to_string()));
        assert_eq!(
            walk().read(&message(ResponseCode::Refused, vec![a("www.example.", 60, "6.6.6.6")])),
            Err("answered REFUSED".to_string())
        );
    }

    #[test]
    fn a_referral_is_no_answer() {
        let mut referral = message(ResponseCode::NoError, vec![]);
        referral.authorities.push(Record::from_rdata(name("example."), 60, RData::NS(NS(name("ns.example.")))));
        assert_eq!(walk().read(&referral), Err("refers to other servers instead of answering".to_string()));
    }

    #[test]
    fn names_of_a_chain_are_one_word_whatever_their_octets() {
        let odd = Name::from_labels([&b"A b\n\\."[..], &b"\xff"[..]]).unwrap();
        assert_eq!(visible(&odd), "a\\032b\\010\\\\\\..\\255");
        assert_eq!(visible(&Name::root()), ".");
    }
}
