//! Commands that end, one way or the other.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The time limit for what takes seconds on an idle machine.
pub const SOON: Duration = Duration::from_mins(2);

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ended {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {} stderr: {}", self.text(), self.err);
        self.text()
    }
}

/// A command under way. Its input stays open until it is closed; it is killed on drop.
pub struct Running {
    child: Child,
    out: Option<JoinHandle<Vec<u8>>>,
    err: Option<JoinHandle<Vec<u8>>>,
    what: String,
}

/// Runs a command to its end with this input.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Ended {
    let mut running = Running::start(command, true);
    let mut stdin = running.child.stdin.take().unwrap();
    let input = input.to_vec();
    // Beside the wait: a command may end without having read all.
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let ended = running.wait();
    feeder.join().unwrap();
    ended
}

impl Running {
    /// Starts a command whose output is collected, or left to the caller to read.
    pub fn start(command: &mut Command, collect: bool) -> Self {
        let what = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let out = collect.then(|| collected(child.stdout.take().unwrap()));
        let err = Some(collected(child.stderr.take().unwrap()));
        Self { child, out, err, what }
    }

    /// Its output line by line, when it is not collected.
    pub fn screen(&mut self) -> Screen {
        let mut from = BufReader::new(self.child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            while from.read_line(&mut line).is_ok_and(|count| count > 0)
                && sender.send(std::mem::take(&mut line)).is_ok()
            {}
        });
        Screen { lines, seen: String::new() }
    }

    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    #[track_caller]
    pub fn wait(&mut self) -> Ended {
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                let (out, err) = (take(&mut self.out), take(&mut self.err));
                panic!(
                    "{} did not end within {SOON:?}; stdout: {} stderr: {}",
                    self.what,
                    String::from_utf8_lossy(&out),
                    String::from_utf8_lossy(&err)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let (out, err) = (take(&mut self.out), take(&mut self.err));
        Ended { code: status.code(), out, err: String::from_utf8_lossy(&err).into_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a command prints, read with a deadline.
pub struct Screen {
    lines: mpsc::Receiver<String>,
    seen: String,
}

impl Screen {
    /// Reads up to a line that holds this text, and returns it.
    #[track_caller]
    pub fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    if line.contains(text) {
                        return line.trim().to_owned();
                    }
                }
                Err(why) => panic!("no line with {text:?} ({why}); seen: {}", self.seen),
            }
        }
    }

    /// Reads to the end, and returns what came since the last line that was looked for.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        let deadline = Instant::now() + SOON;
        let mut rest = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => rest.push_str(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return rest,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end within {SOON:?}; seen: {}{rest}", self.seen),
            }
        }
    }
}

fn collected(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn take(handle: &mut Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    handle.take().map(|handle| handle.join().unwrap()).unwrap_or_default()
}

/// Looks until the condition holds; fails with what was seen last.
#[track_caller]
pub fn until(what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + SOON;
    loop {
        match look() {
            Ok(()) => return,
            Err(seen) if Instant::now() > deadline => panic!("waited {SOON:?} in vain until {what}; last seen: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
