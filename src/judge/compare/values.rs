//! Sets of numbers: the values that a dimension of the packet space can have, as intervals.

use std::rc::Rc;

/// A set of numbers: sorted intervals, both ends included, that neither overlap nor touch, so that equal sets are equal values.
///
/// A comparison keeps the same few sets in very many boxes, so a copy shares its intervals.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Values(Rc<[(u128, u128)]>);

impl Values {
    /// The numbers of these intervals, in any order.
    pub fn new(intervals: impl IntoIterator<Item = (u128, u128)>) -> Values {
        let mut sorted: Vec<(u128, u128)> = intervals.into_iter().filter(|(first, last)| first <= last).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Values(merged.into())
    }

    /// One number.
    pub fn one(value: u128) -> Values {
        Values(Rc::new([(value, value)]))
    }

    /// These numbers.
    pub fn points(values: impl IntoIterator<Item = u128>) -> Values {
        Values::new(values.into_iter().map(|value| (value, value)))
    }

    /// The numbers of all these.
    pub fn of(parts: &[&Values]) -> Values {
        match parts {
            [] => Values::default(),
            [first, rest @ ..] if rest.iter().all(|part| part == first) => (*first).clone(),
            _ => Values::new(parts.iter().flat_map(|part| part.intervals()).copied()),
        }
    }

    /// The intervals in ascending order.
    pub fn intervals(&self) -> &[(u128, u128)] {
        &self.0
    }

    /// Whether there is no number in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest number.
    pub fn first(&self) -> Option<u128> {
        self.0.first().map(|interval| interval.0)
    }

    /// Whether it holds the number.
    pub fn contains(&self, value: u128) -> bool {
        let behind = self.0.partition_point(|interval| interval.0 <= value);
        behind.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|interval| value <= interval.1)
    }

    /// Whether it holds every number of the other.
    pub fn covers(&self, other: &Values) -> bool {
        other.0.iter().all(|(first, last)| {
            let behind = self.0.partition_point(|interval| interval.0 <= *first);
            behind.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|interval| *last <= interval.1)
        })
    }

    /// The numbers of both.
    pub fn union(&self, other: &Values) -> Values {
        Values::new(self.0.iter().chain(other.0.iter()).copied())
    }

    /// The numbers that are in both.
    pub fn within(&self, other: &Values) -> Values {
        let mut both = Vec::new();
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (a.0.max(b.0), a.1.min(b.1));
            if first <= last {
                both.push((first, last));
            }
            let shorter = if a.1 < b.1 { &mut ours } else { &mut theirs };
            shorter.next();
        }
        Values(both.into())
    }

    /// The numbers that are not in the other.
    pub fn without(&self, other: &Values) -> Values {
        let mut rest = Vec::new();
        let mut theirs = other.0.iter().peekable();
        for (first, last) in self.0.iter() {
            let mut from = Some(*first);
            while let (Some(start), Some((low, high))) = (from, theirs.peek()) {
                if high < &start {
                    theirs.next();
                } else if low > last {
                    break;
                } else {
                    if *low > start {
                        rest.push((start, low - 1));
                    }
                    from = high.checked_add(1).filter(|next| next <= last);
                    if from.is_some() {
                        theirs.next();
                    }
                }
            }
            rest.extend(from.map(|start| (start, *last)));
        }
        Values(rest.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Values> {
        vec((0u128..40, 0u128..8), 0..6).prop_map(|parts| Values::new(parts.into_iter().map(|(first, len)| (first, first + len))))
    }

    proptest! {
        #[test]
        fn sets_are_what_their_members_say(a in values(), b in values()) {
            for value in 0..50 {
                let (in_a, in_b) = (a.contains(value), b.contains(value));
                prop_assert_eq!(a.union(&b).contains(value), in_a || in_b);
                prop_assert_eq!(a.within(&b).contains(value), in_a && in_b);
                prop_assert_eq!(a.without(&b).contains(value), in_a && !in_b);
            }
            prop_assert_eq!(a.covers(&b), b.without(&a).is_empty());
            prop_assert_eq!(Values::of(&[&a, &b]), a.union(&b));
            prop_assert_eq!(&Values::of(&[&a, &a]), &a);
            prop_assert_eq!(&Values::new(a.intervals().iter().copied()), &a);
            prop_assert_eq!(a.without(&b).union(&a.within(&b)), a);
        }
    }

    #[test]
    fn the_highest_number_is_a_number() {
        let all = Values::new([(0, u128::MAX)]);
        assert_eq!(all.without(&Values::one(u128::MAX)).intervals(), [(0, u128::MAX - 1)]);
        assert_eq!(all.without(&Values::one(0)).union(&Values::one(0)), all);
    }
}
