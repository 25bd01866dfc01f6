//! The programs that real clusters are made of: found on this machine, or built from source.
//!
//! Looked for in `KUBEBUILDER_ASSETS`, then in `PATH`, and taken only when their version fits. Else
//! the Go tools modules under `e2e/tools` build them into
//! `${XDG_CACHE_HOME:-$HOME/.cache}/tensile/tools/MODULE-HASH/`, where the hash covers everything
//! that decides the result, so that a new version never meets an old binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result};

mod build;
mod catalog;

pub use catalog::Tool;

/// Finds tools, and builds what is missing, once each.
#[derive(Debug, Default)]
pub struct Tools {
    found: Mutex<std::collections::HashMap<Tool, PathBuf>>,
}

impl Tools {
    /// The tools of this process. Nothing is looked up yet.
    pub fn shared() -> &'static Self {
        static TOOLS: std::sync::LazyLock<Tools> = std::sync::LazyLock::new(Tools::default);
        &TOOLS
    }

    /// Where `tool` lies; builds it when this machine has none of a fitting version.
    ///
    /// Blocks, for minutes when Kubernetes must be built: progress lines go to standard error.
    pub fn locate_or_build(&self, tool: Tool) -> Result<PathBuf> {
        // Held over the build, too: a second caller wants the same result.
        let mut found = self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(path) = found.get(&tool) {
            return Ok(path.clone());
        }
        let path = match installed(tool) {
            Some(path) => path,
            None => build::cached_or_built(tool)
                .with_context(|| format!("no {} on this machine fits, and building it failed", tool.binary()))?,
        };
        found.insert(tool, path.clone());
        Ok(path)
    }

    /// [`Self::locate_or_build`] for async callers: runs on a thread where it may block.
    pub async fn get(tool: Tool) -> Result<PathBuf> {
        tokio::task::spawn_blocking(move || Self::shared().locate_or_build(tool)).await?
    }
}

/// The first program of a fitting version in `KUBEBUILDER_ASSETS` and `PATH`.
fn installed(tool: Tool) -> Option<PathBuf> {
    let mut asked = std::collections::HashSet::new();
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(tool.binary()))
        .filter(|candidate| candidate.is_file())
        // On many systems /bin and /usr/bin are one folder: ask, and complain, once.
        .filter(|candidate| asked.insert(candidate.canonicalize().ok()))
        .find(|candidate| fits(tool, candidate))
}

fn fits(tool: Tool, program: &Path) -> bool {
    let Ok(output) = Command::new(program).args(tool.version_arguments()).output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let fits = tool.accepts_version(&text);
    if !fits {
        eprintln!(
            "tensile-e2e: not using {}: wanted version {}, it says: {}",
            program.display(),
            tool.version_wanted(),
            text.lines().next().unwrap_or("nothing")
        );
    }
    fits
}
