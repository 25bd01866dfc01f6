//! Reading a kubeconfig, with errors a person can act on.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError},
};

/// Set by the kubelet in every container.
const IN_CLUSTER_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// Why there is no configuration. Each text says which file, what is wrong with it and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error("there is no kubeconfig {}: give the path of an existing file, or mount the Secret that holds it", .0.display())]
    Missing(PathBuf),
    /// The file is there and cannot be read.
    #[error("the kubeconfig {} cannot be read: {source}; check its permissions and that it is a file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds nothing.
    #[error("the kubeconfig {} is empty: was the Secret's key filled in?", .0.display())]
    Empty(PathBuf),
    /// Not YAML, or not of a kubeconfig's shape. The parser's text may quote a token and is not shown.
    #[error("the kubeconfig {} is not the YAML of a kubeconfig{}: compare it with `kubectl config view`", path.display(), place(*.line, *.column))]
    NotYaml {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, from 1; 0 when unknown.
        line: u64,
        /// Column of the mistake, from 1; 0 when unknown.
        column: u64,
    },
    /// The wanted context is not in the file.
    #[error("the kubeconfig {} has no context {wanted:?}; it has: {}", path.display(), list(.known))]
    NoContext {
        /// The file.
        path: PathBuf,
        /// The context asked for.
        wanted: String,
        /// The contexts that are there.
        known: Vec<String>,
    },
    /// No context was asked for and the file names none.
    #[error("the kubeconfig {} has no current-context: set it (`kubectl config use-context`), or name one of: {}", path.display(), list(.known))]
    NoCurrentContext {
        /// The file.
        path: PathBuf,
        /// The contexts that are there.
        known: Vec<String>,
    },
    /// The context refers to a cluster that is not in the file, or has no server.
    #[error("the kubeconfig {} has no usable cluster {cluster:?} for its context {context:?}: add it under `clusters`, with a `server`", path.display())]
    NoCluster {
        /// The file.
        path: PathBuf,
        /// The context in use.
        context: String,
        /// The cluster it names.
        cluster: String,
    },
    /// A file the kubeconfig refers to cannot be read.
    #[error("the kubeconfig {} names a file that cannot be read, {}: {source}", path.display(), referred.display())]
    Reference {
        /// The kubeconfig.
        path: PathBuf,
        /// The file it names.
        referred: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else in it is wrong.
    #[error("the kubeconfig {} cannot be used: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Neither a path, nor `KUBECONFIG`, nor a ServiceAccount.
    #[error("no cluster to talk to: {0}; give a kubeconfig, set KUBECONFIG, or run in a pod with a ServiceAccount")]
    Nowhere(String),
}

/// Finds out which API server to talk to and as whom.
///
/// With a path, that kubeconfig. Without: `KUBECONFIG` when set, else the pod's ServiceAccount when in a cluster, else
/// `~/.kube/config`. `context` picks a context other than the current one (and so never means the ServiceAccount).
pub async fn load_config(path: Option<&Path>, context: Option<&str>) -> Result<Config, ConfigError> {
    if let Some(path) = path {
        return from_file(path, context).await;
    }
    if env::var_os("KUBECONFIG").is_none() && env::var_os(IN_CLUSTER_VARIABLE).is_some() && context.is_none() {
        return Config::incluster().map_err(|error| ConfigError::Nowhere(error.to_string()));
    }
    let path = default_path();
    let kubeconfig = match Kubeconfig::read() {
        Ok(kubeconfig) => kubeconfig,
        Err(KubeconfigError::ReadConfig(source, _)) if source.kind() == io::ErrorKind::NotFound => {
            return Err(ConfigError::Nowhere(format!("there is no kubeconfig {}", path.display())));
        }
        Err(error) => return Err(explain(&path, error)),
    };
    from_kubeconfig(&path, kubeconfig, context).await
}

/// For error texts: what kube will read, though `KUBECONFIG` may name several files.
fn default_path() -> PathBuf {
    env::var_os("KUBECONFIG").map_or_else(|| PathBuf::from("~/.kube/config"), PathBuf::from)
}

async fn from_file(path: &Path, context: Option<&str>) -> Result<Config, ConfigError> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) if text.trim().is_empty() => return Err(ConfigError::Empty(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ConfigError::Missing(path.to_owned())),
        Err(source) => return Err(ConfigError::Unreadable { path: path.to_owned(), source }),
    }
    // `read_from` and not `from_yaml`: it resolves file names relative to the kubeconfig's folder, as kubectl does.
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| explain(path, error))?;
    from_kubeconfig(path, kubeconfig, context).await
}

async fn from_kubeconfig(path: &Path, kubeconfig: Kubeconfig, context: Option<&str>) -> Result<Config, ConfigError> {
    check(path, &kubeconfig, context)?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| explain(path, error))?;
    // Without this check no server would be trusted, and that is said only by each handshake that fails.
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        let reason = "its certificate-authority holds no PEM certificate".to_owned();
        return Err(ConfigError::Invalid { path: path.to_owned(), reason });
    }
    Ok(config)
}

