//! What is under way, in memory: flows and sockets end when they are told to, or refuse to.

use std::collections::{BTreeMap, BTreeSet};

use crate::judge::flow::{Flow, Handle, LocalAddresses, LocalSocket, OwnerDetail, Underway};
use crate::judge::packet::STRANGER;
use crate::world::{Ended, Flows, FlowsError};

/// What is asked of [`SimulatedFlows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Request {
    Tracked,
    Sockets,
    Addresses,
    Delete,
    Destroy,
}

/// Flows and sockets in memory.
#[derive(Debug, Clone, Default)]
pub struct SimulatedFlows {
    /// What there is.
    pub underway: Underway,
    failures: BTreeMap<Request, FlowsError>,
    stubborn: BTreeMap<Handle, String>,
    requests: Vec<Request>,
}

impl SimulatedFlows {
    /// With this under way.
    pub fn new(underway: Underway) -> SimulatedFlows {
        SimulatedFlows { underway, ..SimulatedFlows::default() }
    }

    /// Makes every request of a kind fail.
    pub fn fail(&mut self, request: Request, error: FlowsError) {
        self.failures.insert(request, error);
    }

    /// Makes the kernel refuse to end this one.
    pub fn refuse(&mut self, handle: &Handle, errno: &str) {
        self.stubborn.insert(handle.clone(), errno.to_string());
    }

    /// What was asked, in order.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    fn asked(&mut self, request: Request) -> Result<(), FlowsError> {
        self.requests.push(request);
        self.failures.get(&request).cloned().map_or(Ok(()), Err)
    }

    /// Ends those with these handles that are there and let it happen.
    fn end<T>(&mut self, handles: &[&Handle], those: fn(&mut Underway) -> &mut Vec<T>, handle: fn(&T) -> &Handle) -> Ended {
        let mut ended = Ended::default();
        for wanted in handles {
            let all = those(&mut self.underway);
            let Some(position) = all.iter().position(|one| handle(one) == *wanted) else { continue };
            match self.stubborn.get(*wanted) {
                Some(errno) => *ended.refused.entry(errno.clone()).or_default() += 1,
                None => {
                    all.remove(position);
                    ended.ended += 1;
                }
            }
        }
        ended
    }
}

impl Flows for SimulatedFlows {
    fn tracked(&mut self) -> Result<Vec<Flow>, FlowsError> {
        self.asked(Request::Tracked)?;
        Ok(self.underway.flows.clone())
    }

    fn sockets(&mut self, details: &BTreeSet<OwnerDetail>) -> Result<Vec<LocalSocket>, FlowsError> {
        self.asked(Request::Sockets)?;
        let mut sockets = self.underway.sockets.clone();
        for owner in sockets.iter_mut().filter_map(|socket| socket.owner.as_mut()) {
            if !details.contains(&OwnerDetail::Group) {
                owner.group = STRANGER;
            }
            if !details.contains(&OwnerDetail::ControlGroups) {
                owner.cgroups.clear();
            }
        }
        Ok(sockets)
    }

    fn addresses(&mut self) -> Result<LocalAddresses, FlowsError> {
        self.asked(Request::Addresses)?;
        Ok(self.underway.addresses.clone())
    }

    fn delete(&mut self, flows: &[&Flow]) -> Result<Ended, FlowsError> {
        self.asked(Request::Delete)?;
        let handles: Vec<&Handle> = flows.iter().map(|flow| &flow.handle).collect();
        Ok(self.end(&handles, |underway| &mut underway.flows, |flow| &flow.handle))
    }

    fn destroy(&mut self, sockets: &[&LocalSocket]) -> Result<Ended, FlowsError> {
        self.asked(Request::Destroy)?;
        let handles: Vec<&Handle> = sockets.iter().map(|socket| &socket.handle).collect();
        Ok(self.end(&handles, |underway| &mut underway.sockets, |socket| &socket.handle))
    }
}
