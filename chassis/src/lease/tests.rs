//! Candidates against a scripted API server that keeps one Lease.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::{
    kube_client::{ClientOptions, KubeMetrics, build},
    testing::{Asked, Reply, ScriptedServer},
};

/// No test's single step takes longer than this unless it fails.
const LIMIT: Duration = Duration::from_secs(20);

const ARGS: LeaseArgs = LeaseArgs {
    duration: Duration::from_secs(2),
    renew: Duration::from_millis(1_200),
    retry: Duration::from_millis(200),
};

/// The lease, and whose requests get no answer.
#[derive(Default)]
struct Store {
    lease: Option<Value>,
    version: u64,
    silent: BTreeSet<String>,
    refuse: Option<u16>,
}

impl Store {
    fn answer(&mut self, asked: &Asked) -> Reply {
        let who = asked.headers["user-agent"].to_str().unwrap();
        if self.silent.contains(who) {
            return Reply::Hang;
        }
        if let Some(code) = self.refuse {
            return Reply::error(code, "refused by the script");
        }
        let sent = asked.json();
        let current = self.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        match (asked.method.as_str(), current) {
            ("GET", Some(_)) => Reply::json(200, self.lease.as_ref().unwrap()),
            ("GET" | "PUT", None) => Reply::error(404, "not found"),
            ("POST", None) => self.store(sent),
            ("PUT", Some(version)) if sent["metadata"]["resourceVersion"] == version => self.store(sent),
            _ => Reply::error(409, "conflict"),
        }
    }

    fn store(&mut self, mut lease: Value) -> Reply {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        Reply::json(200, &lease)
    }
}

struct Setup {
    store: Arc<Mutex<Store>>,
    server: ScriptedServer,
}

struct Candidate {
    leadership: watch::Receiver<Leadership>,
    fence: Fence,
    shutdown: Shutdown,
}

impl Setup {
    async fn new() -> Self {
        let store = Arc::new(Mutex::new(Store::default()));
        let script = store.clone();
        let server = ScriptedServer::start(move |asked| script.lock().answer(asked)).await.unwrap();
        Self { store, server }
    }

    fn candidate(&self, identity: &str) -> Candidate {
        let options = ClientOptions { user_agent: identity.to_owned(), ..ClientOptions::default() };
        let client = build(self.server.config(), &options, &KubeMetrics::default()).unwrap();
        let election = LeaseElection::new(client, "ns", "lease", identity, ARGS).unwrap();
        let (fence, shutdown) = (election.fence(), Shutdown::new());
        Candidate { leadership: election.run(&shutdown), fence, shutdown }
    }

    fn spec(&self) -> Value {
        self.store.lock().lease.as_ref().unwrap()["spec"].clone()
    }
}

impl Candidate {
    async fn becomes(&mut self, wanted: impl Fn(&Leadership) -> bool) -> Leadership {
        let reached = timeout(LIMIT, self.leadership.wait_for(|leadership| wanted(leadership))).await;
        let reached = reached.map(|reached| reached.unwrap().clone());
        reached.unwrap_or_else(|_| panic!("it stayed {:?}", *self.leadership.borrow()))
    }

    async fn leads(&mut self) -> u64 {
        match self.becomes(Leadership::is_leader).await {
            Leadership::Leader { term, .. } => term,
            Leadership::Standby { .. } => unreachable!(),
        }
    }
}

#[tokio::test]
async fn the_first_leads_and_the_second_stands_by_and_knows_whom_for() {
    let setup = Setup::new().await;
    let mut first = setup.candidate("a");
    first.leads().await;
    assert_eq!(first.fence.check(), Ok(()));
    let mut second = setup.candidate("b");
    second.becomes(|state| *state == Leadership::Standby { leader: Some("a".into()) }).await;
    assert_eq!(second.fence.check(), Err(NotLeader));
    assert_eq!(
        (setup.spec()["holderIdentity"].as_str(), setup.spec()["leaseDurationSeconds"].as_i64()),
        (Some("a"), Some(2))
    );
}

