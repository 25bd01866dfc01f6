//! Reading a kubeconfig, with errors a person can act on.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use kube::{
    Config,
    config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError},
};

use super::{proxy, sections};

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
    /// The context refers to a user that is not in the file.
    #[error("the kubeconfig {} has no user {user:?}, which its context names; it has: {}", path.display(), list(.known))]
    NoUser {
        /// The file.
        path: PathBuf,
        /// The user wanted.
        user: String,
        /// The users that are there.
        known: Vec<String>,
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

/// What was read.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    /// Where the cluster is and who we are there.
    pub(super) config: Config,
    /// The files it comes from. Those of the user's section are not among them.
    pub(super) files: Vec<PathBuf>,
    /// What an operator should know although it works.
    pub(super) notes: Vec<String>,
    /// The file, for error texts.
    pub(super) path: PathBuf,
}

impl Loaded {
    /// An error of this file.
    pub(super) fn invalid(&self, reason: String) -> ConfigError {
        ConfigError::Invalid { path: self.path.clone(), reason }
    }
}

/// Finds out which API server to talk to and as whom.
///
/// With a path, that kubeconfig. Without: `KUBECONFIG` when set, else the pod's ServiceAccount when in a cluster, else
/// `~/.kube/config`. `context` picks a context other than the current one (and so never means the ServiceAccount).
pub async fn load_config(path: Option<&Path>, context: Option<&str>) -> Result<Config, ConfigError> {
    load(path, context).await.map(|loaded| loaded.config)
}

/// [`load_config`] with what it read.
pub(super) async fn load(path: Option<&Path>, context: Option<&str>) -> Result<Loaded, ConfigError> {
    if let Some(path) = path {
        return from_file(path, context).await;
    }
    if env::var_os("KUBECONFIG").is_none() && env::var_os(IN_CLUSTER_VARIABLE).is_some() && context.is_none() {
        let mut config = Config::incluster().map_err(|error| ConfigError::Nowhere(error.to_string()))?;
        // Followed by us, together with the token.
        let files: Vec<PathBuf> = config.root_cert_file.take().into_iter().collect();
        let path = config.auth_info.token_file.as_ref().map(PathBuf::from).unwrap_or_default();
        return Ok(Loaded { config, files, notes: Vec::new(), path });
    }
    let path = default_path();
    let files: Vec<PathBuf> = env::split_paths(&env::var_os("KUBECONFIG").unwrap_or_default()).collect();
    let kubeconfig = match Kubeconfig::read() {
        Ok(kubeconfig) => kubeconfig,
        Err(KubeconfigError::ReadConfig(source, _)) if source.kind() == io::ErrorKind::NotFound => {
            return Err(ConfigError::Nowhere(format!("there is no kubeconfig {}", path.display())));
        }
        Err(error) => return Err(explain(&path, error)),
    };
    from_kubeconfig(&path, files, kubeconfig, context).await
}

/// For error texts: what kube will read, though `KUBECONFIG` may name several files.
fn default_path() -> PathBuf {
    env::var_os("KUBECONFIG").map_or_else(|| PathBuf::from("~/.kube/config"), PathBuf::from)
}

async fn from_file(path: &Path, context: Option<&str>) -> Result<Loaded, ConfigError> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) if text.trim().is_empty() => return Err(ConfigError::Empty(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ConfigError::Missing(path.to_owned())),
        Err(source) => return Err(ConfigError::Unreadable { path: path.to_owned(), source }),
    }
    // `read_from` and not `from_yaml`: it resolves file names relative to the kubeconfig's folder, as kubectl does.
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| explain(path, error))?;
    from_kubeconfig(path, vec![path.to_owned()], kubeconfig, context).await
}

async fn from_kubeconfig(
    path: &Path,
    mut files: Vec<PathBuf>,
    kubeconfig: Kubeconfig,
    context: Option<&str>,
) -> Result<Loaded, ConfigError> {
    let Section { cluster, user } = section(path, &kubeconfig, context)?;
    let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
    sections::check_cluster(&cluster).map_err(invalid)?;
    sections::check_user(&cluster, user.as_ref()).map_err(invalid)?;
    let notes = sections::notes(&cluster, user.as_ref());
    files.extend(cluster.certificate_authority.as_ref().map(PathBuf::from));
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| explain(path, error))?;
    // Without this check no server would be trusted, and that is said only by each handshake that fails.
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        return Err(invalid("its certificate-authority holds no PEM certificate".to_owned()));
    }
    // kube compares NO_PROXY with the proxy instead of the server, and lets it undo a kubeconfig's own proxy-url.
    config.proxy_url = proxy::of(&config.cluster_url, cluster.proxy_url.as_deref()).map_err(invalid)?;
    Ok(Loaded { config, files, notes, path: path.to_owned() })
}

/// The parts of a kubeconfig that one context uses.
struct Section {
    cluster: Cluster,
    /// Absent when the context names none.
    user: Option<AuthInfo>,
}

/// Follows context -> cluster -> server and context -> user, so that a gap is named with what is there instead.
fn section(path: &Path, kubeconfig: &Kubeconfig, context: Option<&str>) -> Result<Section, ConfigError> {
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
    let named = kubeconfig.clusters.iter().find(|cluster| cluster.name == found.cluster);
    let Some(cluster) =
        named.and_then(|named| named.cluster.clone()).filter(|c| c.server.as_ref().is_some_and(|s| !s.is_empty()))
    else {
        let (context, cluster) = (wanted.to_owned(), found.cluster.clone());
        return Err(ConfigError::NoCluster { path: path(), context, cluster });
    };
    let Some(user) = found.user.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(Section { cluster, user: None });
    };
    let Some(named) = kubeconfig.auth_infos.iter().find(|named| named.name == user) else {
        let known = kubeconfig.auth_infos.iter().map(|user| user.name.clone()).collect();
        return Err(ConfigError::NoUser { path: path(), user: user.to_owned(), known });
    };
    Ok(Section { cluster, user: named.auth_info.clone() })
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
