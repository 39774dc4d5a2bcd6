//! Those who watch: what is told to all of them, over bounded queues, with a number that who was away goes on from.
//!
//! Each event bears an id, `BOOT-NUMBER`. The newest ones are kept, so that a client that lost its connection, or was
//! cut off because it read too slowly, gets what it missed by sending the last id that it has seen. Where that is not
//! to be had any more the first event is `reset`: read everything anew. What is kept and what is told live are parted
//! under one lock, so nothing is lost or told twice between them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use serde_json::Value;

use super::body::{Event, Events};
use super::{HeaderMap, header};
use crate::model::{Clock, Millis, secret};

/// The name of the event by which a client is told that it cannot go on from where it was.
pub const RESET: &str = "reset";

/// For whom a stream of events is open.
pub trait Watcher: Send + 'static {
    /// What an event is about, as far as that decides who is told of it.
    type Topic: Send;

    /// Whether it is told of that.
    fn is_concerned(&self, topic: &Self::Topic) -> bool;

    /// From when on it is told nothing more, by the process's clock.
    fn ends_at(&self) -> Millis;

    /// Whether the other one is the same account's.
    fn is_same_account(&self, other: &Self) -> bool;
}

/// How much there may be.
#[derive(Debug, Clone, Copy)]
pub struct WatchersBounds {
    /// Streams at once.
    pub watchers: usize,
    /// Of these, of one account.
    pub of_account: usize,
    /// Events that one has not taken yet. One that leaves more is cut off.
    pub waiting: usize,
    /// Events that are kept for who comes back.
    pub kept: usize,
    /// How long these may be together, bytes.
    pub kept_bytes: usize,
}

impl WatchersBounds {
    /// As many events as SPEC.md wants at least, for so many streams.
    pub fn of(watchers: usize, of_account: usize) -> WatchersBounds {
        WatchersBounds { watchers, of_account, waiting: 256, kept: 1024, kept_bytes: 1 << 20 }
    }
}

/// Those who watch one thing.
pub struct Watchers<W: Watcher> {
    bounds: WatchersBounds,
    clock: Clock,
    /// So that no number of another process, or of another thing, is taken for one of here.
    boot: String,
    told: Mutex<Told<W>>,
}

struct Told<W: Watcher> {
    /// The number of the newest event.
    number: u64,
    /// The newest events, without a gap up to that number.
    kept: VecDeque<(W::Topic, Arc<Event>)>,
    kept_bytes: usize,
    open: Vec<Open<W>>,
}

/// A stream that is open.
struct Open<W> {
    whose: W,
    queue: Sender<Arc<Event>>,
    /// Gone with the other end of the queue: a sender learns of that by sending alone.
    is_read: Weak<()>,
}

impl<W: Watcher> Watchers<W> {
    /// Nobody yet.
    pub fn new(clock: Clock, bounds: WatchersBounds) -> Watchers<W> {
        let told = Told { number: 0, kept: VecDeque::new(), kept_bytes: 0, open: Vec::new() };
        Watchers { bounds, clock, boot: secret::random_hex::<8>(), told: Mutex::new(told) }
    }

    /// One more; none when there are too many. It is told what comes from now on, or from that event on which a former
    /// stream gave it last. Dropping what is given ends it, and so does the end of its time.
    pub fn add(&self, whose: W, last_event_id: Option<&str>) -> Option<Events> {
        let mut told = self.told.lock();
        told.drop_ended(self.clock.now());
        let of_account = told.open.iter().filter(|open| open.whose.is_same_account(&whose)).count();
        if told.open.len() >= self.bounds.watchers || of_account >= self.bounds.of_account {
            return None;
        }
        let missed = match last_event_id {
            None => Vec::new(),
            Some(id) => self.number_of(id).and_then(|number| told.since(number, &whose)).unwrap_or_else(|| {
                // With the number that it stands for: from there on it can go on again.
                vec![Arc::new(Event { id: Some(self.id(told.number)), name: RESET.to_owned(), data: "{}".to_owned() })]
            }),
        };
        // Beside what it missed: that is no fault of its reading.
        let (queue, receiver) = bounded(self.bounds.waiting + missed.len());
        for event in missed {
            queue.try_send(event).ok()?;
        }
        let (events, is_read) = Events::watched(receiver);
        told.open.push(Open { whose, queue, is_read });
        Some(events)
    }

