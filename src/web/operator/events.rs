//! What happens, as it happens: hosts that come and go, deals that move, warnings. While nobody watches, nothing is
//! remembered for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde_json::json;

use super::log::Line;
use super::warnings::Warnings;
use super::{Operator, Sight};
use crate::model::{Clock, Millis};
use crate::net::http::watchers::last_event_id;
use crate::net::http::{Answered, Body, Call, HeaderMap, Refusal, Response, StatusCode};
use crate::net::periodic::Periodic;
use crate::share::node::events::{Session, Watchers};
use crate::share::server::RegistryServer;
use crate::share::server_api::{not_so, token_of};
use crate::trade::server::TradeServer;

/// Between two looks at what has happened.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What happens, and who watches.
pub(super) struct News {
    watchers: Arc<Watchers>,
    looking: Arc<Mutex<Looking>>,
    _periodic: Periodic,
}

/// Where it is looked for.
struct Looking {
    watchers: Arc<Watchers>,
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
        let mut is_known = true;
        if let Some(registry) = &self.registry {
            match registry.view().changed(is_watched) {
                Some(hosts) => hosts.into_iter().for_each(|(hostname, host)| {
                    let (online, file_count) = host.unwrap_or_default();
                    let data = json!({"hostname": hostname, "online": online, "file_count": file_count});
                    self.watchers.tell("hosts", &data);
                }),
                None => is_known = false,
            }
        }
        if let Some(trade) = &self.trade {
            match trade.changed_deals(is_watched) {
                Some(deals) => deals.into_iter().for_each(|(deal, line)| {
                    // Amounts of deals are prices: a value holds them as they are.
                    let line = line.map(|line| json!(line));
                    self.watchers.tell("deals", &json!({"deal": deal, "row": line}));
                }),
                None => is_known = false,
            }
        }
        let warned = self.warnings.count();
        if self.was_watched {
            for warning in self.warnings.behind(self.warned) {
                self.watchers.tell("warnings", &json!(Line::from(warning)));
            }
            if !is_known {
                self.watchers.tell("reset", &json!({}));
            }
        }
        (self.warned, self.was_watched) = (warned, is_watched);
    }
}

impl News {
    pub(super) fn start(sight: &Sight) -> io::Result<News> {
        let watchers = Arc::new(Watchers::new(sight.clock));
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
    let (_, claims) = operator.sight.users.admin_with(token.reveal()).map_err(not_so)?;
    let left = Clock::wall().until(Millis::from_unix_s(claims.exp));
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.reveal().as_bytes()).as_ref());
    let session = Session { token: key, ends_at: operator.sight.clock.now().plus(left) };
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