/// Follows context -> cluster -> server, so that a gap is named with what is there instead.
fn check(path: &Path, kubeconfig: &Kubeconfig, context: Option<&str>) -> Result<(), ConfigError> {
    let path = || path.to_owned();
    let known = || kubeconfig.contexts.iter().map(|context| context.name.clone()).collect::<Vec<_>>();
    let current = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let Some(wanted) = context.or(current) else {
        return Err(ConfigError::NoCurrentContext { path: path(), known: known() });
    };
    let found = kubeconfig.contexts.iter().find(|context| context.name == wanted);
    let Some(found) = found.and_then(|named| named.context.as_ref()) else {
        return Err(ConfigError::NoContext { path: path(), wanted: wanted.to_owned(), known: known() });
    };
    let cluster = kubeconfig.clusters.iter().find(|cluster| cluster.name == found.cluster);
    match cluster.and_then(|named| named.cluster.as_ref()).and_then(|cluster| cluster.server.as_deref()) {
        Some(server) if !server.is_empty() => Ok(()),
        _ => Err(ConfigError::NoCluster { path: path(), context: wanted.to_owned(), cluster: found.cluster.clone() }),
    }
}

fn explain(path: &Path, error: KubeconfigError) -> ConfigError {
    let path = path.to_owned();
    match error {
        KubeconfigError::Parse(error) => {
            let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
            ConfigError::NotYaml { path, line, column }
        }
        KubeconfigError::ReadConfig(source, path) => ConfigError::Unreadable { path, source },
        KubeconfigError::LoadCertificateAuthority(LoadDataError::ReadFile(source, referred))
        | KubeconfigError::LoadClientCertificate(LoadDataError::ReadFile(source, referred))
        | KubeconfigError::LoadClientKey(LoadDataError::ReadFile(source, referred)) => {
            ConfigError::Reference { path, referred, source }
        }
        other => ConfigError::Invalid { path, reason: other.to_string() },
    }
}

fn place(line: u64, column: u64) -> String {
    if line == 0 { String::new() } else { format!(" (line {line}, column {column})") }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const GOOD: &str = "
apiVersion: v1
kind: Config
current-context: one
contexts:
- name: one
  context: {cluster: c, user: u}
- name: two
  context: {cluster: lost, user: u}
clusters:
- name: c
  cluster: {server: 'https://127.0.0.1:6443'}
users:
- name: u
  user: {token: very-secret}
";

    async fn refusal(text: &str, context: Option<&str>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        let error = load_config(Some(&path), context).await.expect_err("it should be refused").to_string();
        assert!(error.contains(&path.display().to_string()), "the file is not named: {error}");
        assert!(!error.contains("very-secret"), "a secret is shown: {error}");
        error
    }

    #[tokio::test]
    async fn a_good_kubeconfig_is_read_with_its_current_context() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, GOOD).unwrap();
        let config = load_config(Some(&path), None).await.unwrap();
        assert_eq!(config.cluster_url.to_string(), "https://127.0.0.1:6443/");
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let error = load_config(Some(Path::new("/nowhere/at/all")), None).await.unwrap_err();
        assert!(matches!(error, ConfigError::Missing(_)));
        assert!(error.to_string().contains("/nowhere/at/all"));
    }

    #[tokio::test]
    async fn a_folder_and_an_empty_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = load_config(Some(folder.path()), None).await.unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
        assert!(refusal("\n  \n", None).await.contains("is empty"));
    }

    #[tokio::test]
    async fn what_is_not_yaml_is_refused_with_its_place_and_without_its_text() {
        let error = refusal("users:\n- name: u\n  user: {token: very-secret\n oops", None).await;
        assert!(error.contains("is not the YAML of a kubeconfig"), "{error}");
        let error = refusal("users: very-secret", None).await;
        assert!(error.contains("is not the YAML of a kubeconfig (line 1"), "{error}");
    }

    #[tokio::test]
    async fn an_absent_context_is_refused_with_those_that_are_there() {
        assert!(refusal(GOOD, Some("three")).await.contains("has no context \"three\"; it has: one, two"));
        let without_current = GOOD.replace("current-context: one", "");
        assert!(refusal(&without_current, None).await.contains("name one of: one, two"));
    }

    #[tokio::test]
    async fn a_context_without_its_cluster_is_refused() {
        assert!(refusal(GOOD, Some("two")).await.contains("no usable cluster \"lost\""));
        let without_server = GOOD.replace("server: 'https://127.0.0.1:6443'", "");
        assert!(refusal(&without_server, None).await.contains("no usable cluster \"c\""));
    }

    #[tokio::test]
    async fn an_authority_without_a_certificate_is_refused() {
        // "none" in base64.
        let text = GOOD.replace("server:", "certificate-authority-data: bm9uZQ==, server:");
        assert!(refusal(&text, None).await.contains("holds no PEM certificate"));
    }

    #[tokio::test]
    async fn a_file_it_refers_to_is_named_when_missing() {
        let text = GOOD.replace("server:", "certificate-authority: lost-ca.crt, server:");
        assert!(refusal(&text, None).await.contains("lost-ca.crt"));
    }
}
