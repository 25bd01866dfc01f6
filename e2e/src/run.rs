//! One process's run: its folder, and the promise that nothing outlives the process.
//!
//! Everything that the testbed starts is written down in the run's folder (`processes/PID`,
//! `netns/NAME`, `bridges/NAME`, `cgroups/NAME`). Three parties act on these records:
//! the owner, when a cluster is stopped or dropped; a *watchdog* shell, when the owner dies in any
//! way, `kill -9` and Ctrl-C included; and a later run, when owner and watchdog were both killed.
//! All three run the same script, `run/cleanup.sh`.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

const CLEANUP: &str = include_str!("run/cleanup.sh");
/// Waits until its standard input ends, which is when the process that holds the other end is gone,
/// however it died; then removes all that it left.
const WATCHDOG: &str = "while read -r _; do :; done; exec sh -c \"$2\" cleanup.sh \"$1\"";
pub(crate) const LAUNCH: &str = include_str!("run/launch.sh");

/// Set to a non-empty value, the run's log files are kept, in `kept-logs` beside `runs`. They are kept
/// without it, too, once a thread of the process has panicked: a test has failed, and somebody will ask why.
pub const KEEP_LOGS_ENV: &str = "TENSILE_KEEP_LOGS";

/// Seconds after which the process ends itself, with its logs kept: a test that hangs is a failure, not a run without an
/// end.
pub const LIMIT_ENV: &str = "TENSILE_RUN_LIMIT";

/// The file in the run's folder that says so to the clean-up script.
const KEEP_LOGS_MARK: &str = "keep-logs";

/// How long kept logs stay: nobody looks later, and CI machines fill up.
const KEPT_LOGS_AGE_MAX: Duration = Duration::from_hours(7 * 24);

/// The one run of this process.
#[derive(Debug)]
pub struct Run {
    name: String,
    dir: PathBuf,
    /// Locked as long as this process lives: tells a later run that the folder is in use.
    _lock: File,
    /// Its end tells the watchdog that this process is gone.
    _lifeline: ChildStdin,
}

impl Run {
    /// The run of this process; the first call makes its folder, starts the watchdog and removes
    /// what dead runs left.
    pub fn current() -> Result<&'static Self> {
        static RUN: OnceLock<Result<Run, String>> = OnceLock::new();
        RUN.get_or_init(|| Self::begin().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("beginning the test run: {error}"))
    }

    /// A short name that is unique among the runs alive on this machine, fit for network names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run's folder. Anything under it is removed when the run ends.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the log files of this run, because something went wrong that its maker may ask about.
    pub fn keep_logs(&self) {
        keep_logs(&self.dir);
    }

    /// Makes a new empty folder `NAME` in the run's folder, or `NAME-2` and so on when it exists.
    pub fn new_dir(&self, name: &str) -> Result<PathBuf> {
        for number in 1..=MAX_SAME_NAME {
            let dir = if number == 1 { self.dir.join(name) } else { self.dir.join(format!("{name}-{number}")) };
            match fs::create_dir(&dir) {
                Ok(()) => return Ok(dir),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context(format!("making {}", dir.display())),
            }
        }
        Err(anyhow!("{MAX_SAME_NAME} clusters named {name} were started in this process; stop some"))
    }

    fn begin() -> Result<Self> {
        let runs = base_dir()?.join("runs");
        private_dir(&runs)?;
        // One run begins at a time, or another's sweep could take our folder for a dead one before
        // we have locked it.
        let beginning =
            File::create(base_dir()?.join("beginning.lock")).context("making the lock of beginning runs")?;
        beginning.lock().context("waiting for another run to begin")?;
        sweep(&runs);
        remove_old_logs(&base_dir()?.join("kept-logs"));

        // Six hex digits: network interface names hold at most 15 characters, and ours add a suffix.
        let name = format!("{:06x}", rand::random::<u32>() & 0xff_ffff);
        let dir = runs.join(&name);
        private_dir(&dir)?;
        let lock = File::create(dir.join("lock")).context("making the run's lock file")?;
        lock.try_lock().context("locking the run's folder")?;

        let mut child = Command::new("sh")
            .arg("-c")
            .arg(WATCHDOG)
            .arg("tensile-e2e-watchdog")
            .arg(&dir)
            .arg(CLEANUP)
            .current_dir("/")
            // Its own group, or the terminal's Ctrl-C would end it together with us.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the watchdog shell")?;
        keep_logs_after_a_panic(dir.clone());
        end_at_the_limit(dir.clone());
        let lifeline = child.stdin.take().context("the watchdog has no standard input")?;
        Ok(Self { name, dir, _lock: lock, _lifeline: lifeline })
    }
}

