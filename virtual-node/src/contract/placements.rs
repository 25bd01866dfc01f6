//! What the lower scheduler made of each pod: the latest verdict by upper UID, and a short log of what changed.
//!
//! The log holds UIDs only; a reader looks the verdict up when it gets there, so changes that follow each other closely are one.
//! A reader that falls behind the log is told the whole state again, so neither the log nor a reader ever grows.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tensile_scheduling::name::Name;
use tokio::sync::watch;

/// Changes that the log keeps: more than a reader that reads every second misses in a burst. It holds no more than one MiB,
/// UIDs of pods that are gone included.
const LOG_MAX: usize = 16_384;
/// Bytes of a scheduler's message that are kept. Messages of big clusters name many reasons; the first ones tell.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// The lower cluster's verdict on one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlacementVerdict {
    /// Bound to a lower node.
    Bound {
        /// The lower node's name.
        node: String,
    },
    /// No lower node takes it.
    Unschedulable {
        /// The lower scheduler's message.
        message: String,
        /// Since when, by the lower cluster's clock.
        since: Option<Timestamp>,
    },
    /// Evicted by the API or by a kubelet, or lost with its node.
    Evicted,
    /// Removed to make room for a pod of higher priority.
    Preempted,
}

/// Verdicts by upper UID. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Placements {
    shared: Arc<Shared>,
}

struct Shared {
    book: Mutex<Book>,
    /// Number of the last change, for readers to wait on.
    number: watch::Sender<u64>,
}

#[derive(Default)]
struct Book {
    verdicts: HashMap<Arc<str>, Kept>,
    /// UIDs of changed pods, oldest first; the last one's number is `number`.
    log: VecDeque<Arc<str>>,
    number: u64,
}

/// A verdict, packed: there are as many as pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Bound(Name),
    Unschedulable(Box<(String, Option<Timestamp>)>),
    Evicted,
    Preempted,
}

/// What a reader is to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// Everything, as of one number.
    Whole { number: u64, verdicts: Vec<(Arc<str>, Kept)> },
    /// What changed since the last batch, by rising number.
    Changes(Vec<Change>),
}

/// The number of a pod's latest change, its UID, and its verdict; `None`: forgotten.
pub(super) type Change = (u64, Arc<str>, Option<Kept>);

/// One reader's place.
pub(super) struct Reader {
    shared: Arc<Shared>,
    /// Number of the last change that was handed out; `None` before the first batch.
    told: Option<u64>,
    number: watch::Receiver<u64>,
}

impl Default for Placements {
    fn default() -> Self {
        Self::new()
    }
}

impl Placements {
    /// No verdicts.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { book: Mutex::default(), number: watch::Sender::new(0) }) }
    }

    /// The verdict on the lower twin of an upper pod. The same again changes nothing.
    pub fn record(&self, upper_uid: &str, verdict: PlacementVerdict) {
        self.shared.change(|book| book.record(upper_uid, Kept::of(verdict)));
    }

    /// The upper pod is gone, or its lower twin is.
    pub fn forget(&self, upper_uid: &str) {
        self.shared.change(|book| book.forget(upper_uid));
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone(), told: None, number: self.shared.number.subscribe() }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Book) -> bool) {
        let mut book = self.book.lock();
        if change(&mut book) {
            // Under the lock, so that numbers are published in order.
            self.number.send_replace(book.number);
        }
    }
}

impl Book {
    fn record(&mut self, uid: &str, verdict: Kept) -> bool {
        let uid = match self.verdicts.get_key_value(uid) {
            Some((_, known)) if *known == verdict => return false,
            Some((uid, _)) => uid.clone(),
            None => Arc::from(uid),
        };
        self.verdicts.insert(uid.clone(), verdict);
        self.note(uid);
        true
    }

    fn forget(&mut self, uid: &str) -> bool {
        let Some((uid, _)) = self.verdicts.remove_entry(uid) else { return false };
        self.note(uid);
        true
    }

    fn note(&mut self, uid: Arc<str>) {
        if self.log.len() == LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back(uid);
        self.number += 1;
    }

    /// What changed after number `told`; `None` when the log does not reach back that far.
    fn since(&self, told: u64) -> Option<Vec<Change>> {
        let missed = usize::try_from(self.number - told).ok().filter(|missed| *missed <= self.log.len())?;
        let mut seen = HashSet::with_capacity(missed);
        let newest_first = (told + 1..=self.number).rev().zip(self.log.iter().rev());
        let mut changes: Vec<_> = newest_first
            .filter(|(_, uid)| seen.insert(*uid))
            .map(|(number, uid)| (number, uid.clone(), self.verdicts.get(uid).cloned()))
            .collect();
        changes.reverse();
        Some(changes)
    }
}

