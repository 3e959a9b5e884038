//! Pins when the wall clock jumps. Leases are stamped with the wall clock, because they outlive a boot; a clock that is set
//! forward would end them all at once, and one that is set back would prolong them.

use crate::base::time::{Period, Timestamp};
use crate::pins::Pins;

/// Seconds by which the two clocks may disagree without a jump: both are read one after the other and in whole seconds, and
/// NTP slews the wall clock by up to 500 parts per million, which is 2 s in an hour.
pub const TOLERANCE: u64 = 10;

/// One moment on both clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Which boot: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Seconds since that boot, with the time it slept (CLOCK_BOOTTIME). Nobody can set this clock.
    pub boottime: u64,
    /// What the wall clock showed.
    pub wall: Timestamp,
}

impl Anchor {
    /// Whether both are of the same boot. A boot whose id is not known is none that was before.
    pub fn is_of_the_same_boot(&self, other: &Anchor) -> bool {
        !self.boot_id.is_empty() && self.boot_id == other.boot_id
    }
}

/// Pins on the clock as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebased {
    /// The pins, with no stamp that lies ahead.
    pub pins: Pins,
    /// By how many seconds all stamps were moved, because the clock had jumped by as much; 0 when it had not.
    pub skew: i64,
}

/// Moves the stamps of pins that were written at `then` to the clock of `now`.
///
/// Within one boot the clock that nobody can set says how much time went by, and the difference to the wall clock is a jump.
/// After another boot the wall clock is believed, except that it cannot be earlier than when the pins were written: it then
/// runs from a wrong start, and no time at all is taken to have gone by. In every case nothing was seen later than now, and
/// nothing lasts longer than `keep` from now.
pub fn rebase(pins: &Pins, then: &Anchor, now: &Anchor, keep: Period) -> Rebased {
    let skew = skew(then, now);
    let move_stamp = |stamp: Timestamp| Timestamp(stamp.0.saturating_add(skew)).min(now.wall);
    let latest = now.wall.plus(keep);
    let mut pins = pins.clone();
    for name in pins.names.values_mut() {
        name.confirmed = name.confirmed.map(move_stamp);
        for lease in name.leases.values_mut() {
            lease.first_seen = move_stamp(lease.first_seen);
            lease.last_seen = move_stamp(lease.last_seen);
            lease.expires = Timestamp(lease.expires.0.saturating_add(skew)).min(latest);
        }
    }
    Rebased { pins, skew }
}

fn skew(then: &Anchor, now: &Anchor) -> i64 {
    let moved = now.wall.0.saturating_sub(then.wall.0);
    if then.is_of_the_same_boot(now) && now.boottime >= then.boottime {
        let went_by = i64::try_from(now.boottime - then.boottime).unwrap_or(i64::MAX);
        let jump = moved.saturating_sub(went_by);
        if jump.unsigned_abs() > TOLERANCE { jump } else { 0 }
    } else {
        moved.min(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::name::DnsName;
    use crate::pins::{Lease, LeaseState, NamePins};

    const DAY: Period = Period::from_seconds(86400);
    const T: i64 = 1_800_000_000;

    fn anchor(boot_id: &str, boottime: u64, wall: i64) -> Anchor {
        Anchor { boot_id: boot_id.to_string(), boottime, wall: Timestamp(wall) }
    }

    /// One live and one draining lease, seen at T and an hour before.
    fn pins() -> Pins {
        let lease = |seen: i64| Lease {
            server: "192.0.2.53:53".to_string(),
            ttl: 300,
            first_seen: Timestamp(T - 7200),
            last_seen: Timestamp(seen),
            expires: Timestamp(seen + 86400),
        };
        let leases = BTreeMap::from([("1.1.1.1".parse().unwrap(), lease(T)), ("1.1.1.2".parse().unwrap(), lease(T - 3600))]);
        let name = NamePins { confirmed: Some(Timestamp(T)), leases, ..NamePins::default() };
        Pins { names: [(DnsName::parse("a.example").unwrap(), name)].into() }
    }

    fn only(pins: &Pins) -> &NamePins {
        pins.names.values().next().unwrap()
    }

    /// What remains of each lease.
    fn remains(pins: &Pins, now: i64) -> Vec<i64> {
        only(pins).leases.values().map(|lease| lease.expires.0 - now).collect()
    }

    #[test]
    fn without_a_jump_no_stamp_moves() {
        let rebased = rebase(&pins(), &anchor("b", 100, T), &anchor("b", 700, T + 603), DAY);
        assert_eq!(rebased, Rebased { pins: pins(), skew: 0 });
    }

    #[test]
    fn a_forward_jump_ends_no_lease() {
        let year = 365 * 86400;
        let rebased = rebase(&pins(), &anchor("b", 100, T), &anchor("b", 700, T + 600 + year), DAY);
        assert_eq!(rebased.skew, year);
        assert_eq!(remains(&rebased.pins, T + 600 + year), [86400 - 600, 86400 - 3600 - 600]);
    }

    #[test]
    fn a_backward_jump_prolongs_no_lease() {
        let year = 365 * 86400;
        let rebased = rebase(&pins(), &anchor("b", 100, T), &anchor("b", 700, T + 600 - year), DAY);
        assert_eq!(rebased.skew, -year);
        assert_eq!(remains(&rebased.pins, T + 600 - year), [86400 - 600, 86400 - 3600 - 600]);
    }

    #[test]
    fn a_jump_keeps_live_live_and_draining_draining() {
        let rebased = rebase(&pins(), &anchor("b", 100, T), &anchor("b", 101, T - 5000), DAY);
        let name = only(&rebased.pins);
        let states: Vec<_> = name.leases.values().map(|lease| name.state(lease, Timestamp(T - 5000))).collect();
        assert_eq!(states, [LeaseState::Live, LeaseState::Draining]);
    }

    #[test]
    fn after_a_reboot_the_wall_clock_is_believed() {
        let rebased = rebase(&pins(), &anchor("b", 9000, T), &anchor("c", 20, T + 4000), DAY);
        assert_eq!(rebased, Rebased { pins: pins(), skew: 0 });
    }

    #[test]
    fn a_boot_with_a_clock_before_the_last_one_counts_as_no_time_and_recovers_when_the_clock_is_set() {
        let at_boot = rebase(&pins(), &anchor("b", 9000, T), &anchor("c", 20, 1000), DAY);
        assert_eq!(remains(&at_boot.pins, 1000), [86400, 86400 - 3600]);
        let set = rebase(&at_boot.pins, &anchor("c", 20, 1000), &anchor("c", 80, T + 90), DAY);
        assert_eq!(remains(&set.pins, T + 90), [86400 - 60, 86400 - 3600 - 60]);
    }

    #[test]
    fn stamps_that_lie_ahead_are_cut_to_now_and_to_now_plus_keep() {
        let early = T - 500_000;
        let rebased = rebase(&pins(), &anchor("b", 9000, early), &anchor("c", 20, early), DAY);
        let name = only(&rebased.pins);
        assert_eq!(name.confirmed, Some(Timestamp(early)));
        for lease in name.leases.values() {
            assert_eq!((lease.first_seen, lease.last_seen), (Timestamp(early), Timestamp(early)));
            assert_eq!(lease.expires, Timestamp(early + 86400));
        }
    }

    #[test]
    fn a_boottime_that_went_back_is_another_boot_whatever_its_id() {
        let rebased = rebase(&pins(), &anchor("b", 9000, T), &anchor("b", 20, T + 4000), DAY);
        assert_eq!(rebased.skew, 0);
    }
}
