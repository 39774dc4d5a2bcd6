//! How often something may happen: token buckets, one or one a source.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use crate::model::Millis;

/// A token, in the unit in which they trickle in.
const TOKEN: u64 = 1000;

/// So many at once, and so many a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub burst: u64,
    pub per_s: u64,
}

/// A bucket of tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens {
    rate: Rate,
    thousandths: u64,
    at: Millis,
}

impl Tokens {
    pub fn full(rate: Rate) -> Tokens {
        Tokens { rate, thousandths: rate.burst * TOKEN, at: Millis::default() }
    }

    /// Takes a token, if there is one.
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

    /// From when on there is a token.
    pub fn ready_at(&self) -> Millis {
        self.at.plus_ms(TOKEN.saturating_sub(self.thousandths).div_ceil(self.rate.per_s))
    }
}

/// A bucket for each source. Two generations: when the younger is full the elder goes, and whoever is
/// heard again moves to the younger. A bucket that is forgotten is full again, which it would have been
/// after a short silence anyway.
#[derive(Debug)]
pub(super) struct Sources {
    rate: Rate,
    max: usize,
    young: HashMap<SocketAddrV4, Tokens>,
    old: HashMap<SocketAddrV4, Tokens>,
}

impl Sources {
    pub fn new(rate: Rate, max: usize) -> Sources {
        Sources { rate, max, young: HashMap::new(), old: HashMap::new() }
    }

    /// Whether this source may once more.
    pub fn take(&mut self, now: Millis, source: SocketAddrV4) -> bool {
        if let Some(tokens) = self.young.get_mut(&source) {
            return tokens.take(now);
        }
        let mut tokens = self.old.remove(&source).unwrap_or_else(|| Tokens::full(self.rate));
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

    const RATE: Rate = Rate { burst: 200, per_s: 100 };

    fn taken(mut take: impl FnMut() -> bool) -> usize {
        (0..1000).filter(|_| take()).count()
    }

    #[test]
    fn a_burst_then_so_many_a_second() {
        let mut tokens = Tokens::full(RATE);
        let now = Millis(5_000);
        assert_eq!(taken(|| tokens.take(now)), 200);
        assert_eq!(tokens.ready_at(), now.plus_ms(10));
        assert_eq!(taken(|| tokens.take(now.plus_ms(9))), 0);
        assert_eq!(taken(|| tokens.take(now.plus_ms(10))), 1);
        assert_eq!(taken(|| tokens.take(now.plus_ms(1_010))), 100);
        assert_eq!(taken(|| tokens.take(now.plus_ms(60_000))), 200);
        // A clock that stands still or goes back gives nothing.
        assert_eq!(taken(|| tokens.take(now)), 0);
    }

    #[test]
    fn sources_do_not_share_and_are_bounded() {
        let mut sources = Sources::new(RATE, 10_000);
        let source = |n: u32| SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + n), 8000);
        let now = Millis(5_000);
        assert_eq!(taken(|| sources.take(now, source(0))), 200);
        assert_eq!(taken(|| sources.take(now, source(1))), 200);
        for n in 0..100_000 {
            sources.take(now, source(n));
            // Whoever goes on is not forgotten by what others send.
            assert!(!sources.take(now, source(0)), "{n}");
            assert!(sources.len() <= 10_000);
        }
    }
}
