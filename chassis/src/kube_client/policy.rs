//! When a request is tried again, and when its failure is the caller's to judge. Pure.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, Uri, header::RETRY_AFTER};
use jiff::Timestamp;

/// A server that asks for more than this is as good as away; the caller's own loop does better.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// How one attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// An error status, with the wait the server asked for.
    Status(StatusCode, Option<Duration>),
    /// No connection came about: the request surely did not get through.
    Connect,
    /// The connection broke; the request may or may not have been carried out.
    Cut,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The failure is the caller's.
    Surface,
    /// Try again after what the server asked for, else after the client's own backoff. The text labels a metric.
    Retry(Option<Duration>, &'static str),
}

/// Judges a failed attempt.
///
/// A write is repeated only when it surely was not carried out: a second POST might create twice, and a repeated
/// DELETE or PATCH could hit what came after. 429 comes from priority and fairness, before a request is carried out.
pub(super) fn judge(method: &Method, path: &str, failure: Failure) -> Verdict {
    let read = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    match failure {
        // Here 429 is an answer, not a plea for patience: a disruption budget says no.
        Failure::Status(StatusCode::TOO_MANY_REQUESTS, _) if path.ends_with("/eviction") => Verdict::Surface,
        Failure::Status(StatusCode::TOO_MANY_REQUESTS, after) => Verdict::Retry(cap(after), "429"),
        Failure::Status(StatusCode::SERVICE_UNAVAILABLE, after) if read => Verdict::Retry(cap(after), "503"),
        Failure::Status(StatusCode::GATEWAY_TIMEOUT, after) if read => Verdict::Retry(cap(after), "504"),
        Failure::Connect => Verdict::Retry(None, "connect"),
        Failure::Cut if read => Verdict::Retry(None, "cut"),
        Failure::Status(..) | Failure::Cut => Verdict::Surface,
    }
}

/// Whether a request stays open until someone closes it: a watch, or a followed log.
pub(super) fn stays_open(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .any(|(key, value)| matches!(key, "watch" | "follow") && !matches!(value, "" | "0" | "false"))
}

/// The wait a server asks for, RFC 9110 10.2.3: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

fn cap(after: Option<Duration>) -> Option<Duration> {
    after.map(|wait| wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PODS: &str = "/api/v1/namespaces/a/pods";

    #[test]
    fn a_refused_request_is_repeated_whatever_its_method() {
        let asked = Some(Duration::from_secs(1));
        for method in [Method::GET, Method::POST, Method::PATCH, Method::DELETE, Method::PUT] {
            let verdict = judge(&method, PODS, Failure::Status(StatusCode::TOO_MANY_REQUESTS, asked));
            assert_eq!(verdict, Verdict::Retry(asked, "429"), "{method}");
            assert!(matches!(judge(&method, PODS, Failure::Connect), Verdict::Retry(None, "connect")), "{method}");
        }
    }

    #[test]
    fn a_write_that_may_have_been_carried_out_is_the_callers() {
        for method in [Method::POST, Method::PATCH, Method::DELETE, Method::PUT] {
            for failure in [
                Failure::Cut,
                Failure::Status(StatusCode::SERVICE_UNAVAILABLE, None),
                Failure::Status(StatusCode::GATEWAY_TIMEOUT, None),
            ] {
                assert_eq!(judge(&method, PODS, failure), Verdict::Surface, "{method} {failure:?}");
            }
        }
    }

    #[test]
    fn a_read_is_repeated_when_the_server_is_away_and_not_when_it_is_refused() {
        assert!(matches!(judge(&Method::GET, PODS, Failure::Cut), Verdict::Retry(..)));
        let away = Failure::Status(StatusCode::SERVICE_UNAVAILABLE, None);
        assert!(matches!(judge(&Method::GET, PODS, away), Verdict::Retry(..)));
        for code in [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::GONE, StatusCode::INTERNAL_SERVER_ERROR]
        {
            assert_eq!(judge(&Method::GET, PODS, Failure::Status(code, None)), Verdict::Surface);
        }
    }

    #[test]
    fn a_disruption_budgets_refusal_is_an_answer() {
        let refused = Failure::Status(StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_secs(10)));
        assert_eq!(judge(&Method::POST, "/api/v1/namespaces/a/pods/b/eviction", refused), Verdict::Surface);
    }

    #[test]
    fn a_server_may_not_ask_for_ever() {
        let failure = Failure::Status(StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_hours(24)));
        assert_eq!(judge(&Method::GET, PODS, failure), Verdict::Retry(Some(RETRY_AFTER_MAX), "429"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-24T08:00:00Z".parse().unwrap();
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("3"), Some(Duration::from_secs(3)));
        assert_eq!(read("Tue, 24 Nov 2026 08:00:05 GMT"), Some(Duration::from_secs(5)));
        assert_eq!(read("Tue, 24 Nov 2026 07:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn watches_and_followed_logs_stay_open() {
        let open = |uri: &'static str| stays_open(&Uri::from_static(uri));
        assert!(open("/api/v1/pods?&watch=true&timeoutSeconds=200"));
        assert!(open("/api/v1/namespaces/a/pods/b/log?follow=true"));
        assert!(!open("/api/v1/pods?limit=500"));
        assert!(!open("/api/v1/pods?watch=false"));
        assert!(!open("/api/v1/pods"));
    }
}
