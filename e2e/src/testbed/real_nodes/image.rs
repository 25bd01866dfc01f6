//! Container images from nothing: there is no registry, so archives are written by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{PAUSE_IMAGE, SHELL_IMAGE, find_program};

/// An image under construction: one layer, written as an archive that `ctr images import` takes.
pub struct ImageArchive {
    name: String,
    layer: tar::Builder<Vec<u8>>,
    environment: Vec<String>,
    entrypoint: Vec<String>,
    command: Vec<String>,
}

impl ImageArchive {
    /// An empty image of this full name, such as `tensile.test/shell:1`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            layer: tar::Builder::new(Vec::new()),
            environment: vec!["PATH=/bin".to_owned()],
            entrypoint: Vec::new(),
            command: Vec::new(),
        }
    }

    /// Adds a folder, mode in octal such as `0o1777`. Path without a leading slash, as in all of these.
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<&mut Self> {
        self.entry(tar::EntryType::Directory, mode, 0, |layer, header| {
            layer.append_data(header, path, std::io::empty())
        })
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<&mut Self> {
        let size = content.len() as u64;
        self.entry(tar::EntryType::Regular, mode, size, |layer, header| layer.append_data(header, path, content))
    }

    /// Adds a symbolic link at `path` to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> Result<&mut Self> {
        self.entry(tar::EntryType::Symlink, 0o777, 0, |layer, header| layer.append_link(header, path, target))
    }

    /// Adds an environment variable, as `NAME=VALUE`.
    pub fn environment(&mut self, pair: &str) -> &mut Self {
        self.environment.push(pair.to_owned());
        self
    }

    /// The program that runs, with its first arguments.
    pub fn entrypoint(&mut self, arguments: &[&str]) -> &mut Self {
        self.entrypoint = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// The arguments that a pod's `args` replace.
    pub fn command(&mut self, arguments: &[&str]) -> &mut Self {
        self.command = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// Writes the archive (Docker's format: a configuration, a layer, a manifest).
    pub fn write(self, path: &Path) -> Result<()> {
        let layer = self.layer.into_inner().context("closing the image's layer")?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": self.environment, "Entrypoint": self.entrypoint, "Cmd": self.command},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(&layer)))]},
        })
        .to_string();
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]).to_string();
        let file = fs::File::create(path).with_context(|| format!("writing the image {}", path.display()))?;
        let mut archive = tar::Builder::new(file);
        for (name, content) in
            [("config.json", config.as_bytes()), ("layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
        {
            let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
            archive.append_data(&mut header, name, content).with_context(|| format!("writing {name}"))?;
        }
        archive.finish().context("closing the image archive")
    }

    fn entry(
        &mut self,
        kind: tar::EntryType,
        mode: u32,
        size: u64,
        append: impl FnOnce(&mut tar::Builder<Vec<u8>>, &mut tar::Header) -> std::io::Result<()>,
    ) -> Result<&mut Self> {
        append(&mut self.layer, &mut header(kind, mode, size)).context("adding to an image's layer")?;
        Ok(self)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

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
    // A program that needs a loader names it: /lib64/ld-linux-x86-64.so.2, /lib/ld-musl-x86_64.so.1.
    let dynamic = [b"/ld-linux".as_slice(), b"/ld-musl"]
        .iter()
        .any(|loader| content.windows(loader.len()).take(ELF_HEADERS_MAX).any(|window| window == *loader));
    ensure!(!dynamic, "{} is linked dynamically: install the package busybox-static", path.display());
    Ok(path)
}

/// The loader's name stands right behind the headers; the same bytes further on are messages.
const ELF_HEADERS_MAX: usize = 4096;