impl Reader {
    /// Waits until there is something to tell; at once for the first time. `None` when the virtual node is gone.
    pub async fn changed(&mut self) -> Option<()> {
        let Some(told) = self.told else { return Some(()) };
        self.number.wait_for(|number| *number > told).await.ok().map(|_| ())
    }

    /// What is to be told now.
    pub fn take(&mut self) -> Batch {
        let book = self.shared.book.lock();
        let told = self.told.replace(book.number);
        told.and_then(|told| book.since(told)).map_or_else(
            || Batch::Whole {
                number: book.number,
                verdicts: book.verdicts.iter().map(|(uid, kept)| (uid.clone(), kept.clone())).collect(),
            },
            Batch::Changes,
        )
    }
}

impl Kept {
    fn of(verdict: PlacementVerdict) -> Self {
        match verdict {
            PlacementVerdict::Bound { node } => Self::Bound(Name::new(&node)),
            PlacementVerdict::Unschedulable { mut message, since } => {
                message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
                message.shrink_to_fit();
                Self::Unschedulable(Box::new((message, since)))
            }
            PlacementVerdict::Evicted => Self::Evicted,
            PlacementVerdict::Preempted => Self::Preempted,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    fn bound(node: &str) -> PlacementVerdict {
        PlacementVerdict::Bound { node: node.into() }
    }

    /// Applies batches as a client would.
    fn apply(seen: &mut HashMap<String, Kept>, batch: Batch) {
        match batch {
            Batch::Whole { verdicts, .. } => {
                *seen = verdicts.into_iter().map(|(uid, kept)| (uid.to_string(), kept)).collect();
            }
            Batch::Changes(changes) => {
                assert!(changes.is_sorted_by_key(|(number, ..)| *number));
                for (_, uid, kept) in changes {
                    match kept {
                        Some(kept) => seen.insert(uid.to_string(), kept),
                        None => seen.remove(&*uid),
                    };
                }
            }
        }
    }

    #[test]
    fn the_first_batch_is_whole_and_then_changes_come_once_for_each_pod() {
        let placements = Placements::new();
        placements.record("a", bound("n1"));
        let mut reader = placements.reader();
        assert!(matches!(reader.take(), Batch::Whole { number: 1, verdicts } if verdicts.len() == 1));
        placements.record("a", PlacementVerdict::Evicted);
        placements.record("a", PlacementVerdict::Evicted);
        placements.record("b", bound("n2"));
        placements.record("a", PlacementVerdict::Preempted);
        placements.forget("b");
        placements.forget("never");
        let expected = [(4, "a".into(), Some(Kept::Preempted)), (5, "b".into(), None)];
        assert_eq!(reader.take(), Batch::Changes(expected.into()));
        assert_eq!(reader.take(), Batch::Changes(Vec::new()));
    }

    #[test]
    fn a_reader_behind_the_log_is_told_the_whole_again() {
        let placements = Placements::new();
        let mut reader = placements.reader();
        reader.take();
        for index in 0..=LOG_MAX {
            placements.record("a", bound(&format!("n{index}")));
        }
        assert!(matches!(reader.take(), Batch::Whole { verdicts, .. } if verdicts.len() == 1));
        assert_eq!(placements.shared.book.lock().log.len(), LOG_MAX);
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let kept = Kept::of(PlacementVerdict::Unschedulable { message: "ä".repeat(1_000), since: None });
        let Kept::Unschedulable(kept) = kept else { panic!("{kept:?}") };
        assert_eq!(kept.0.len(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn a_verdict_stays_small() {
        assert!(size_of::<Kept>() <= 24);
    }

    proptest! {
        #[test]
        fn readers_at_any_pace_end_with_the_same_state(
            steps in prop::collection::vec((0..6_u8, prop::option::of(0..4_u8), any::<bool>()), 0..80),
        ) {
            let placements = Placements::new();
            let mut reader = placements.reader();
            let mut seen = HashMap::new();
            for (uid, node, read) in steps {
                match node {
                    Some(node) => placements.record(&uid.to_string(), bound(&node.to_string())),
                    None => placements.forget(&uid.to_string()),
                }
                if read {
                    apply(&mut seen, reader.take());
                }
            }
            apply(&mut seen, reader.take());
            let mut fresh = HashMap::new();
            apply(&mut fresh, placements.reader().take());
            prop_assert_eq!(seen, fresh);
        }
    }
}
