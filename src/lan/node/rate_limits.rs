//! Token buckets: single ones, and one per source.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use crate::model::Millis;

/// Buckets count thousandths of tokens, so that whole numbers suffice for the refill per millisecond.
const TOKEN: u64 = 1000;

#[derive(Debug, Clone, Copy)]
pub(super) struct RateLimit {
    pub burst: u64,
    pub per_s: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TokenBucket {
    rate: RateLimit,
    thousandths: u64,
    at: Millis,
}

impl TokenBucket {
    pub fn full(rate: RateLimit) -> TokenBucket {
        TokenBucket { rate, thousandths: rate.burst * TOKEN, at: Millis::default() }
    }

    pub fn take(&mut self, now: Millis) -> bool {
        let passed_ms = now.0.saturating_sub(self.at.0);
        let more = passed_ms.saturating_mul(self.rate.per_s);
        self.thousandths = self.thousandths.saturating_add(more).min(self.rate.burst * TOKEN);
        self.at = self.at.max(now);
        let enough = self.thousandths >= TOKEN;
        if enough {
            self.thousandths -= TOKEN;
        }
        enough
    }

    pub fn ready_at(&self) -> Millis {
        self.at.plus_ms(TOKEN.saturating_sub(self.thousandths).div_ceil(self.rate.per_s))
    }
}

/// One token bucket per source, in two generations: when the young one is full, the old one is discarded, and an
/// active source moves to the young one. A discarded bucket starts full again, as it would after a short silence.
#[derive(Debug)]
pub(super) struct SourceRateLimiter {
    rate: RateLimit,
    max: usize,
    young: HashMap<SocketAddrV4, TokenBucket>,
    old: HashMap<SocketAddrV4, TokenBucket>,
}

impl SourceRateLimiter {
    pub fn new(rate: RateLimit, max: usize) -> SourceRateLimiter {
        SourceRateLimiter { rate, max, young: HashMap::new(), old: HashMap::new() }
    }

    pub fn take(&mut self, now: Millis, source: SocketAddrV4) -> bool {
        if let Some(tokens) = self.young.get_mut(&source) {
            return tokens.take(now);
        }
        let mut tokens = self.old.remove(&source).unwrap_or_else(|| TokenBucket::full(self.rate));
        if self.young.len() >= self.max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        let may = tokens.take(now);
        self.young.insert(source, tokens);
        may
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const RATE: RateLimit = RateLimit { burst: 200, per_s: 100 };

    fn taken(mut take: impl FnMut() -> bool) -> usize {
        (0..1000).filter(|_| take()).count()
    }

    #[test]
    fn a_burst_then_so_many_a_second() {
        let mut tokens = TokenBucket::full(RATE);
        let now = Millis(5_000);
        assert_eq!(taken(|| tokens.take(now)), 200);
        assert_eq!(tokens.ready_at(), now.plus_ms(10));
        assert_eq!(taken(|| tokens.take(now.plus_ms(9))), 0);
        assert_eq!(taken(|| tokens.take(now.plus_ms(10))), 1);
        assert_eq!(taken(|| tokens.take(now.plus_ms(1_010))), 100);
        assert_eq!(taken(|| tokens.take(now.plus_ms(60_000))), 200);
        // A clock that stands still or goes back adds no tokens.
        assert_eq!(taken(|| tokens.take(now)), 0);
    }

    #[test]
    fn sources_do_not_share_and_are_bounded() {
        let mut sources = SourceRateLimiter::new(RATE, 10_000);
        let source = |n: u32| SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + n), 8000);
        let now = Millis(5_000);
        assert_eq!(taken(|| sources.take(now, source(0))), 200);
        assert_eq!(taken(|| sources.take(now, source(1))), 200);
        for n in 0..100_000 {
            sources.take(now, source(n));
            // Other sources do not displace an active one.
            assert!(!sources.take(now, source(0)), "{n}");
            assert!(sources.len() <= 10_000);
        }
    }
}
