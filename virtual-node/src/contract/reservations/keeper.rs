//! Looks after what is held: ends what has run out, lets go of what lower pods took, and moves what lost its place.

use std::{sync::Arc, time::Duration};

use tensile_scheduling::{Demand, FitEngine, Wish};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Book, Reservations};

/// Between two rounds at least. A reservation may last longer than it was asked for by this.
const PAUSE: Duration = Duration::from_millis(100);

impl Reservations {
    /// Works until `stop`.
    pub(in crate::contract) async fn keep(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_forever()).await;
    }

    async fn keep_forever(&self) {
        let mut revision = self.inner.ledger.published().revision;
        loop {
            let next = self.look_after(Instant::now());
            // A burst changes the room all the time, and each round looks at all that is held.
            tokio::time::sleep(PAUSE).await;
            let over = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {}
                () = self.inner.sooner.notified() => {}
                // The ledger lives as long as we do.
                changed = revision.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One round. Answers when the next reservation runs out.
    pub(super) fn look_after(&self, now: Instant) -> Option<Instant> {
        // Also when nobody asks what fits: what is to be looked at must not grow.
        self.inner.ledger.decide(FitEngine::refresh);
        let mut book = self.inner.book.lock();
        let over = book.entries.iter().filter(|(_, entry)| entry.until.is_some_and(|until| until <= now));
        for uid in over.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.end(&mut book, &uid, "expired");
        }
        self.let_go_of_settled(&mut book);
        self.move_lost(&book);
        book.next = book.entries.values().filter_map(|entry| entry.until).min();
        book.next
    }

    /// A lower pod that has its node counts by itself.
    fn let_go_of_settled(&self, book: &mut Book) {
        let bound = book.entries.iter().filter(|(_, entry)| entry.until.is_none()).map(|(uid, _)| uid);
        let settled: Vec<_> =
            self.inner.ledger.decide(|engine| bound.filter(|uid| engine.has_settled(uid)).cloned().collect());
        for uid in settled {
            self.end(book, &uid, "settled");
        }
    }

    /// A foreign pod has taken the place, or its node went: another is held, if there is one. Until then the old one stays named, for
    /// it may come back, and `Reserve` and the lower scheduler judge it anew.
    fn move_lost(&self, book: &Book) {
        let moved = self.inner.ledger.decide(|engine| {
            let lost = book.entries.iter().filter(|(uid, entry)| move_if_lost(engine, uid, &entry.demand));
            lost.map(|(uid, _)| uid.clone()).collect::<Vec<_>>()
        });
        for uid in moved {
            tracing::info!(%uid, "a reserved lower node has no room any more; another is held for the pod");
            self.inner.metrics.moved();
        }
    }
}

/// Holds another node for a pod whose place is lost. Whether it was, and one was found.
fn move_if_lost(engine: &mut FitEngine, uid: &str, demand: &Arc<Demand>) -> bool {
    let Some(lost) = engine.held_node(uid) else { return false };
    if engine.still_holds(uid) {
        return false;
    }
    engine.release(uid);
    let excluded = [lost];
    let wish = Wish { excluded_nodes: &excluded, ..Wish::default() };
    let moved = engine.reserve(uid, demand, wish).is_ok();
    if !moved {
        engine.hold(uid, demand.clone(), excluded.first().map(String::as_str));
    }
    moved
}
