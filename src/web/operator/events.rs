//! The operator's event stream: hosts that come and go, deals that change, warnings. While nobody watches, changes are
//! not recorded.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::log::LogEntry;
use super::warnings::Warnings;
use super::{OperatorApi, OperatorContext};
use crate::model::{Clock, Millis, Name};
use crate::net::http::event_hub::{EventHub, EventHubLimits, RESET_EVENT, Subscriber, last_event_id};
use crate::net::http::{Body, HandlerResult, HeaderMap, HttpError, Response, RouteCall, StatusCode};
use crate::net::periodic::PeriodicTask;
use crate::share::server::RegistryServer;
use crate::share::server_api::{request_token, to_http_error};
use crate::trade::deal::DealSummary;
use crate::trade::server::TradeServer;

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// With more changes than this since the last poll, watchers get one `reset` event and read everything anew: that is
/// quicker, and more events would overflow the queue of a slow watcher.
const EVENTS_PER_POLL_MAX: usize = 100;

/// Concurrent event streams. All belong to the one admin account.
const STREAMS_MAX: usize = 8;

struct AdminWatcher {
    admin: Name,
    expires_at: Millis,
}

impl Subscriber for AdminWatcher {
    /// There is one topic: every watcher gets every event.
    type Topic = ();

    fn wants(&self, (): &()) -> bool {
        true
    }

    fn expires_at(&self) -> Millis {
        self.expires_at
    }

    fn is_same_account(&self, other: &AdminWatcher) -> bool {
        self.admin == other.admin
    }
}

pub(super) struct EventFeed {
    watchers: Arc<EventHub<AdminWatcher>>,
    pub(super) poller: Arc<Mutex<ChangePoller>>,
    _poll_timer: PeriodicTask,
}

pub(super) struct ChangePoller {
    watchers: Arc<EventHub<AdminWatcher>>,
    trade: Option<Arc<TradeServer>>,
    registry: Option<Arc<RegistryServer>>,
    warnings: &'static Warnings,
    /// Whether there was a watcher at the last poll.
    had_watchers: bool,
    /// The number of warnings at the last poll.
    seen_warnings: u64,
}

impl ChangePoller {
    /// Sends all watchers the changes since the last poll. The services record changes from now on if there is a
    /// watcher or `is_watcher_joining` says that one is about to be added.
    fn poll(&mut self, is_watcher_joining: bool) {
        self.watchers.close_expired();
        let has_watchers = is_watcher_joining || self.watchers.has_subscribers();
        if !has_watchers && !self.had_watchers {
            return;
        }
        // Both are called in any case, so that both start or stop recording.
        let hosts =
            self.registry.as_ref().map_or(Some(Vec::new()), |registry| registry.view().changed_hosts(has_watchers));
        let deals = self.trade.as_ref().map_or(Some(Vec::new()), |trade| trade.changed_deals(has_watchers));
        let seen_warnings = self.warnings.count();
        if self.had_watchers {
            let warnings = self.warnings.since(self.seen_warnings);
            match (hosts, deals) {
                (Some(hosts), Some(deals)) if hosts.len() + deals.len() + warnings.len() <= EVENTS_PER_POLL_MAX => {
                    hosts.into_iter().for_each(|(hostname, host)| self.send_host(&hostname, host));
                    deals.into_iter().for_each(|(deal, line)| self.send_deal(deal, line));
                    warnings
                        .into_iter()
                        .for_each(|it| self.watchers.publish((), "warnings", &json!(LogEntry::from(it))));
                }
                _ => self.watchers.publish((), RESET_EVENT, &json!({})),
            }
        } else {
            // A client that reconnects cannot resume: changes were not recorded meanwhile.
            self.watchers.publish((), RESET_EVENT, &json!({}));
        }
        (self.seen_warnings, self.had_watchers) = (seen_warnings, has_watchers);
    }

    fn send_host(&self, hostname: &Name, host: Option<(bool, u64)>) {
        let (online, file_count) = host.unwrap_or_default();
        let data = json!({"hostname": hostname, "online": online, "file_count": file_count});
        self.watchers.publish((), "hosts", &data);
    }

    fn send_deal(&self, deal: u64, line: Option<DealSummary>) {
        // The amounts are prices, which a JSON value represents exactly.
        let row = line.map_or(Value::Null, |line| json!(line));
        self.watchers.publish((), "deals", &json!({"deal": deal, "row": row}));
    }
}

impl EventFeed {
    pub(super) fn start(context: &OperatorContext) -> io::Result<EventFeed> {
        let bounds = EventHubLimits::for_subscribers(STREAMS_MAX, STREAMS_MAX);
        let watchers = Arc::new(EventHub::new(context.clock, bounds));
        let poller = Arc::new(Mutex::new(ChangePoller {
            watchers: Arc::clone(&watchers),
            trade: context.trade.clone(),
            registry: context.registry.clone(),
            warnings: context.warnings,
            had_watchers: false,
            seen_warnings: 0,
        }));
        let poll = Arc::clone(&poller);
        let periodic = PeriodicTask::start("operators-news", POLL_INTERVAL, move || poll.lock().poll(false))?;
        Ok(EventFeed { watchers, poller, _poll_timer: periodic })
    }
}

pub(super) fn events(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    let token = request_token(call.request, false)?;
    let (admin, claims) =
        operator.context.users.authenticate_admin_with_claims(token.reveal()).map_err(to_http_error)?;
    let left = Clock::wall().until(Millis::from_unix_s(claims.exp));
    let watcher = AdminWatcher { admin, expires_at: operator.context.clock.now().plus(left) };
    // Polled before the new watcher reads any list, so that no change falls between.
    let mut poller = operator.event_feed.poller.lock();
    poller.poll(true);
    let Some(events) = operator.event_feed.watchers.subscribe(watcher, last_event_id(&call.request.headers)) else {
        let reason = "too many event streams are open already: close one, and try again";
        return Err(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    };
    drop(poller);
    Ok(Response { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Events(events) })
}
