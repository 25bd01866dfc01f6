//! Fault points: tests have the process die at any write, or lose its answer. Only with the feature `fault-points`.
//!
//! Each kind of write that a virtual-node makes is a [`Point`] in one table. The hook sits where every request of every
//! client passes, and ends the process over a write that is in no row: a new request without a point cannot hide.
//!
//! What shall happen stands in the file that `TENSILE_FAULT_FILE` names, one fault a line:
//!
//! ```text
//! MOMENT POINT [COUNT]        kill-after pod-create
//! ```
//!
//! * `kill-before`: the process ends by SIGKILL, and nothing was sent;
//! * `kill-after`: it ends when the API server has answered, and nobody has looked at the answer;
//! * `lose-answer`: the API server has answered, and whoever asked is told that the connection was cut.
//!
//! A fault happens once, at the write of that COUNT (1 if not given), and its line is taken out of the file first: a test
//! sees what has happened, and the process that is started next does not run into the same fault. A file and not an
//! argument, so that a running process can be told.

mod points;

use std::{env, fs, path::Path, process};

use parking_lot::Mutex;
use rustix::process::{Signal, getpid, kill_process};
use tensile_chassis::kube_client::fault::{self, Answer, Moment, Write};

pub use points::{POINTS, Point};

/// Names the file with the faults to come.
pub const FILE_VARIABLE: &str = "TENSILE_FAULT_FILE";

/// The words for moments, in the file.
const KILL_BEFORE: &str = "kill-before";
const KILL_AFTER: &str = "kill-after";
const LOSE_ANSWER: &str = "lose-answer";

/// Has every write of this process pass its point.
pub fn install() {
    fault::install(pass);
}

fn pass(write: &Write<'_>, moment: Moment) -> Answer {
    if points::is_question(write) {
        return Answer::Given;
    }
    let Some(point) = points::of(write) else {
        eprintln!(
            "virtual-node: no fault point is listed for {} {} in the {} cluster: add a row to POINTS in \
             virtual-node/src/fault/points.rs, and a scene to e2e/tests/faults",
            write.method, write.path, write.role
        );
        process::abort();
    };
    let Some(file) = env::var_os(FILE_VARIABLE) else { return Answer::Given };
    match due(Path::new(&file), point.name, moment) {
        None => Answer::Given,
        Some(Fault::Lose) => Answer::Lost,
        Some(Fault::Kill) => die(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Lose,
}

/// Takes the fault that is due now out of the file; of one that is due later, one from its count.
fn due(file: &Path, point: &str, moment: Moment) -> Option<Fault> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let text = fs::read_to_string(file).ok()?;
    let (rest, fault) = taken(&text, point, moment)?;
    // Renamed into place: a test that reads meanwhile sees the whole file.
    let fresh = file.with_extension("new");
    if fs::write(&fresh, rest).and_then(|()| fs::rename(&fresh, file)).is_err() {
        eprintln!("virtual-node: cannot write {}", file.display());
        process::abort();
    }
    fault
}

/// The file's text after this passing, and what happens now; `None` when no line is about it.
fn taken(text: &str, point: &str, moment: Moment) -> Option<(String, Option<Fault>)> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let place = lines.iter().position(|line| fault_of(line, point, moment).is_some())?;
    let line = lines.remove(place);
    let mut fault = fault_of(&line, point, moment);
    let words: Vec<&str> = line.split_whitespace().collect();
    let count: u32 = words.get(2).and_then(|count| count.parse().ok()).unwrap_or(1);
    if count > 1 {
        lines.insert(place, format!("{} {} {}", words[0], words[1], count - 1));
        fault = None;
    }
    Some((lines.join("\n"), fault))
}

/// What a line has happen at this point and moment.
fn fault_of(line: &str, point: &str, moment: Moment) -> Option<Fault> {
    let mut words = line.split_whitespace();
    let what = words.next()?;
    if words.next()? != point {
        return None;
    }
    match (what, moment) {
        (KILL_BEFORE, Moment::Before) | (KILL_AFTER, Moment::After) => Some(Fault::Kill),
        (LOSE_ANSWER, Moment::After) => Some(Fault::Lose),
        _ => None,
    }
}

/// Ends the process as `kill -9` does: nothing is flushed, closed or given back.
fn die() -> ! {
    // The signal is there before the call returns; what follows is for a kernel that thinks otherwise.
    let _ = kill_process(getpid(), Signal::KILL);
    process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_happens_once_at_its_count() {
        let text = "kill-before pod-create\nkill-after pod-status 2\n";
        assert_eq!(taken(text, "pod-create", Moment::After), None);
        let (text, fault) = taken(text, "pod-create", Moment::Before).unwrap_or_default();
        assert_eq!((text.as_str(), fault), ("kill-after pod-status 2", Some(Fault::Kill)));
        let (text, fault) = taken(&text, "pod-status", Moment::After).unwrap_or_default();
        assert_eq!((text.as_str(), fault), ("kill-after pod-status 1", None));
        let (text, fault) = taken(&text, "pod-status", Moment::After).unwrap_or_default();
        assert_eq!((text.as_str(), fault), ("", Some(Fault::Kill)));
        let (_, fault) = taken("lose-answer pod-delete\n", "pod-delete", Moment::After).unwrap_or_default();
        assert_eq!(fault, Some(Fault::Lose));
    }
}