    /// Whether somebody is there.
    pub fn any(&self) -> bool {
        self.told.lock().open.iter().any(Open::is_read)
    }

    /// How many streams are open.
    pub fn open(&self) -> usize {
        self.told.lock().open.iter().filter(|open| open.is_read()).count()
    }

    /// Tells those of something whom it concerns. Memory work only: nobody is waited for.
    pub fn tell(&self, topic: W::Topic, name: &str, data: &Value) {
        let data = data.to_string();
        let now = self.clock.now();
        let mut told = self.told.lock();
        told.number += 1;
        let event = Arc::new(Event { id: Some(self.id(told.number)), name: name.to_owned(), data });
        told.open.retain(|open| {
            now < open.whose.ends_at()
                && (!open.whose.is_concerned(&topic) || open.queue.try_send(Arc::clone(&event)).is_ok())
        });
        told.kept_bytes += event.len();
        told.kept.push_back((topic, event));
        while told.kept.len() > self.bounds.kept || told.kept_bytes > self.bounds.kept_bytes {
            let Some((_, oldest)) = told.kept.pop_front() else { break };
            told.kept_bytes -= oldest.len();
        }
    }

    /// Ends those of whom that is true, and no others.
    pub fn end_where(&self, mut is_over: impl FnMut(&W) -> bool) {
        self.told.lock().open.retain(|open| !is_over(&open.whose));
    }

    /// Ends those whose time is over.
    pub fn end_expired(&self) {
        self.told.lock().drop_ended(self.clock.now());
    }

    /// Ends all of them.
    pub fn end(&self) {
        self.told.lock().open.clear();
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.boot)
    }

    fn number_of(&self, id: &str) -> Option<u64> {
        let number = id.trim().strip_prefix(&*self.boot)?.strip_prefix('-')?;
        // `parse` would take a sign.
        number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse().ok())?
    }
}

impl<W: Watcher> Told<W> {
    /// What came after the event of that number; none if that is not known.
    fn since(&self, number: u64, whose: &W) -> Option<Vec<Arc<Event>>> {
        let missed = usize::try_from(self.number.checked_sub(number)?).ok()?;
        let first = self.kept.len().checked_sub(missed)?;
        let missed = self.kept.range(first..).filter(|(topic, _)| whose.is_concerned(topic));
        Some(missed.map(|(_, event)| Arc::clone(event)).collect())
    }

    fn drop_ended(&mut self, now: Millis) {
        self.open.retain(|open| now < open.whose.ends_at() && open.is_read());
    }
}

impl<W> Open<W> {
    fn is_read(&self) -> bool {
        self.is_read.strong_count() > 0
    }
}

impl<W: Watcher> fmt::Debug for Watchers<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").field("bounds", &self.bounds).field("open", &self.open()).finish_non_exhaustive()
    }
}

