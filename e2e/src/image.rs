//! Container images from nothing: there is no registry and no builder here, so archives are written by hand.
//!
//! An archive is an OCI image layout, with the manifest that `docker load` reads beside it: containerd, docker, podman,
//! skopeo and crane all take it. Nothing in it tells the time, so the same content gives the same bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

mod program;

pub use program::{Program, is_static};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image under construction: one layer, written as an archive that `ctr images import` takes.
pub struct ImageArchive {
    name: String,
    layer: tar::Builder<Vec<u8>>,
    environment: Vec<String>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    user: String,
    labels: serde_json::Map<String, Value>,
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
            user: String::new(),
            labels: serde_json::Map::new(),
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

    /// Sets an environment variable, as `NAME=VALUE`. `PATH` is `/bin` unless it is set.
    pub fn environment(&mut self, pair: &str) -> &mut Self {
        let name = pair.split_inclusive('=').next().unwrap_or(pair).to_owned();
        self.environment.retain(|other| !other.starts_with(&name));
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

    /// Who runs the program, as `UID:GID`; root unless it is set.
    pub fn user(&mut self, user: &str) -> &mut Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Adds a label of the image, such as `org.opencontainers.image.version`.
    pub fn label(&mut self, name: &str, value: &str) -> &mut Self {
        self.labels.insert(name.to_owned(), value.into());
        self
    }

    /// Writes the archive, and gives the image's digest.
    pub fn write(self, path: &Path) -> Result<String> {
        let layer = Blob::new(LAYER_TYPE, self.layer.into_inner().context("closing the image's layer")?);
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Env": self.environment, "Entrypoint": self.entrypoint, "Cmd": self.command,
                "User": self.user, "Labels": self.labels, "WorkingDir": "/",
            },
            // Not compressed, so that this is the layer's digest too.
            "rootfs": {"type": "layers", "diff_ids": [&layer.digest]},
        });
        let config = Blob::new(CONFIG_TYPE, config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(), "layers": [layer.descriptor()],
        });
        let manifest = Blob::new(MANIFEST_TYPE, manifest.to_string().into_bytes());

        let mut listed = manifest.descriptor();
        listed["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
        });
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string();
        let for_docker =
            json!([{"Config": config.path(), "RepoTags": [self.name], "Layers": [layer.path()]}]).to_string();
        let file = fs::File::create(path).with_context(|| format!("writing the image {}", path.display()))?;
        let mut archive = tar::Builder::new(file);
        let blobs = [&config, &layer, &manifest].map(|blob| (blob.path(), blob.content.as_slice()));
        let texts = [
            ("oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#),
            ("index.json", index.as_str()),
            ("manifest.json", for_docker.as_str()),
        ];
        let texts = texts.map(|(name, text)| (name.to_owned(), text.as_bytes()));
        for (name, content) in blobs.into_iter().chain(texts) {
            let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
            archive.append_data(&mut header, &name, content).with_context(|| format!("writing {name}"))?;
        }
        archive.finish().context("closing the image archive")?;
        Ok(manifest.digest)
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

/// A part of an image, which others name by its digest.
struct Blob {
    kind: &'static str,
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(kind: &'static str, content: Vec<u8>) -> Self {
        Self { kind, digest: format!("sha256:{}", hex::encode(Sha256::digest(&content))), content }
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.digest, "size": self.content.len()})
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_same_content_gives_the_same_bytes_and_every_blob_is_where_its_digest_says() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let mut image = ImageArchive::new("example.test/app:1");
            image.folder("etc", 0o755).unwrap().file("etc/motd", 0o644, b"hello").unwrap();
            image.user("65532:65532").label("a", "b").environment("PATH=/usr/bin");
            let path = dir.path().join(name);
            (image.write(&path).unwrap(), fs::read(path).unwrap())
        };
        let (digest, bytes) = write("a.tar");
        assert_eq!((&digest, &bytes), (&write("b.tar").0, &write("c.tar").1));

        let mut files = std::collections::HashMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        for (path, content) in files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
            assert_eq!(*path, format!("blobs/sha256/{}", hex::encode(Sha256::digest(content))));
        }
        let read = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        assert_eq!(read("index.json")["manifests"][0]["digest"], digest);
        let config = read(read("manifest.json")[0]["Config"].as_str().unwrap());
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Env"], json!(["PATH=/usr/bin"]));
    }
}
