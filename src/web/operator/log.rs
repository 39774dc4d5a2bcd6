//! Trade's log and the process's own warnings, merged into one list, newest first.

use serde::Serialize;
use serde_json::Value;

use super::warnings::Warning;
use super::{DEFAULT_PAGE_LIMIT, OperatorApi, storage_unavailable};
use crate::model::{Millis, Name};
use crate::net::http::{HandlerResult, HttpError, RouteCall, StatusCode, json, query_pairs};
use crate::share::page::PageRequest;
use crate::share::unix_time::unix_seconds_of;
use crate::trade::journal::LogRow;
use crate::trade::store;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct LogEntry {
    at: Value,
    kind: String,
    peer: Option<Name>,
    text: String,
}

impl From<LogRow> for LogEntry {
    fn from(row: LogRow) -> LogEntry {
        let LogRow { at, kind, peer, deal, item_name, price, detail, .. } = row;
        let price = price.map(|price| format!("for {price}"));
        let deal = deal.map(|deal| format!("(deal {deal})"));
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        let parts = [item_name, price, detail, deal];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
        LogEntry { at: serde_json::json!(unix_seconds_of(at)), kind, peer: Some(peer), text }
    }
}

impl From<Warning> for LogEntry {
    fn from(warning: Warning) -> LogEntry {
        let kind = if warning.is_error { "error" } else { "warning" };
        LogEntry {
            at: serde_json::json!(unix_seconds_of(warning.at)),
            kind: kind.to_owned(),
            peer: None,
            text: warning.text,
        }
    }
}

#[derive(Serialize)]
struct LogResponse {
    success: bool,
    log: Vec<LogEntry>,
    total: u64,
}

pub(super) fn log(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    let page = PageRequest::from_request(call.request, DEFAULT_PAGE_LIMIT)?;
    let pairs = query_pairs(&call.request.query).unwrap_or_default();
    let of = pairs.iter().find(|(name, _)| name == "of").map(|(_, value)| value.as_str());
    let (with_trade, with_warnings) = match of {
        None => (true, true),
        Some("trade") => (true, false),
        Some("warnings") => (false, true),
        Some(_) => return Err(HttpError::bad_request("of: expected trade or warnings")),
    };
    let warnings = if with_warnings { operator.context.warnings.newest() } else { Vec::new() };
    let from = page.offset.saturating_sub(warnings.len());
    let at_most = page.limit + warnings.len();
    let (rows, log_rows) = match operator.context.trade.as_ref().filter(|_| with_trade) {
        Some(trade) => trade
            .store()
            .read(|reader| store::newest_log(reader, from as u64, at_most as u64))
            .map_err(|error| storage_unavailable(&error))?,
        None => (Vec::new(), 0),
    };
    let total = log_rows + warnings.len() as u64;
    let log = merge(rows, warnings, |row| row.at, |warning| warning.at);
    let log = log.skip(page.offset - from).take(page.limit).collect();
    Ok(json(StatusCode::OK, &LogResponse { success: true, log, total }))
}

/// Merges two lists that are sorted newest first. The first one may lack up to `b.len()` of its newest entries: from
/// position `b.len()` on, the result is the same as for the complete list.
fn merge<A: Into<LogEntry>, B: Into<LogEntry>>(
    a: Vec<A>,
    b: Vec<B>,
    at_of_a: impl Fn(&A) -> Millis,
    at_of_b: impl Fn(&B) -> Millis,
) -> impl Iterator<Item = LogEntry> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(first), Some(second)) if at_of_a(first) < at_of_b(second) => b.next().map(Into::into),
        (Some(_), _) => a.next().map(Into::into),
        (None, _) => b.next().map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cents;

    fn row(at: u64) -> LogRow {
        LogRow {
            at: Millis(at),
            kind: "search".to_owned(),
            peer: Name::new("ann").unwrap(),
            deal: Some(7),
            rq: Some(1),
            item_name: Some("tea".to_owned()),
            price: Some(Cents(1250)),
            detail: "green".to_owned(),
        }
    }

    fn warning(at: u64) -> Warning {
        Warning { at: Millis(at), is_error: at.is_multiple_of(2), text: format!("w{at}") }
    }

    #[test]
    fn a_line_says_in_one_text_what_happened() {
        let entry = LogEntry::from(row(1_500));
        assert_eq!(
            (entry.at, entry.kind.as_str(), entry.text.as_str()),
            (1.5.into(), "search", "tea for 12.50 green (deal 7)")
        );
        let bare = LogEntry::from(LogRow { deal: None, item_name: None, price: None, ..row(0) });
        assert_eq!(bare.text, "green");
        let error = LogEntry::from(warning(2_000));
        assert_eq!(
            (error.at, error.kind.as_str(), error.peer, error.text.as_str()),
            (2.into(), "error", None, "w2000")
        );
    }

    #[test]
    fn a_part_of_both_is_found_without_what_is_before_it() {
        let rows: Vec<LogRow> = [90, 80, 79, 60, 50, 40, 30, 20, 10].map(row).into();
        let warnings: Vec<Warning> = [85, 79, 55, 54, 5].map(warning).into();
        let merged = |from: usize, at_most: usize| {
            let rows = rows.iter().skip(from).take(at_most).cloned().collect::<Vec<_>>();
            merge(rows, warnings.clone(), |row| row.at, |warning| warning.at).collect::<Vec<_>>()
        };
        let all = merged(0, 100);
        assert_eq!(all.len(), 14);
        for offset in 0..16_usize {
            for limit in 0..16 {
                let from = offset.saturating_sub(warnings.len());
                let part = merged(from, limit + warnings.len());
                let part: Vec<_> = part.into_iter().skip(offset - from).take(limit).collect();
                let wanted: Vec<_> = all.iter().skip(offset).take(limit).cloned().collect();
                assert_eq!(part, wanted, "{limit} from {offset} on");
            }
        }
    }
}
