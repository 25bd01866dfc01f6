//! A program of the control plane that can be ended and started again with the same arguments.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::Mutex;

use crate::process::{Supervised, log_tail};

#[derive(Debug)]
pub(super) struct Component {
    name: &'static str,
    command: Command,
    dir: PathBuf,
    process: Mutex<Option<Arc<Supervised>>>,
}

impl Component {
    pub(super) fn new(name: &'static str, command: Command, dir: &Path) -> Self {
        Self { name, command, dir: dir.to_owned(), process: Mutex::new(None) }
    }

    /// Starts it, unless it runs.
    pub(super) fn start(&self) -> Result<()> {
        let mut process = self.process.lock();
        if process.as_ref().is_none_or(|process| process.exited().is_some()) {
            *process = Some(Arc::new(Supervised::spawn(self.name, &self.command, &self.dir)?));
        }
        Ok(())
    }

    pub(super) fn process(&self) -> Option<Arc<Supervised>> {
        self.process.lock().clone()
    }

    /// An error with its last output when it was started and has ended.
    pub(super) fn ensure_running(&self) -> Result<()> {
        if let Some(process) = self.process()
            && let Some(status) = process.exited()
        {
            bail!("{} has ended ({status}); its last output:\n{}", self.name, process.log_tail(20));
        }
        Ok(())
    }

    pub(super) fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.dir.join(format!("{}.log", self.name)), lines)
    }

    pub(super) fn kill9(&self) {
        if let Some(process) = self.process.lock().take() {
            process.kill9();
        }
    }

    pub(super) fn pause(&self) {
        if let Some(process) = self.process() {
            process.pause();
        }
    }

    pub(super) fn resume(&self) {
        if let Some(process) = self.process() {
            process.resume();
        }
    }

    pub(super) fn term(&self) {
        if let Some(process) = self.process() {
            process.resume();
            process.term();
        }
    }

    pub(super) async fn stop(&self, grace: Duration) {
        let process = self.process.lock().take();
        if let Some(process) = process {
            process.stop(grace).await;
        }
    }

    /// Lets go of the process, which ends it unless somebody else holds it.
    pub(super) fn forget(&self) {
        drop(self.process.lock().take());
    }
}
