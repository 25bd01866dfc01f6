//! Files as a kubelet mounts them, and a credential plugin.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

/// A mounted Secret: its files are links through `..data`, which is swapped whole.
pub struct Mounted {
    dir: PathBuf,
    version: AtomicUsize,
}

impl Mounted {
    pub fn new(dir: PathBuf, files: &[(&str, &str)]) -> Self {
        fs::create_dir_all(&dir).unwrap();
        for (name, _) in files {
            symlink(Path::new("..data").join(name), dir.join(name)).unwrap();
        }
        let mounted = Self { dir, version: AtomicUsize::new(0) };
        mounted.replace(files);
        mounted
    }

    /// All files at once, as a kubelet does it.
    pub fn replace(&self, files: &[(&str, &str)]) {
        let version = format!("..version-{}", self.version.fetch_add(1, Ordering::Relaxed));
        let dir = self.dir.join(&version);
        fs::create_dir(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        let fresh = self.dir.join("..data_tmp");
        symlink(version, &fresh).unwrap();
        fs::rename(&fresh, self.dir.join("..data")).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A credential plugin that gives what it is told to give, and notes that it was run.
pub struct Plugin {
    dir: PathBuf,
}

const VERSION: &str = "client.authentication.k8s.io/v1";

impl Plugin {
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let script = r#"#!/bin/sh
dir=$(dirname "$0")
# It is told which cluster it is for.
case $KUBERNETES_EXEC_INFO in *'"server":"https://'*) ;; *) exit 9 ;; esac
echo run >> "$dir/runs"
cat "$dir/answer"
"#;
        let path = dir.join("plugin");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// What it answers from now on.
    pub fn gives(&self, status: &Value) {
        let answer = json!({"kind": "ExecCredential", "apiVersion": VERSION, "status": status});
        let fresh = self.dir.join("fresh");
        fs::write(&fresh, answer.to_string()).unwrap();
        fs::rename(&fresh, self.dir.join("answer")).unwrap();
    }

    /// The user's section of a kubeconfig.
    pub fn user(&self) -> Value {
        json!({"exec": {"apiVersion": VERSION, "command": self.dir.join("plugin"), "interactiveMode": "IfAvailable",
            "provideClusterInfo": true}})
    }

    pub fn runs(&self) -> usize {
        fs::read_to_string(self.dir.join("runs")).unwrap_or_default().lines().count()
    }
}
