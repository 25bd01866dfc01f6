//! A child process with a log file that cannot outlive its owner.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::run::{LAUNCH, Run};

/// How often a wait looks at the child.
const POLL: Duration = Duration::from_millis(10);

/// What a dropped process gets between SIGTERM and SIGKILL. Short: a drop blocks its thread, and
/// nothing of a test's data is worth keeping.
const DROP_GRACE: Duration = Duration::from_millis(300);

/// A running program: leader of its own process group, output in a log file, recorded in the
/// [`Run`], ended on drop.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    log: PathBuf,
    record: PathBuf,
    pid: Pid,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    child: Child,
    status: Option<ExitStatus>,
}

impl Supervised {
    /// Starts `command` and sends its output to `DIR/NAME.log`, at the end of what is there.
    ///
    /// `dir` has to lie in the run's folder, or nobody would clean up after a crash.
    pub fn spawn(name: &str, command: &Command, dir: &Path) -> Result<Self> {
        let run = Run::current()?;
        anyhow::ensure!(
            dir.starts_with(run.dir()),
            "{name}: the folder {} lies outside the run's folder {}",
            dir.display(),
            run.dir().display()
        );
        let processes = dir.join("processes");
        fs::create_dir_all(&processes).with_context(|| format!("making {}", processes.display()))?;
        let log = dir.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;

        let mut shell = Command::new("sh");
        shell.arg("-c").arg(LAUNCH).arg(name).arg(&processes);
        shell.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        if let Some(current) = command.get_current_dir() {
            shell.current_dir(current);
        }
        let child = shell
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).with_context(|| format!("{name} has no pid"))?;
        let record = processes.join(child.id().to_string());
        Ok(Self { name: name.to_owned(), log, record, pid, state: Mutex::new(State { child, status: None }) })
    }
    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The last `lines` lines of its output; empty when there is none.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, lines)
    }

    /// How it ended, or nothing while it runs.
    pub fn exited(&self) -> Option<ExitStatus> {
        let mut state = self.state.lock();
        if state.status.is_none()
            && let Ok(Some(status)) = state.child.try_wait()
        {
            state.status = Some(status);
            // Reaped: the pid may go to a stranger, so it must not stay in the records.
            let _ = fs::remove_file(&self.record);
        }
        state.status
    }

    /// SIGTERM to the process group.
    pub fn term(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGKILL to the process group, then waits until it is gone (which takes milliseconds).
    pub fn kill9(&self) {
        self.signal(Signal::KILL);
        self.wait_blocking(KILL_WAIT);
    }

    /// SIGSTOP: the process holds its connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT: ends [`Self::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for the end, at most `limit`.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {limit:?}; its last output:\n{}", self.name, self.log_tail(20));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGTERM, then after `grace` SIGKILL.
    pub async fn stop(&self, grace: Duration) {
        // A stopped process does not act on SIGTERM.
        self.resume();
        self.term();
        if self.wait(grace).await.is_err() {
            self.kill9();
        }
    }

    /// CPU time that the process used so far, in seconds, user and system, all threads; not that
    /// of its children. An error once the process is gone.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = self.proc_file("stat")?;
        let (_, after_name) = stat.rsplit_once(") ").context("no command name in /proc/PID/stat")?;
        // proc_pid_stat(5): utime is field 14 and stime 15; this list begins with field 3.
        let ticks: u64 = after_name
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u64>)
            .sum::<Result<_, _>>()
            .context("reading CPU ticks in /proc/PID/stat")?;
        #[allow(clippy::cast_precision_loss)] // 2^52 ticks are a million years
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// The largest resident size that the process had, in MiB. An error once the process is gone.
    pub fn rss_peak_mib(&self) -> Result<f64> {
        self.status_mib("VmHWM")
    }

    /// The resident size of the process now, in MiB. An error once the process is gone.
    pub fn rss_mib(&self) -> Result<f64> {
        self.status_mib("VmRSS")
    }

    /// How many file descriptors the process has open. An error once the process is gone.
    pub fn open_files(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.pid());
        Ok(fs::read_dir(&path).with_context(|| format!("reading {path} of {}", self.name))?.count())
    }

    fn status_mib(&self, field: &str) -> Result<f64> {
        let status = self.proc_file("status")?;
        let kib: f64 = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|rest| rest.split_ascii_whitespace().next())
            .with_context(|| format!("no {field} in /proc/PID/status"))?
            .parse()
            .with_context(|| format!("reading {field} in /proc/PID/status"))?;
        Ok(kib / 1024.0)
    }

    fn proc_file(&self, file: &str) -> Result<String> {
        if let Some(status) = self.exited() {
            return Err(anyhow!("{} has ended ({status})", self.name));
        }
        let path = format!("/proc/{}/{file}", self.pid());
        fs::read_to_string(&path).with_context(|| format!("reading {path} of {}", self.name))
    }

    fn signal(&self, signal: Signal) {
        // Under the lock, and only while unreaped: afterwards the pid may be a stranger's.
        let state = self.state.lock();
        if state.status.is_none() {
            let _ = kill_process_group(self.pid, signal);
        }
    }

    fn wait_blocking(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.exited().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

/// The kernel needs milliseconds to end a process; a minute means that it hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_mins(1);

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.exited().is_some() {
            return;
        }
        self.resume();
        self.term();
        if !self.wait_blocking(DROP_GRACE) {
            self.kill9();
        }
    }
}

/// The last `lines` lines of a file, or an empty text.
pub(crate) fn log_tail(path: &Path, lines: usize) -> String {
    // Logs here are some MiB at most; a test that fails can afford to read one whole.
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