fn end_at_the_limit(dir: PathBuf) {
    let limit = std::env::var(LIMIT_ENV).ok().and_then(|limit| limit.parse().ok()).map(Duration::from_secs);
    let Some(limit) = limit else { return };
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        keep_logs(&dir);
        eprintln!("tensile-e2e: not done within {} s, the limit of {LIMIT_ENV}: something hangs", limit.as_secs());
        // The watchdog takes away what we leave.
        std::process::exit(1);
    });
}

/// More clusters of one name in one process are a leak in the test.
const MAX_SAME_NAME: usize = 1000;

/// Stops and removes everything recorded under `dir`, which lies in a run's folder.
pub(crate) fn cleanup(dir: &Path) -> Result<()> {
    let keep_logs = Run::current()?.dir().join(KEEP_LOGS_MARK).exists();
    run_script(dir, keep_logs)
}

fn run_script(dir: &Path, keep_logs: bool) -> Result<()> {
    let mut shell = Command::new("sh");
    if keep_logs {
        shell.env(KEEP_LOGS_ENV, "1");
    }
    let output = shell
        .arg("-c")
        .arg(CLEANUP)
        .arg("cleanup.sh")
        .arg(dir)
        .current_dir("/")
        .output()
        .context("running the clean-up script")?;
    if output.status.success() {
        Ok(())
    } else {
        Err(anyhow!("cleaning {}: {}", dir.display(), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// The folder that all runs of this user share: claims, run folders, scripts.
pub(crate) fn base_dir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("tensile-e2e-{}", rustix::process::getuid().as_raw()));
    private_dir(&dir)?;
    Ok(dir)
}

/// Keys lie in these folders, and the temporary folder is everybody's.
fn private_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("making {}", dir.display()))?;
    let mode = fs::metadata(dir)?.permissions().mode() & 0o777;
    anyhow::ensure!(
        mode == 0o700,
        "{} has mode {mode:o}, wanted 700: somebody else may own it; remove it or set TMPDIR",
        dir.display()
    );
    Ok(())
}

fn keep_logs_after_a_panic(dir: PathBuf) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        keep_logs(&dir);
        before(panic);
    }));
}

/// Lets the run's logs outlive it, and says once where they will be.
fn keep_logs(dir: &Path) {
    let mark = dir.join(KEEP_LOGS_MARK);
    if !mark.exists() && fs::write(&mark, "").is_ok() {
        eprintln!(
            "tensile-e2e: something failed; the clusters' logs will be kept as {}",
            dir.display().to_string().replace("/runs/", "/kept-logs/")
        );
    }
}

fn remove_old_logs(kept: &Path) {
    let Ok(entries) = fs::read_dir(kept) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > KEPT_LOGS_AGE_MAX) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Removes the folders of runs whose owner is gone and whose watchdog did not do it.
fn sweep(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else { return };
    for dir in entries.flatten().map(|entry| entry.path()) {
        // Without a lock file it is no run that lives: those are made under the lock that we hold.
        let dead = File::open(dir.join("lock")).map_or(true, |lock| lock.try_lock().is_ok());
        if dead && let Err(error) = run_script(&dir, false) {
            eprintln!("tensile-e2e: what a dead run left could not be removed: {error:#}");
        }
    }
}