#[tokio::test]
async fn a_leader_that_ends_gives_the_lease_back_at_once() {
    let setup = Setup::new().await;
    let (mut first, mut second) = (setup.candidate("a"), setup.candidate("b"));
    let led = tokio::select! {
        term = first.leads() => term,
        _ = second.leads() => { std::mem::swap(&mut first, &mut second); first.leads().await }
    };
    let start = Instant::now();
    first.shutdown.request();
    first.shutdown.drain(LIMIT).await.unwrap();
    assert_eq!(first.fence.check(), Err(NotLeader));
    let next = second.leads().await;
    assert!(start.elapsed() < ARGS.duration / 2, "it waited for the lease to run out: {:?}", start.elapsed());
    assert!(next > led, "term {next} after {led}");
}

#[tokio::test]
async fn a_leader_that_is_cut_off_stops_writing_before_another_starts() {
    let setup = Setup::new().await;
    let mut first = setup.candidate("a");
    first.leads().await;
    let mut second = setup.candidate("b");
    second.becomes(|state| *state == Leadership::Standby { leader: Some("a".into()) }).await;
    let start = Instant::now();
    setup.store.lock().silent.insert("a".into());
    second.leads().await;
    assert_eq!(first.fence.check(), Err(NotLeader), "two may write at once");
    let took = start.elapsed();
    assert!(took <= ARGS.duration + Duration::from_secs(1), "takeover took {took:?}");
    assert!(took + 2 * ARGS.retry >= ARGS.duration, "taken too early: {took:?}");
    // It hears of it when it is let in again.
    setup.store.lock().silent.clear();
    first.becomes(|state| *state == Leadership::Standby { leader: Some("b".into()) }).await;
}

#[tokio::test]
async fn a_short_outage_costs_nobody_the_lease() {
    let setup = Setup::new().await;
    let mut first = setup.candidate("a");
    let term = first.leads().await;
    setup.store.lock().refuse = Some(500);
    let asked = setup.server.seen().len();
    setup.server.wait_for(LIMIT, |seen| seen.len() >= asked + 2).await.unwrap();
    setup.store.lock().refuse = None;
    let asked = setup.server.seen().len();
    setup.server.wait_for(LIMIT, |seen| seen.len() >= asked + 2).await.unwrap();
    assert_eq!((first.leads().await, first.fence.check()), (term, Ok(())));
}

#[tokio::test]
async fn a_leader_steps_down_when_it_cannot_renew_and_leads_again_afterwards() {
    let setup = Setup::new().await;
    let mut first = setup.candidate("a");
    let term = first.leads().await;
    setup.store.lock().refuse = Some(503);
    first.becomes(|state| !state.is_leader()).await;
    assert_eq!(first.fence.check(), Err(NotLeader));
    setup.store.lock().refuse = None;
    assert!(first.leads().await > term, "a new leadership needs a new term");
}

#[tokio::test]
async fn a_lease_that_was_deleted_is_made_again_with_a_higher_term() {
    let setup = Setup::new().await;
    let mut first = setup.candidate("a");
    first.leads().await;
    setup.store.lock().lease = None;
    setup.server.wait_for(LIMIT, |seen| seen.iter().filter(|asked| asked.method == "POST").count() == 2).await.unwrap();
    let mut receiver = first.leadership.clone();
    let higher = |state: &Leadership| matches!(state, Leadership::Leader { term, .. } if *term > 1);
    let deadline = Instant::now() + LIMIT;
    while !higher(&receiver.borrow_and_update()) {
        assert!(Instant::now() < deadline, "it stayed {:?}", *receiver.borrow());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_standby_without_rights_stays_one_and_goes_on_trying() {
    let setup = Setup::new().await;
    setup.store.lock().refuse = Some(403);
    let mut first = setup.candidate("a");
    setup.server.wait_for(LIMIT, |seen| seen.len() >= 3).await.unwrap();
    assert_eq!((first.leadership.borrow().is_leader(), first.fence.check()), (false, Err(NotLeader)));
    setup.store.lock().refuse = None;
    first.leads().await;
}

#[test]
fn times_that_do_not_fit_are_refused() {
    let seconds = Duration::from_secs;
    let args = |duration, renew, retry| LeaseArgs {
        duration: seconds(duration),
        renew: seconds(renew),
        retry: seconds(retry),
    };
    assert_eq!(LeaseArgs::default().check(), Ok(()));
    for bad in [args(10, 10, 2), args(15, 2, 2), args(15, 14, 2)] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}
