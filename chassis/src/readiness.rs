//! Whether this process should be sent work, and if not, why.
//!
//! Each part that must be in order holds a [`Gate`]. A gate starts closed, so a part that never starts is seen; a gate
//! with a maximum age closes by itself when it is not touched, so a part that hangs is seen too.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// All gates of a process. Cheap to clone; clones share the gates.
#[derive(Clone, Default)]
pub struct Readiness {
    gates: Arc<Mutex<Vec<Arc<GateState>>>>,
}

impl Readiness {
    /// No gates yet: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gate that starts closed and stays as it was last set.
    pub fn gate(&self, name: impl Into<String>) -> Gate {
        self.add(name.into(), None)
    }

    /// Adds a gate that starts closed and closes by itself when it was not touched for `max_age`.
    pub fn gate_with_max_age(&self, name: impl Into<String>, max_age: Duration) -> Gate {
        self.add(name.into(), Some(max_age))
    }

    /// Ok when every gate is open; otherwise one line for each closed gate: its name and why it is closed.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let now = Instant::now();
        let closed: Vec<String> = self.gates.lock().iter().filter_map(|gate| gate.closed_because(now)).collect();
        if closed.is_empty() { Ok(()) } else { Err(closed) }
    }

    fn add(&self, name: String, max_age: Option<Duration>) -> Gate {
        let state = Opening { closed: Some("has not started".to_owned()), touched: Instant::now() };
        let gate = Arc::new(GateState { name, max_age, state: Mutex::new(state) });
        self.gates.lock().push(gate.clone());
        Gate { state: gate }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.check()).finish()
    }
}

/// One part's say in the readiness of the process. Cheap to clone; clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    state: Arc<GateState>,
}

impl Gate {
    /// Opens the gate, and counts as a touch.
    pub fn set_ready(&self) {
        let mut state = self.state.state.lock();
        state.closed = None;
        state.touched = Instant::now();
    }

    /// Closes the gate. `reason` is shown to whoever asks `/ready`; it must hold no secret.
    pub fn set_unready(&self, reason: impl Into<String>) {
        self.state.state.lock().closed = Some(reason.into());
    }

    /// Shows that the part still works, without opening a closed gate.
    pub fn touch(&self) {
        self.state.state.lock().touched = Instant::now();
    }

    /// Whether this gate alone is open now.
    pub fn is_ready(&self) -> bool {
        self.state.closed_because(Instant::now()).is_none()
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.state.name
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("name", &self.state.name).field("ready", &self.is_ready()).finish()
    }
}

struct GateState {
    name: String,
    max_age: Option<Duration>,
    state: Mutex<Opening>,
}

struct Opening {
    /// Why it is closed; `None` when open.
    closed: Option<String>,
    touched: Instant,
}

impl GateState {
    fn closed_because(&self, now: Instant) -> Option<String> {
        let state = self.state.lock();
        if let Some(reason) = &state.closed {
            return Some(format!("{}: {reason}", self.name));
        }
        let max_age = self.max_age?;
        let age = now.saturating_duration_since(state.touched);
        (age > max_age)
            .then(|| format!("{}: no sign of life for {} s (limit {} s)", self.name, age.as_secs(), max_age.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_gate_starts_closed_and_says_why() {
        let readiness = Readiness::new();
        let gate = readiness.gate("upper-pods");
        assert_eq!(readiness.check().unwrap_err(), ["upper-pods: has not started"]);
        gate.set_ready();
        assert_eq!(readiness.check(), Ok(()));
        gate.set_unready("the list is refused (403)");
        assert_eq!(readiness.check().unwrap_err(), ["upper-pods: the list is refused (403)"]);
    }

    #[test]
    fn only_closed_gates_are_named() {
        let readiness = Readiness::new();
        readiness.gate("open").set_ready();
        readiness.gate("closed");
        assert_eq!(readiness.check().unwrap_err(), ["closed: has not started"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_that_is_not_touched_closes_by_itself_and_a_touch_opens_it() {
        let readiness = Readiness::new();
        let gate = readiness.gate_with_max_age("lower-pods", Duration::from_mins(1));
        gate.set_ready();
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(readiness.check(), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(readiness.check().unwrap_err(), ["lower-pods: no sign of life for 61 s (limit 60 s)"]);
        gate.touch();
        assert_eq!(readiness.check(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_touch_does_not_open_a_gate_that_was_closed_for_a_reason() {
        let readiness = Readiness::new();
        let gate = readiness.gate_with_max_age("lower-pods", Duration::from_mins(1));
        gate.set_unready("away");
        gate.touch();
        assert!(!gate.is_ready());
    }
}
