//! Which servers tell the truth: the offset that lies within the bounds of most of them (Marzullo's algorithm, RFC 5905 section 11.2.1).

use crate::packet::Sample;

/// What most servers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// Their clock less this machine's, in nanoseconds.
    pub offset_ns: i64,
    /// How wrong that may be, in nanoseconds.
    pub error_ns: u64,
    /// How many of them.
    pub servers: usize,
}

/// The agreement of more than half of the `asked` servers; none if there is none.
#[must_use]
pub fn agree(samples: &[Sample], asked: usize) -> Option<Agreement> {
    let bounds = |sample: &Sample| {
        let distance = i64::try_from(sample.distance_ns).unwrap_or(i64::MAX);
        (sample.offset_ns.saturating_sub(distance), sample.offset_ns.saturating_add(distance))
    };
    let intervals: Vec<(i64, i64)> = samples.iter().map(bounds).collect();
    // The best overlap begins where one of them begins.
    let overlap = |low: i64| {
        let over: Vec<&(i64, i64)> = intervals.iter().filter(|(from, to)| *from <= low && low <= *to).collect();
        let high = over.iter().map(|(_, to)| *to).min().unwrap_or(low);
        (over.len(), low, high)
    };
    // Of equal ones the narrowest is known best.
    let best = intervals.iter().map(|(low, _)| overlap(*low));
    let (servers, low, high) =
        best.max_by_key(|(count, low, high)| (*count, std::cmp::Reverse(high.abs_diff(*low))))?;
    if servers * 2 <= asked {
        return None;
    }
    Some(Agreement { offset_ns: i64::midpoint(low, high), error_ns: high.abs_diff(low) / 2, servers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(offset_ns: i64, distance_ns: u64) -> Sample {
        Sample { offset_ns, delay_ns: 0, distance_ns, stratum: 1 }
    }

    #[test]
    fn one_liar_among_three_is_outvoted() {
        let samples = [sample(100, 20), sample(110, 15), sample(9_000, 10)];
        let agreed = agree(&samples, 3).unwrap();
        assert_eq!((agreed.servers, agreed.offset_ns), (2, 107));
        assert!(agreed.error_ns <= 13);
    }

    #[test]
    fn half_of_the_servers_are_no_majority() {
        assert_eq!(agree(&[sample(0, 10), sample(1_000, 10)], 2), None);
        assert_eq!(agree(&[sample(0, 10)], 2), None);
        assert_eq!(agree(&[sample(0, 10), sample(5, 10)], 4), None);
        assert_eq!(agree(&[], 0), None);
    }

    #[test]
    fn one_server_alone_is_believed_if_it_is_all_there_is() {
        assert_eq!(agree(&[sample(7, 10)], 1).unwrap().offset_ns, 7);
    }

    #[test]
    fn extreme_claims_do_not_overflow() {
        // One says later than now and one says earlier, whatever they allow for.
        assert_eq!(agree(&[sample(i64::MAX, u64::MAX), sample(i64::MIN, u64::MAX)], 2), None);
        assert_eq!(agree(&[sample(i64::MAX, u64::MAX), sample(0, 5)], 2).unwrap().servers, 2);
    }
}
