//! The images that every real node has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{PAUSE_IMAGE, SHELL_IMAGE, find_program};
use crate::image::{ImageArchive, is_static};

/// Writes the pause and the shell image into `dir` and gives the archives' paths.
///
/// Both are busybox, so that no compiler is needed. The pause container holds a pod's namespaces and
/// takes over orphans; `wait` in its loop collects them.
pub(super) fn write_base_images(dir: &Path) -> Result<[PathBuf; 2]> {
    let busybox_path = static_busybox()?;
    let busybox = fs::read(&busybox_path).with_context(|| format!("reading {}", busybox_path.display()))?;

    let pause_path = dir.join("pause.tar");
    let mut pause = ImageArchive::new(PAUSE_IMAGE);
    pause.folder("bin", 0o755)?.file("bin/sh", 0o755, &busybox)?.link("bin/sleep", "sh")?;
    pause.entrypoint(&["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 2147483647 & wait $!; done"]);
    pause.write(&pause_path)?;

    let shell_path = dir.join("shell.tar");
    let mut shell = ImageArchive::new(SHELL_IMAGE);
    shell.folder("bin", 0o755)?.file("bin/busybox", 0o755, &busybox)?;
    let listing = Command::new(&busybox_path).arg("--list").output().context("listing busybox's applets")?;
    for applet in String::from_utf8_lossy(&listing.stdout).lines().filter(|applet| *applet != "busybox") {
        shell.link(&format!("bin/{applet}"), "busybox")?;
    }
    shell
        .folder("etc", 0o755)?
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")?
        .file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?
        .folder("tmp", 0o1777)?
        .folder("var", 0o755)?
        .folder("root", 0o700)?
        .command(&["sh"]);
    shell.write(&shell_path)?;
    Ok([pause_path, shell_path])
}

/// A busybox that runs where there is nothing else.
pub(super) fn static_busybox() -> Result<PathBuf> {
    let path = find_program("busybox").context("real nodes need busybox for their images: install busybox-static")?;
    let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(is_static(&content), "{} is linked dynamically: install the package busybox-static", path.display());
    Ok(path)
}
