//! Points in time and lengths of time, in whole seconds.

use std::fmt;

/// Seconds since 1970-01-01T00:00:00Z. Printed as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time plus a period.
    pub fn plus(self, period: Period) -> Timestamp {
        Timestamp(self.0.saturating_add_unsigned(period.seconds()))
    }

    /// How long after `earlier` this is; nothing when it is not after.
    pub fn since(self, earlier: Timestamp) -> Period {
        Period::from_seconds(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads RFC 3339, in any offset; fractions of a second are cut off.
    pub fn parse(text: &str) -> Option<Timestamp> {
        text.parse::<jiff::Timestamp>().ok().map(|time| Timestamp(time.as_second()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "@{}", self.0),
        }
    }
}

/// A length of time in whole seconds. Spelt `90s`, `15m`, `24h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Period(u64);

impl Period {
    /// A period of so many seconds.
    pub const fn from_seconds(seconds: u64) -> Period {
        Period(seconds)
    }

    /// Its length in seconds.
    pub const fn seconds(self) -> u64 {
        self.0
    }

    /// Reads one number with one unit. `None` for anything else, and above 10 years.
    pub fn parse(text: &str) -> Option<Period> {
        let unit = text.chars().next_back()?;
        let number = &text[..text.len() - unit.len_utf8()];
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return None,
        };
        let seconds = number.parse::<u64>().ok()?.checked_mul(factor)?;
        (seconds <= 10 * 366 * 86400).then_some(Period(seconds))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        let (factor, unit) = match seconds {
            0 => (1, "s"),
            _ if seconds % 86400 == 0 => (86400, "d"),
            _ if seconds % 3600 == 0 => (3600, "h"),
            _ if seconds % 60 == 0 => (60, "m"),
            _ => (1, "s"),
        };
        write!(f, "{}{unit}", seconds / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_read_and_print() {
        for (text, seconds, printed) in
            [("90s", 90, "90s"), ("15m", 900, "15m"), ("24h", 86400, "1d"), ("7d", 604800, "7d"), ("0s", 0, "0s")]
        {
            let period = Period::parse(text).unwrap();
            assert_eq!((period.seconds(), period.to_string().as_str()), (seconds, printed));
        }
    }

    #[test]
    fn what_is_not_a_period_is_refused() {
        for text in ["", "s", "5", "-5s", "1.5h", "5 m", "1h30m", "5w", "99999999999999999999s", "99999d", "5é"] {
            assert_eq!(Period::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_timestamp_prints_as_rfc_3339_and_reads_back() {
        let time = Timestamp(1_795_492_320);
        assert_eq!(time.to_string(), "2026-11-24T03:52:00Z");
        assert_eq!(Timestamp::parse(&time.to_string()), Some(time));
        assert_eq!(Timestamp::parse("2026-11-24T04:52:00+01:00"), Some(time));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
