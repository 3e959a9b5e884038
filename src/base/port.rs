//! Ports and sets of ports.

use std::fmt;

/// Ports `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// A range; `None` when `first` is above `last`.
    pub fn new(first: u16, last: u16) -> Option<PortRange> {
        (first <= last).then_some(PortRange { first, last })
    }

    /// The range of one port.
    pub fn single(port: u16) -> PortRange {
        PortRange { first: port, last: port }
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the port lies in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A set of ports: sorted ranges that neither overlap nor touch, so that equal sets are equal values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet(Vec<PortRange>);

impl PortSet {
    /// The set of the ports in these ranges, in any order.
    pub fn new(ranges: impl IntoIterator<Item = PortRange>) -> PortSet {
        let mut sorted: Vec<PortRange> = ranges.into_iter().collect();
        sorted.sort();
        let mut merged: Vec<PortRange> = Vec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => last.last = last.last.max(range.last),
                _ => merged.push(range),
            }
        }
        PortSet(merged)
    }

    /// The set of one port.
    pub fn single(port: u16) -> PortSet {
        PortSet(vec![PortRange::single(port)])
    }

    /// The ranges in ascending order.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// Whether the port lies in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }

    /// Whether every port of `other` lies in this set.
    pub fn covers(&self, other: &PortSet) -> bool {
        other.0.iter().all(|theirs| self.0.iter().any(|ours| ours.first <= theirs.first && theirs.last <= ours.last))
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, range) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_and_overlapping_ranges_become_one() {
        let set = PortSet::new([
            PortRange::new(90, 95).unwrap(),
            PortRange::single(80),
            PortRange::single(81),
            PortRange::new(85, 92).unwrap(),
            PortRange::single(65535),
        ]);
        assert_eq!(set.to_string(), "80-81,85-95,65535");
        assert!(set.contains(65535) && set.contains(94) && !set.contains(82));
    }

    #[test]
    fn a_backward_range_does_not_exist() {
        assert_eq!(PortRange::new(2, 1), None);
    }
}
