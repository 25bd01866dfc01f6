//! Commands that end, one way or the other.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::world::SOON;

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {} stderr: {}", self.out, self.err);
        self.out
    }
}

/// Runs a command to its end with this input.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Ended {
    let mut running = Running::start(command);
    let mut stdin = running.stdin.take().unwrap();
    let input = input.to_vec();
    // Beside the wait: a command may end without having read all.
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let ended = running.wait();
    feeder.join().unwrap();
    ended
}

/// A command under way. Its output is collected from the start; its input stays open. It is killed on drop.
pub struct Running {
    child: Child,
    what: String,
    stdin: Option<ChildStdin>,
    out: Lines,
    err: Option<JoinHandle<String>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let stdin = child.stdin.take();
        let out = Lines::of(child.stdout.take().unwrap());
        let mut err = child.stderr.take().unwrap();
        let err = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = err.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Self { child, what, stdin, out, err: Some(err) }
    }

    /// Types something.
    pub fn write(&mut self, text: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(text).unwrap();
    }

    /// Waits for a line of output that contains this, and answers it.
    #[track_caller]
    pub fn line(&mut self, containing: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            match self.out.next(deadline) {
                Some(line) if line.contains(containing) => return line,
                Some(_) => {}
                None => {
                    self.kill();
                    let err = self.err.take().unwrap().join().unwrap();
                    panic!("{}: no line with {containing:?}; stdout: {} stderr: {err}", self.what, self.out.seen)
                }
            }
        }
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait(&mut self) -> Ended {
        let deadline = Instant::now() + SOON;
        while self.out.next(deadline).is_some() {}
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                // Its output has ended, so it is about to.
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        self.kill();
        let err = self.err.take().unwrap().join().unwrap();
        let out = std::mem::take(&mut self.out.seen);
        let Some(status) = status else {
            panic!("{} did not end within {SOON:?}; stdout: {out} stderr: {err}", self.what)
        };
        Ended { code: status.code(), out, err }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Output by lines, read by a thread so that waiting for one has a deadline.
struct Lines {
    receiver: std::sync::mpsc::Receiver<String>,
    /// All lines so far.
    seen: String,
}

impl Lines {
    fn of(from: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Self { receiver, seen: String::new() }
    }

    /// The next line, with its end; `None` after the last and after the deadline.
    fn next(&mut self, deadline: Instant) -> Option<String> {
        let line = self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        self.seen.push_str(&line);
        Some(line)
    }
}
