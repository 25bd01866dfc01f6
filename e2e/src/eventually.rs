//! Waiting for a condition instead of for time to pass.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The pause between the first two looks; each further one is a fifth longer. Quick conditions are
/// seen quickly, and a long wait does not load the API server that it watches.
const INTERVAL_MIN: Duration = Duration::from_millis(30);
const INTERVAL_MAX: Duration = Duration::from_millis(500);

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
/// A look that finds the condition lost for good returns `Seen::Done(Err(reason))`, which ends the wait.
///
/// `what` completes the sentence "waited in vain until ...".
pub async fn eventually<T, F, Fut>(what: &str, deadline: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Seen<T>>>,
{
    let started = Instant::now();
    let mut interval = INTERVAL_MIN;
    let mut last = String::from("nothing: the first look did not return");
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, look()).await {
            Ok(Ok(Seen::Done(value))) => return Ok(value),
            Ok(Ok(Seen::NotYet(state))) => last = state,
            Ok(Err(error)) => last = format!("error: {error:#}"),
            Err(_) => {}
        }
        if started.elapsed() + interval >= deadline {
            bail!("waited {deadline:?} in vain until {what}; last seen: {last}");
        }
        tokio::time::sleep(interval).await;
        interval = (interval + interval / 5).min(INTERVAL_MAX);
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
