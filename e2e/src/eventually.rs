//! Waiting for a condition instead of for time to pass.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Short enough to keep tests quick, long enough not to load the API server that is watched.
const INTERVAL: Duration = Duration::from_millis(50);

/// What one look at a condition showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// The condition holds, with this result.
    Done(T),
    /// It does not hold yet; the text says what was seen instead.
    NotYet(String),
}

impl Seen<()> {
    /// Done when `holds`, else not yet, with `state` to show should the wait fail.
    pub fn when(holds: bool, state: impl Debug) -> Self {
        if holds { Self::Done(()) } else { Self::NotYet(format!("{state:?}")) }
    }
}

/// Looks again and again until the condition holds, and fails after `deadline` with what was
/// seen last. Errors count as "not yet": the API server under test may be down on purpose.
///
/// `what` completes the sentence "waited in vain until ...".
pub async fn eventually<T, F, Fut>(what: &str, deadline: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Seen<T>>>,
{
    let started = Instant::now();
    let mut last = String::from("nothing: the first look did not return");
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, look()).await {
            Ok(Ok(Seen::Done(value))) => return Ok(value),
            Ok(Ok(Seen::NotYet(state))) => last = state,
            Ok(Err(error)) => last = format!("error: {error:#}"),
            Err(_) => {}
        }
        if started.elapsed() + INTERVAL >= deadline {
            bail!("waited {deadline:?} in vain until {what}; last seen: {last}");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_as_soon_as_the_condition_holds() {
        let mut looks = 0;
        let found = eventually("three looks", Duration::from_secs(10), || {
            looks += 1;
            let seen = if looks == 3 { Seen::Done(looks) } else { Seen::NotYet(looks.to_string()) };
            async move { Ok(seen) }
        })
        .await;
        assert_eq!(found.unwrap(), 3);
    }

    #[tokio::test]
    async fn says_what_was_seen_last() {
        let error = eventually::<(), _, _>("it is done", Duration::from_millis(120), || async {
            Ok(Seen::NotYet("half of it".to_owned()))
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("until it is done"), "{error}");
        assert!(error.contains("half of it"), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_with_the_deadline() {
        let started = Instant::now();
        let result = eventually::<(), _, _>("never", Duration::from_millis(200), std::future::pending).await;
        assert!(result.is_err());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
