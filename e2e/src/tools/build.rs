//! Building a tool with Go, into a cache that test processes share.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::Tool;
use crate::process::Supervised;
use crate::run::Run;

/// How often a progress line is written.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// How often the build is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Flags that decide the result, and so are part of the cache's key.
const BUILD_FLAGS: [&str; 3] = ["build", "-trimpath", "-buildvcs=false"];

/// The cached binary, built first when there is none.
pub(super) fn cached_or_built(tool: Tool) -> Result<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(tool.module());
    let linker_flags = linker_flags(tool, &module)?;
    let dir = cache_dir()?.join(format!("{}-{}", tool.module(), key(&module, &linker_flags)?));
    let binary = dir.join(tool.binary());
    if binary.is_file() {
        return Ok(binary);
    }
    fs::create_dir_all(&dir).with_context(|| format!("making the cache folder {}", dir.display()))?;

    // One builder at a time for each module: Go builds in parallel by itself, and two processes
    // would compile the same packages twice.
    let lock = File::create(dir.join(LOCK)).context("making the build's lock file")?;
    if lock.try_lock().is_err() {
        eprintln!("tensile-e2e: another process builds {}; waiting for it", tool.module());
        lock.lock().context("waiting for another process's build")?;
    }
    if binary.is_file() {
        return Ok(binary);
    }

    remove_unfinished(&dir);
    // Built beside its place and renamed: a build cut short leaves no half of a binary there.
    let unfinished = dir.join(format!(".{}.{}", tool.binary(), std::process::id()));
    let result = run_go(tool, &module, &linker_flags, &unfinished);
    if result.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    result?;
    fs::rename(&unfinished, &binary).with_context(|| format!("moving {} into the cache", tool.binary()))?;
    Ok(binary)
}

fn run_go(tool: Tool, module: &Path, linker_flags: &str, output: &Path) -> Result<()> {
    let name = tool.binary();
    let started = Instant::now();
    let mut command = Command::new("go");
    command
        .args(BUILD_FLAGS)
        .arg(format!("-ldflags={linker_flags}"))
        .arg("-o")
        .arg(output)
        .arg(tool.package())
        .current_dir(module)
        .env("CGO_ENABLED", "0");
    // Supervised: a compiler, too, must not outlive the test that was killed.
    let dir = Run::current()?.new_dir(&format!("build-{name}"))?;
    let go = Supervised::spawn("go", &command, &dir)?;
    let mut next_line = Instant::now();
    let status = loop {
        if let Some(status) = go.exited() {
            break status;
        }
        if Instant::now() >= next_line {
            eprintln!(
                "tensile-e2e: building {name} ... {} s (about {} s on 2 cores when nothing is cached)",
                started.elapsed().as_secs(),
                tool.build_seconds_expected()
            );
            next_line += PROGRESS_INTERVAL;
        }
        std::thread::sleep(POLL);
    };
    if !status.success() {
        bail!(
            "`go build {}` in {} failed ({status}; Go 1.26 or newer must be in PATH, or KUBEBUILDER_ASSETS must name a \
             folder with the tools):\n{}",
            tool.package(),
            module.display(),
            go.log_tail(LOG_LINES_MAX)
        );
    }
    eprintln!("tensile-e2e: built {name} in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Enough of a failed build's output to see the first error.
const LOG_LINES_MAX: usize = 60;

/// What builds that were cut short left. Called under the lock, so nobody is at it.
fn remove_unfinished(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name != LOCK {
            let _ = fs::remove_file(entry.path());
        }
    }
}

const LOCK: &str = ".lock";

/// Symbols are left out (they are half of the size). Kubernetes reports v0.0.0 unless its version
/// is linked in, and clients compare versions.
fn linker_flags(tool: Tool, module: &Path) -> Result<String> {
    let mut flags = String::from("-s -w");
    if tool.package().starts_with("k8s.io/kubernetes/") {
        let version = kubernetes_version(module)?;
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        for (key, value) in [("gitVersion", version.as_str()), ("gitMajor", major), ("gitMinor", minor)] {
            write!(flags, " -X k8s.io/component-base/version.{key}={value}").context("writing flags")?;
        }
    }
    Ok(flags)
}

fn kubernetes_version(module: &Path) -> Result<String> {
    let path = module.join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .find_map(|line| line.trim().trim_start_matches("require ").strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .map(str::to_owned)
        .with_context(|| format!("{} does not require k8s.io/kubernetes", path.display()))
}

fn key(module: &Path, linker_flags: &str) -> Result<String> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = module.join(file);
        hash.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    // A main package of ours, where there is one.
    if let Ok(main) = fs::read(module.join("main.go")) {
        hash.update(main);
    }
    hash.update(linker_flags);
    hash.update(std::env::consts::ARCH);
    // 12 hex digits: a few versions live here, and a person may want to read the name.
    Ok(hex::encode(&hash.finalize()[..6]))
}

/// The folder for things that are costly to make, shared by all checkouts of this user.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(
            std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set: no place for built tools")?,
        )
        .join(".cache"),
    };
    Ok(base.join("tensile").join("tools"))
}
