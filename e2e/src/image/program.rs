//! The image of one of our services: its program, the certificate authorities of the world, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::ImageArchive;

/// Nobody in particular, as distroless images have it: pod security asks for a number that is not root's.
const USER: &str = "65532:65532";

/// Where the TLS library looks for certificate authorities, and so do most exec plugins.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// The loader's name stands right behind the headers; the same bytes further on are messages.
const ELF_HEADERS_MAX: usize = 4096;

/// A program to be put into an image of its own.
pub struct Program {
    /// The file. One that is linked statically is all that is needed; of another the libraries are taken along.
    pub file: PathBuf,
    /// Full name of the image, such as `example.test/virtual-node:0.1.0`.
    pub image: String,
    /// The service's name; the program is `/NAME` in the image.
    pub name: String,
    /// The service's version, for the image's labels.
    pub version: String,
}

impl Program {
    /// Writes the image's archive and gives its digest.
    pub fn pack(&self, output: &Path) -> Result<String> {
        let content = fs::read(&self.file).with_context(|| format!("reading the program {}", self.file.display()))?;
        let authorities = Path::new("/").join(AUTHORITIES);
        let authorities = fs::read(&authorities).with_context(|| {
            format!(
                "reading {}: install the package ca-certificates, its bundle goes into the image",
                authorities.display()
            )
        })?;
        let mut image = ImageArchive::new(&self.image);
        image
            .file(&self.name, 0o755, &content)?
            .file(AUTHORITIES, 0o644, &authorities)?
            // So that an exec plugin which asks who it is gets an answer.
            .file("etc/passwd", 0o644, b"nonroot:x:65532:65532::/:/nonexistent\n")?
            .file("etc/group", 0o644, b"nonroot:x:65532:\n")?;
        if !is_static(&content) {
            for library in libraries(&self.file)? {
                let bytes = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
                image.file(&library.to_string_lossy()[1..], 0o755, &bytes)?;
            }
        }
        image
            .user(USER)
            .entrypoint(&[&format!("/{}", self.name)])
            // Where a volume would bring the program of an exec plugin.
            .environment("PATH=/usr/local/bin:/usr/bin:/bin")
            .label("org.opencontainers.image.title", &self.name)
            .label("org.opencontainers.image.version", &self.version)
            .label("org.opencontainers.image.licenses", "Apache-2.0");
        image.write(output)
    }
}

/// Whether a program runs where there is nothing else.
pub fn is_static(program: &[u8]) -> bool {
    // A program that needs a loader names it: /lib64/ld-linux-x86-64.so.2, /lib/ld-musl-x86_64.so.1.
    let loaders = [b"/ld-linux".as_slice(), b"/ld-musl"];
    !loaders.iter().any(|loader| program.windows(loader.len()).take(ELF_HEADERS_MAX).any(|window| window == *loader))
}

/// The loader and the libraries of a dynamically linked program, where the loader will look for them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || text.contains("not found") {
        bail!(
            "ldd {} does not find its libraries: {text}{}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, and the loader alone: `/lib64/ld-linux-x86-64.so.2 (0x...)`.
    Ok(text.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_image_holds_the_program_what_it_is_linked_with_and_no_shell() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        let file = PathBuf::from("/bin/true");
        let program = Program {
            file: file.clone(),
            image: "example.test/true:1".to_owned(),
            name: "true".to_owned(),
            version: "1".to_owned(),
        };
        program.pack(&archive).unwrap();

        let mut found = BTreeSet::new();
        for blob in tar::Archive::new(fs::File::open(&archive).unwrap()).entries().unwrap() {
            // The layer is an archive itself; the other blobs are JSON.
            let mut layer = tar::Archive::new(blob.unwrap());
            let names = layer.entries().unwrap().map_while(Result::ok).map(|entry| entry.path().unwrap().into_owned());
            found.extend(names);
        }
        let mut wanted: BTreeSet<PathBuf> = ["true", AUTHORITIES, "etc/passwd", "etc/group"].map(PathBuf::from).into();
        if !is_static(&fs::read(&file).unwrap()) {
            wanted.extend(libraries(&file).unwrap().iter().map(|path| path.strip_prefix("/").unwrap().to_owned()));
            assert!(wanted.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{wanted:?}");
        }
        assert_eq!(found, wanted);
    }
}
