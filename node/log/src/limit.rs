//! The rate limit of one stream: a bucket that holds one second's worth of bytes. Pure: the time is handed in.

/// A wait shorter than this would wake the service for a few bytes at a time.
const SHORTEST_WAIT_MS: u64 = 10;

/// The bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    /// Bytes per second; 0 is unlimited.
    rate: u64,
    /// Thousandths of bytes that may pass now.
    level: u64,
    filled_boot_ms: u64,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate_bytes_per_second: u32, now_boot_ms: u64) -> Self {
        let rate = u64::from(rate_bytes_per_second);
        Self { rate, level: rate * 1000, filled_boot_ms: now_boot_ms }
    }

    /// Bytes that may pass now.
    pub(crate) fn permitted(&mut self, now_boot_ms: u64) -> u64 {
        if self.rate == 0 {
            return u64::MAX;
        }
        let passed = now_boot_ms.saturating_sub(self.filled_boot_ms);
        self.filled_boot_ms = now_boot_ms.max(self.filled_boot_ms);
        self.level = self.level.saturating_add(passed.saturating_mul(self.rate)).min(self.rate * 1000);
        self.level / 1000
    }

    /// Takes bytes that passed.
    pub(crate) fn spend(&mut self, bytes: u64) {
        if self.rate > 0 {
            self.level = self.level.saturating_sub(bytes.saturating_mul(1000));
        }
    }

    /// When a fair number of bytes may pass again.
    pub(crate) fn next_boot_ms(&self, now_boot_ms: u64) -> u64 {
        let wanted = self.rate.min(4096) * 1000;
        let missing = wanted.saturating_sub(self.level);
        now_boot_ms + missing.div_ceil(self.rate.max(1)).max(SHORTEST_WAIT_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_passes_than_the_rate_and_one_second_ahead() {
        for rate in [1, 100, 4096, 1 << 20] {
            let mut bucket = Bucket::new(rate, 0);
            let (mut now, mut passed) = (0, 0);
            while now < 20_000 {
                let permitted = bucket.permitted(now).min(1 << 16);
                bucket.spend(permitted);
                passed += permitted;
                now = if permitted == 0 { bucket.next_boot_ms(now) } else { now };
            }
            let most = u64::from(rate) * (now + 1000) / 1000;
            assert!(passed <= most && passed * 10 >= most * 8, "{rate}: {passed} of {most}");
        }
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut bucket = Bucket::new(0, 0);
        bucket.spend(u64::MAX);
        assert_eq!(bucket.permitted(1), u64::MAX);
    }
}
