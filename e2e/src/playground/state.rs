//! One playground at a time, and what another terminal must know to remove it.
//!
//! The folder `tensile/playground` in `XDG_STATE_HOME`, else `XDG_RUNTIME_DIR`, else the temporary folder, holds a lock
//! for as long as a playground is up, its record, and kubeconfigs with short paths. Processes need no record here: the
//! testbed's own (see [`crate::run`]) serves for them.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::eventually::{Seen, eventually};
use crate::run::base_dir;
use crate::testbed::write_private;

/// Stopping three clusters takes seconds; removing things from clusters that do not answer has limits of its own.
const END_DEADLINE: Duration = Duration::from_mins(3);

/// What was made in clusters of the user's, to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The process that brought it up.
    pid: u32,
    /// Objects, in the order in which they were made.
    pub made: Vec<Made>,
    /// Names of virtual nodes in the upper cluster.
    pub nodes: Vec<NodeMade>,
}

/// An object that the playground made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Made {
    pub kubeconfig: PathBuf,
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
}

/// A virtual node that the playground made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeMade {
    pub name: String,
    pub upper_kubeconfig: PathBuf,
    pub lower_kubeconfig: PathBuf,
}

/// The folder, locked by this process.
pub(super) struct State {
    dir: PathBuf,
    record: Mutex<Record>,
    _lock: File,
}

impl State {
    /// Takes the folder for a new playground; an error when one is up, or left something in the user's clusters.
    pub(super) fn claim() -> Result<Self> {
        let dir = folder()?;
        let Some(lock) = try_lock(&dir)? else {
            bail!("a playground is up already (process {}); `playground down` removes it", read(&dir)?.pid);
        };
        let left = read(&dir)?;
        if !left.made.is_empty() || !left.nodes.is_empty() {
            bail!(
                "the last playground ended before it could remove what it made in your clusters: run `playground down`"
            );
        }
        let record = Record { pid: std::process::id(), ..Record::default() };
        let state = Self { dir, record: Mutex::new(record), _lock: lock };
        state.note(|_| {})?;
        Ok(state)
    }

    /// Ends the process of a playground that is up, and takes its folder; nothing if there is none.
    pub(super) async fn take_over() -> Result<Option<Self>> {
        let dir = folder()?;
        if !dir.exists() {
            return Ok(None);
        }
        let lock = if let Some(lock) = try_lock(&dir)? {
            lock
        } else {
            // The lock is held, so the record's process lives and its pid is its own.
            let pid = read(&dir)?.pid;
            let process = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the record has no pid")?;
            println!("ending the playground (process {pid})");
            kill_process(process, Signal::TERM).with_context(|| format!("ending process {pid}"))?;
            let what = format!("process {pid} has removed everything");
            eventually(&what, END_DEADLINE, || async {
                Ok(try_lock(&dir)?.map_or_else(|| Seen::NotYet("it runs".to_owned()), Seen::Done))
            })
            .await?
        };
        let record = read(&dir)?;
        Ok(Some(Self { dir, record: Mutex::new(record), _lock: lock }))
    }

    /// The folder, for kubeconfigs.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// Changes the record, on disk too. To be called before something is made, so that no crash leaves it unrecorded.
    pub(super) fn note(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.lock();
        change(&mut record);
        write_private(&self.dir.join(RECORD), &serde_json::to_string_pretty(&*record)?)
    }

    /// Removes the folder.
    pub(super) fn remove(self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

const RECORD: &str = "record.json";

fn folder() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // The temporary folder is everybody's, so there it is our own one in it.
    let base = set("XDG_STATE_HOME").or_else(|| set("XDG_RUNTIME_DIR")).map_or_else(base_dir, Ok)?;
    Ok(base.join("tensile").join("playground"))
}

/// The lock of the folder, which is made when it is missing; nothing if another process holds it.
fn try_lock(dir: &Path) -> Result<Option<File>> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("making {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    Ok(file.try_lock().is_ok().then_some(file))
}

fn read(dir: &Path) -> Result<Record> {
    let path = dir.join(RECORD);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Record::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}
