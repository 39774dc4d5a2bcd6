//! What happens, as it happens: hosts that come and go, deals that move, warnings. While nobody watches, nothing is
//! remembered for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::log::Line;
use super::warnings::Warnings;
use super::{Operator, Sight};
use crate::model::{Clock, Millis, Name};
use crate::net::http::watchers::{RESET, Watcher, Watchers, WatchersBounds, last_event_id};
use crate::net::http::{Answered, Body, Call, HeaderMap, Refusal, Response, StatusCode};
use crate::net::periodic::Periodic;
use crate::share::server::RegistryServer;
use crate::share::server_api::{not_so, token_of};
use crate::trade::deal::DealLine;
use crate::trade::server::TradeServer;

/// Between two looks at what has happened.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is told of one by one at a time. Where there is more, whoever watches reads everything anew: that is quicker,
/// and more does not fit into what waits for a slow one.
const TOLD_AT_ONCE: usize = 100;

/// Streams at once: all are one account's.
const STREAMS_MAX: usize = 8;

/// An admin who watches.
struct Session {
    admin: Name,
    /// With the token.
    ends_at: Millis,
}

impl Watcher for Session {
    /// Who may watch at all is told everything.
    type Topic = ();

    fn is_concerned(&self, (): &()) -> bool {
        true
    }

    fn ends_at(&self) -> Millis {
        self.ends_at
    }

    fn is_same_account(&self, other: &Session) -> bool {
        self.admin == other.admin
    }
}

/// What happens, and who watches.
pub(super) struct News {
    watchers: Arc<Watchers<Session>>,
    pub(super) looking: Arc<Mutex<Looking>>,
    _periodic: Periodic,
}

/// Where it is looked for.
pub(super) struct Looking {
    watchers: Arc<Watchers<Session>>,
    trade: Option<Arc<TradeServer>>,
    registry: Option<Arc<RegistryServer>>,
    warnings: &'static Warnings,
    /// Somebody watched when it was looked last.
    was_watched: bool,
    /// How many warnings there were then.
    warned: u64,
}

impl Looking {
    /// Tells all who watch what has happened since the last look; from then on what happens is remembered, while
    /// anybody watches or `is_wanted` says that somebody is about to.
    fn look(&mut self, is_wanted: bool) {
        self.watchers.end_expired();
        let is_watched = is_wanted || self.watchers.any();
        if !is_watched && !self.was_watched {
            return;
        }
        // Each is asked, so that each remembers from now on.
        let hosts = self.registry.as_ref().map_or(Some(Vec::new()), |registry| registry.view().changed(is_watched));
        let deals = self.trade.as_ref().map_or(Some(Vec::new()), |trade| trade.changed_deals(is_watched));
        let warned = self.warnings.count();
        if self.was_watched {
            let warnings = self.warnings.behind(self.warned);
            match (hosts, deals) {
                (Some(hosts), Some(deals)) if hosts.len() + deals.len() + warnings.len() <= TOLD_AT_ONCE => {
                    hosts.into_iter().for_each(|(hostname, host)| self.tell_of_host(&hostname, host));
                    deals.into_iter().for_each(|(deal, line)| self.tell_of_deal(deal, line));
                    warnings.into_iter().for_each(|it| self.watchers.tell((), "warnings", &json!(Line::from(it))));
                }
                _ => self.watchers.tell((), RESET, &json!({})),
            }
        } else {
            // Who was away meanwhile cannot go on from where it was: nothing was remembered.
            self.watchers.tell((), RESET, &json!({}));
        }
        (self.warned, self.was_watched) = (warned, is_watched);
    }

    fn tell_of_host(&self, hostname: &Name, host: Option<(bool, u64)>) {
        let (online, file_count) = host.unwrap_or_default();
        let data = json!({"hostname": hostname, "online": online, "file_count": file_count});
        self.watchers.tell((), "hosts", &data);
    }

    fn tell_of_deal(&self, deal: u64, line: Option<DealLine>) {
        // Its amounts are prices: a value holds them as they are.
        let row = line.map_or(Value::Null, |line| json!(line));
        self.watchers.tell((), "deals", &json!({"deal": deal, "row": row}));
    }
}

impl News {
    pub(super) fn start(sight: &Sight) -> io::Result<News> {
        let bounds = WatchersBounds::of(STREAMS_MAX, STREAMS_MAX);
        let watchers = Arc::new(Watchers::new(sight.clock, bounds));
        let looking = Arc::new(Mutex::new(Looking {
            watchers: Arc::clone(&watchers),
            trade: sight.trade.clone(),
            registry: sight.registry.clone(),
            warnings: sight.warnings,
            was_watched: false,
            warned: 0,
        }));
        let look = Arc::clone(&looking);
        let periodic = Periodic::start("operators-news", LOOK_EVERY, move || look.lock().look(false))?;
        Ok(News { watchers, looking, _periodic: periodic })
    }
}

pub(super) fn events(operator: &Operator, call: &Call<'_>) -> Answered {
    let token = token_of(call.request, false)?;
    let (admin, claims) = operator.sight.users.admin_with(token.reveal()).map_err(not_so)?;
    let left = Clock::wall().until(Millis::from_unix_s(claims.exp));
    let session = Session { admin, ends_at: operator.sight.clock.now().plus(left) };
    // Before anything is read by whoever watches from now on: nothing is missed in between.
    let mut looking = operator.news.looking.lock();
    looking.look(true);
    let Some(events) = operator.news.watchers.add(session, last_event_id(&call.request.headers)) else {
        let reason = "too many event streams are open already: close one, and try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    };
    drop(looking);
    Ok(Response { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Events(events) })
}