/// The id of the last event that a client has seen, if it says so.
pub fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(header::HeaderName::from_static("last-event-id"))?;
    // One that is no text is none of ours, which is not the same as none.
    Some(id.to_str().unwrap_or("?")).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    /// Whose, and until when.
    #[derive(Debug, Clone, Copy)]
    struct Someone(u8, Millis);

    impl Watcher for Someone {
        /// Whom it concerns; 0: all.
        type Topic = u8;

        fn is_concerned(&self, topic: &u8) -> bool {
            *topic == 0 || *topic == self.0
        }

        fn ends_at(&self) -> Millis {
            self.1
        }

        fn is_same_account(&self, other: &Someone) -> bool {
            self.0 == other.0
        }
    }

    const BOUNDS: WatchersBounds = WatchersBounds { watchers: 6, of_account: 3, waiting: 4, kept: 8, kept_bytes: 1000 };

    fn watchers() -> Watchers<Someone> {
        Watchers::new(Clock::start(), BOUNDS)
    }

    fn add(watchers: &Watchers<Someone>, whose: u8, last: Option<&str>) -> Option<Events> {
        watchers.add(Someone(whose, watchers.clock.now().plus(Duration::from_secs(60))), last)
    }

    /// What is there by now: ids and data.
    fn taken(events: &Events) -> Vec<(String, String)> {
        events.queue().try_iter().map(|event| (event.id.clone().unwrap(), event.data.clone())).collect()
    }

    fn data(events: &Events) -> Vec<String> {
        taken(events).into_iter().map(|(_, data)| data).collect()
    }

    #[test]
    fn who_was_away_goes_on_where_it_was() {
        let watchers = watchers();
        let first = add(&watchers, 1, None).unwrap();
        for n in 1..=3 {
            watchers.tell(0, "n", &json!(n));
        }
        let seen = taken(&first);
        assert_eq!(seen.iter().map(|(_, data)| &**data).collect::<Vec<_>>(), ["1", "2", "3"]);
        assert!(seen[0].0.ends_with("-1") && seen[2].0.ends_with("-3"), "{seen:?}");
        drop(first);
        for n in 4..=9 {
            watchers.tell(0, "n", &json!(n));
        }
        // More than may wait of what is told live; and what is told live comes after it.
        let back = add(&watchers, 1, Some(&seen[2].0)).unwrap();
        watchers.tell(0, "n", &json!(10));
        assert_eq!(data(&back), ["4", "5", "6", "7", "8", "9", "10"]);
        // The oldest that is kept is 3: of who has 1 the event 2 is missing.
        let all = |last: &str| data(&add(&watchers, 2, Some(last)).unwrap());
        assert_eq!(all(&seen[1].0).len(), 8);
        assert_eq!(all(&seen[0].0), ["{}"]);
        assert_eq!(all(&watchers.id(10)), Vec::<String>::new(), "it has everything");
        assert_eq!(data(&add(&watchers, 3, None).unwrap()), Vec::<String>::new(), "who was never there missed nothing");
    }

    #[test]
    fn who_cannot_go_on_is_told_to_begin_anew_and_goes_on_from_there() {
        let watchers = watchers();
        for n in 1..=20 {
            watchers.tell(0, "n", &json!(n));
        }
        let boot = watchers.boot.clone();
        let of_another = Watchers::<Someone>::new(Clock::start(), BOUNDS).id(20);
        for last in ["", "x", "20", "-20", &boot, &format!("{boot}-"), &format!("{boot}-+20"), &of_another] {
            let reset = add(&watchers, 1, Some(last)).unwrap();
            let event = reset.queue().try_recv().unwrap();
            assert_eq!((&*event.name, &*event.data), (RESET, "{}"), "{last}");
            watchers.tell(0, "n", &json!("next"));
            assert_eq!(data(&reset), ["\"next\""]);
            let back = add(&watchers, 1, event.id.as_deref()).unwrap();
            assert_eq!(data(&back), ["\"next\""]);
        }
        // Ahead of all that was told.
        let ahead = add(&watchers, 2, Some(&watchers.id(1000))).unwrap();
        assert_eq!(ahead.queue().try_recv().unwrap().name, RESET);
    }

    #[test]
    fn one_that_reads_too_slowly_is_cut_off_and_comes_back_by_its_id() {
        let watchers = watchers();
        let (quick, slow) = (add(&watchers, 1, None).unwrap(), add(&watchers, 2, None).unwrap());
        let mut seen = Vec::new();
        for n in 1..=7 {
            watchers.tell(0, "n", &json!(n));
            seen.extend(data(&quick));
        }
        assert_eq!(seen, ["1", "2", "3", "4", "5", "6", "7"]);
        // What it had before comes, then the end.
        let had: Vec<Arc<Event>> = slow.queue().iter().collect();
        assert_eq!(had.len(), BOUNDS.waiting);
        let back = add(&watchers, 2, had[3].id.as_deref()).unwrap();
        assert_eq!(data(&back), ["5", "6", "7"]);
    }

    #[test]
    fn each_is_told_of_what_concerns_it_then_and_later() {
        let watchers = watchers();
        let (ann, bob) = (add(&watchers, 1, None).unwrap(), add(&watchers, 2, None).unwrap());
        watchers.tell(1, "n", &json!("ann"));
        watchers.tell(2, "n", &json!("bob"));
        watchers.tell(0, "n", &json!("all"));
        assert_eq!(
            (data(&ann), data(&bob)),
            (vec!["\"ann\"".into(), "\"all\"".into()], vec!["\"bob\"".into(), "\"all\"".into()])
        );
        drop(ann);
        assert_eq!(data(&add(&watchers, 1, Some(&watchers.id(1))).unwrap()), ["\"all\""]);
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_too() {
        let watchers = watchers();
        for n in 0..5 {
            watchers.tell(0, "n", &json!("x".repeat(300 + n)));
        }
        let told = watchers.told.lock();
        assert!(told.kept_bytes <= BOUNDS.kept_bytes && told.kept.len() < 4 && !told.kept.is_empty());
        drop(told);
        let last = watchers.id(5);
        watchers.tell(0, "n", &json!("x".repeat(2000)));
        assert!(watchers.told.lock().kept.is_empty());
        assert_eq!(add(&watchers, 1, Some(&last)).unwrap().queue().try_recv().unwrap().name, RESET);
    }

    #[test]
    fn there_are_so_many_in_all_and_of_each_account_and_no_more() {
        let watchers = watchers();
        let mut ann: Vec<Events> = (0..3).map(|_| add(&watchers, 1, None).unwrap()).collect();
        assert!(add(&watchers, 1, None).is_none(), "of one account");
        let bob: Vec<Events> = (0..3).map(|_| add(&watchers, 2, None).unwrap()).collect();
        assert!(add(&watchers, 3, None).is_none(), "in all");
        // One that has gone is noticed though nothing is told.
        ann.pop();
        assert_eq!(watchers.open(), 5);
        let third = add(&watchers, 3, None).unwrap();
        assert!(ann.iter().chain(&bob).chain([&third]).all(|events| events.queue().is_empty()));
        watchers.end_where(|someone| someone.0 == 2);
        assert_eq!(watchers.open(), 3);
        watchers.end();
        assert!(!watchers.any() && third.queue().recv().is_err());
        // Whose time is over is told nothing more.
        let over = watchers.add(Someone(1, watchers.clock.now()), None).unwrap();
        watchers.tell(0, "n", &json!(1));
        assert!(over.queue().recv().is_err());
    }

    #[test]
    fn nothing_is_lost_or_told_twice_between_what_is_kept_and_what_is_told_live() {
        let bounds = WatchersBounds { waiting: 10_000, kept: 10_000, kept_bytes: 1 << 20, ..BOUNDS };
        let watchers = Arc::new(Watchers::<Someone>::new(Clock::start(), bounds));
        let teller = std::thread::spawn({
            let watchers = Arc::clone(&watchers);
            move || (1..=5000).for_each(|n| watchers.tell(0, "n", &json!(n)))
        });
        let mut last = watchers.id(0);
        let mut seen = 0;
        while seen < 5000 {
            let events = add(&watchers, 1, Some(&last)).unwrap();
            for event in events.queue().iter().take(37.min(5000 - seen)) {
                seen += 1;
                assert_eq!(event.data, seen.to_string());
                last = event.id.clone().unwrap();
            }
        }
        teller.join().unwrap();
    }

    #[test]
    fn the_last_id_is_what_the_header_says() {
        let of = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", header::HeaderValue::from_bytes(value).unwrap());
            last_event_id(&headers).map(str::to_owned)
        };
        assert_eq!(of(b"ab-7").as_deref(), Some("ab-7"));
        assert_eq!(of(b""), None);
        assert_eq!(of("é".as_bytes()).as_deref(), Some("?"));
        assert_eq!(last_event_id(&HeaderMap::new()), None);
    }
}
