//! What a Lease object says, and what follows from it for one candidate. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use tokio::time::Instant;

/// What a released lease is good for, in seconds; as client-go does, since 0 is not valid.
const RELEASED_SECONDS: i32 = 1;

/// A lease as it was seen last.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) lease: Lease,
    /// When this content was first seen, by our clock.
    since: Instant,
}

/// What a candidate does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is no lease.
    Create { term: u64 },
    /// The lease is free, has run out, or is that of our former self.
    Take { term: u64 },
    /// It is ours.
    Renew { term: u64 },
    /// It is another's.
    Wait { leader: Option<String> },
}

impl Observed {
    /// Notes what was seen. Content that was seen before keeps its time.
    pub(super) fn look(lease: Lease, before: Option<&Self>, now: Instant) -> Self {
        let since = before.filter(|before| before.lease.spec == lease.spec).map_or(now, |before| before.since);
        Self { lease, since }
    }

    /// When it has run out if it does not change. A lease without a holder has run out already.
    pub(super) fn expires_at(&self) -> Instant {
        let spec = self.lease.spec.as_ref();
        if holder(spec).is_none() {
            return self.since;
        }
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        self.since + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    /// The number of its leader.
    pub(super) fn term(&self) -> u64 {
        term(&self.lease)
    }

    /// The holder, if it is not `identity`.
    pub(super) fn other_holder(&self, identity: &str) -> Option<String> {
        holder(self.lease.spec.as_ref()).filter(|holder| *holder != identity).map(str::to_owned)
    }
}

/// Decides for the candidate `identity`, which takes itself for the leader if `leads`. `last_term` is the highest term
/// it has seen.
pub(super) fn next_step(seen: Option<&Observed>, last_term: u64, identity: &str, leads: bool, now: Instant) -> Step {
    let Some(seen) = seen else { return Step::Create { term: last_term + 1 } };
    let term = term(&seen.lease);
    match seen.other_holder(identity) {
        Some(leader) if now < seen.expires_at() => Step::Wait { leader: Some(leader) },
        None if leads && holder(seen.lease.spec.as_ref()).is_some() => Step::Renew { term },
        _ => Step::Take { term: term.max(last_term) + 1 },
    }
}

pub(super) fn created(namespace: &str, name: &str, identity: &str, duration: Duration, term: u64) -> Lease {
    let now = MicroTime(Timestamp::now());
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: Some(whole_seconds(duration)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions(term)),
            ..LeaseSpec::default()
        }),
    }
}

/// The lease as ours. It carries the resourceVersion that was seen: if another was quicker, the write is refused.
pub(super) fn taken(seen: Option<&Observed>, identity: &str, duration: Duration, term: u64) -> Lease {
    let now = MicroTime(Timestamp::now());
    changed(seen, |spec| {
        spec.holder_identity = Some(identity.to_owned());
        spec.lease_duration_seconds = Some(whole_seconds(duration));
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
        spec.lease_transitions = Some(transitions(term));
    })
}

pub(super) fn renewed(seen: Option<&Observed>, duration: Duration) -> Lease {
    changed(seen, |spec| {
        spec.lease_duration_seconds = Some(whole_seconds(duration));
        spec.renew_time = Some(MicroTime(Timestamp::now()));
    })
}

pub(super) fn released(seen: &Observed) -> Lease {
    changed(Some(seen), |spec| {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(RELEASED_SECONDS);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
    })
}

fn changed(seen: Option<&Observed>, change: impl FnOnce(&mut LeaseSpec)) -> Lease {
    let mut lease = seen.map(|seen| seen.lease.clone()).unwrap_or_default();
    change(lease.spec.get_or_insert_default());
    lease
}

fn holder(spec: Option<&LeaseSpec>) -> Option<&str> {
    spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty())
}

fn term(lease: &Lease) -> u64 {
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
    u64::try_from(transitions).unwrap_or_default()
}

fn transitions(term: u64) -> i32 {
    i32::try_from(term).unwrap_or(i32::MAX)
}

/// At least one: the API refuses 0.
fn whole_seconds(duration: Duration) -> i32 {
    let rounded_up = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(rounded_up.max(1)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn seen(holder: &str, term: u64, since: Instant) -> Observed {
        Observed::look(created("ns", "lease", holder, DURATION, term), None, since)
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_lease_is_created_and_a_free_one_taken() {
        let now = Instant::now();
        assert_eq!(next_step(None, 6, "a", false, now), Step::Create { term: 7 });
        assert_eq!(next_step(Some(&seen("", 4, now)), 0, "a", false, now), Step::Take { term: 5 });
    }

    #[tokio::test(start_paused = true)]
    async fn anothers_lease_is_taken_only_when_it_was_not_seen_to_change_for_its_duration() {
        let start = Instant::now();
        let other = seen("b", 1, start);
        let wait = Step::Wait { leader: Some("b".into()) };
        assert_eq!(next_step(Some(&other), 0, "a", false, start), wait);
        assert_eq!(next_step(Some(&other), 0, "a", false, start + DURATION - Duration::from_millis(1)), wait);
        assert_eq!(next_step(Some(&other), 0, "a", false, start + DURATION), Step::Take { term: 2 });
        // A renewal that is seen counts from when it is seen; an unchanged lease counts from its first sight.
        let later = start + Duration::from_secs(10);
        let unchanged = Observed::look(other.lease.clone(), Some(&other), later);
        assert_eq!(unchanged.expires_at(), start + DURATION);
        let renewed = Observed::look(renewed(Some(&other), DURATION), Some(&other), later);
        assert_eq!(renewed.expires_at(), later + DURATION);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_renews_and_its_restarted_self_starts_a_new_term() {
        let now = Instant::now();
        assert_eq!(next_step(Some(&seen("a", 3, now)), 0, "a", true, now), Step::Renew { term: 3 });
        assert_eq!(next_step(Some(&seen("a", 3, now)), 0, "a", false, now), Step::Take { term: 4 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_lease_was_taken_or_freed_does_not_renew() {
        let now = Instant::now();
        assert_eq!(next_step(Some(&seen("b", 3, now)), 0, "a", true, now), Step::Wait { leader: Some("b".into()) });
        assert_eq!(next_step(Some(&seen("", 3, now)), 0, "a", true, now), Step::Take { term: 4 });
    }

    #[test]
    fn a_duration_is_rounded_up_to_whole_seconds() {
        let cases = [(0, 1), (999, 1), (1_000, 1), (1_001, 2), (15_000, 15)];
        for (millis, seconds) in cases {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }
}
