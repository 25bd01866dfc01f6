//! Credential plugins (`exec` in a kubeconfig), the API `client.authentication.k8s.io`.
//!
//! Not kube's: that one runs a plugin twice at the start and blocks a thread for it, hands it our standard input, never
//! asks anew for a certificate or for a token without an expiry, and drops the install hint.

use std::{collections::HashMap, io, process::Stdio, time::Duration};

use jiff::Timestamp;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use super::credential::{CredentialError, Obtained, Pair};

/// The versions that we speak.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];
/// How a plugin is told what it is asked.
const INFO_VARIABLE: &str = "KUBERNETES_EXEC_INFO";
/// Plugins ask identity providers over the network; what takes longer hangs.
const RUN_MAX: Duration = Duration::from_mins(1);
/// A credential is a few KiB.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A credential plugin, ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExecPlugin {
    command: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    version: String,
    install_hint: Option<String>,
    /// What the plugin is told of the cluster, where the kubeconfig asks for that.
    cluster: Option<Value>,
}

impl ExecPlugin {
    /// Reads the section; the error is the reason why it cannot be used.
    pub(super) fn new(exec: &ExecConfig) -> Result<Self, String> {
        let command = exec.command.clone().filter(|command| !command.is_empty());
        let command = command.ok_or("its exec section has no command")?;
        let version = exec.api_version.clone().unwrap_or_default();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(format!("its exec section has apiVersion {version:?}: give one of {}", VERSIONS.join(", ")));
        }
        if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
            return Err(format!(
                "its credential plugin `{command}` has interactiveMode Always, but there is nobody to ask here: use \
                 Never or IfAvailable with a plugin that can work alone"
            ));
        }
        let env = exec.env.iter().flatten().map(variable).collect::<Result<_, _>>()?;
        let cluster = exec.cluster.as_ref().filter(|_| exec.provide_cluster_info);
        let cluster = cluster.map(serde_json::to_value).transpose().map_err(|error| error.to_string())?;
        Ok(Self {
            command,
            args: exec.args.clone().unwrap_or_default(),
            env,
            version,
            install_hint: exec.install_hint.clone().filter(|hint| !hint.trim().is_empty()),
            cluster,
        })
    }

    /// Runs it once.
    pub(super) async fn run(&self) -> Result<Obtained, CredentialError> {
        let output = timeout(RUN_MAX, self.output()).await.map_err(|_| CredentialError::PluginHangs {
            command: self.command.clone(),
            seconds: RUN_MAX.as_secs(),
        })??;
        self.read(&output, Timestamp::now())
            .map_err(|reason| CredentialError::PluginAnswer { command: self.command.clone(), reason })
    }

    async fn output(&self) -> Result<Vec<u8>, CredentialError> {
        let mut spec = json!({"interactive": false});
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
        }
        let info = json!({"kind": "ExecCredential", "apiVersion": self.version, "spec": spec});
        let mut command = Command::new(&self.command);
        command.args(&self.args).envs(self.env.iter().cloned()).env(INFO_VARIABLE, info.to_string());
        // Its errors may quote what it was given, secrets among it: they are not ours to log.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| self.not_started(source))?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let read = stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut output).await;
            read.map_err(|source| self.not_started(source))?;
        }
        let status = child.wait().await.map_err(|source| self.not_started(source))?;
        if status.success() {
            return Ok(output);
        }
        Err(CredentialError::PluginFailed { command: self.command.clone(), status })
    }

    fn not_started(&self, source: io::Error) -> CredentialError {
        let command = self.command.clone();
        if source.kind() != io::ErrorKind::NotFound {
            return CredentialError::PluginNotStarted { command, source };
        }
        let ours = || "install it where this process runs, or give the path to it as `command`".to_owned();
        let hint = self.install_hint.as_deref().map_or_else(ours, printable);
        CredentialError::PluginMissing { command, hint }
    }

    /// Understands its answer. Nothing of it is shown in an error.
    fn read(&self, output: &[u8], now: Timestamp) -> Result<Obtained, String> {
        // YAML too, of which JSON is a part: client-go takes both, and some plugins write the former.
        let answer: Answer = serde_yaml_ng::from_slice(output)
            .map_err(|_| "it is not an ExecCredential in JSON or YAML; run it by hand to see".to_owned())?;
        if answer.api_version != self.version {
            return Err(format!(
                "it is of apiVersion {:?}, but the kubeconfig asks for {}",
                answer.api_version.chars().take(60).collect::<String>(),
                self.version
            ));
        }
        let status = answer.status.ok_or("it has no status")?;
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let pair = match (filled(status.certificate), filled(status.key)) {
            (Some(certificate), Some(key)) => Some(Pair::new(certificate.as_bytes(), key.as_bytes(), "it")?),
            (None, None) => None,
            _ => return Err("it has a clientCertificateData or a clientKeyData, but not both".to_owned()),
        };
        let token = filled(status.token);
        if token.is_none() && pair.is_none() {
            return Err("it has neither a token nor a client certificate".to_owned());
        }
        let given = status.expires.map(|text| text.parse::<Timestamp>()).transpose();
        let given = given.map_err(|_| "its expirationTimestamp is not a time as in 2026-11-24T08:00:00Z".to_owned())?;
        let expires = given.or_else(|| pair.as_ref().map(Pair::not_after));
        if expires.is_some_and(|at| at <= now) {
            return Err("its credential has expired already; are the clocks right?".to_owned());
        }
        Ok(Obtained { token, pair, expires })
    }
}

/// Whether a user is one of a plugin.
pub(super) fn plugin_of(user: &AuthInfo) -> Option<Result<ExecPlugin, String>> {
    user.exec.as_ref().map(ExecPlugin::new)
}

fn variable(entry: &HashMap<String, String>) -> Result<(String, String), String> {
    match (entry.get("name"), entry.get("value")) {
        (Some(name), value) if !name.is_empty() => Ok((name.clone(), value.cloned().unwrap_or_default())),
        _ => Err("its exec section has a variable without a name under env".to_owned()),
    }
}

/// A hint comes from a file that somebody else may have written: no control characters for a terminal.
fn printable(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(rename = "expirationTimestamp", default)]
    expires: Option<String>,
    #[serde(default)]
    token: Option<String>,
    #[serde(rename = "clientCertificateData", default)]
    certificate: Option<String>,
    #[serde(rename = "clientKeyData", default)]
    key: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plugin(change: &Value) -> Result<ExecPlugin, String> {
        let mut exec = json!({"command": "sh", "apiVersion": VERSIONS[0], "interactiveMode": "Never"});
        for (key, value) in change.as_object().unwrap() {
            exec[key] = value.clone();
        }
        ExecPlugin::new(&serde_json::from_value(exec).unwrap())
    }

    async fn runs(script: &str) -> Result<Obtained, CredentialError> {
        plugin(&json!({"args": ["-c", script]})).unwrap().run().await
    }

    fn answers(status: &str) -> String {
        format!(r#"echo '{{"kind":"ExecCredential","apiVersion":"{}","status":{status}}}'"#, VERSIONS[0])
    }

    #[test]
    fn sections_that_cannot_work_are_refused_with_the_cure() {
        let refusal = |change: Value| plugin(&change).unwrap_err();
        assert!(refusal(json!({"command": ""})).contains("no command"));
        assert!(refusal(json!({"apiVersion": "client.authentication.k8s.io/v1alpha1"})).contains("give one of"));
        assert!(refusal(json!({"interactiveMode": "Always"})).contains("nobody to ask"));
        assert!(refusal(json!({"env": [{"value": "v"}]})).contains("without a name"));
    }

    #[tokio::test]
    async fn a_token_is_taken_with_its_expiry_in_json_and_in_yaml() {
        let status = r#"{"token":"t1","expirationTimestamp":"2999-01-01T00:00:00Z"}"#;
        let obtained = runs(&answers(status)).await.unwrap();
        assert_eq!(obtained.token.as_deref(), Some("t1"));
        assert_eq!(obtained.expires.unwrap().to_string(), "2999-01-01T00:00:00Z");
        let yaml = format!("printf 'apiVersion: {}\\nstatus:\\n  token: t2\\n'", VERSIONS[0]);
        assert_eq!(runs(&yaml).await.unwrap().token.as_deref(), Some("t2"));
    }

    #[tokio::test]
    async fn a_certificate_is_taken_and_is_due_before_it_runs_out() {
        let issued = crate::test_certs::TestCa::new("ca").issue("jane", &[], &[]);
        let status = json!({"clientCertificateData": issued.certificate, "clientKeyData": issued.key}).to_string();
        // As a variable: a shell's echo would make new lines of the escapes in it.
        let answer = json!({"kind": "ExecCredential", "apiVersion": VERSIONS[0],
            "status": serde_json::from_str::<Value>(&status).unwrap()});
        let env = json!([{"name": "ANSWER", "value": answer.to_string()}]);
        let args = json!(["-c", "printf %s \"$ANSWER\""]);
        let obtained = plugin(&json!({"args": args, "env": env})).unwrap().run().await.unwrap();
        let pair = obtained.pair.unwrap();
        assert_eq!(obtained.expires, Some(pair.not_after()));
        assert!(obtained.token.is_none());
    }

    #[tokio::test]
    async fn answers_that_hold_no_credential_are_refused_without_showing_them() {
        for (script, words) in [
            ("echo hunter2".to_owned(), "not an ExecCredential"),
            (answers("{}"), "neither a token nor"),
            (answers(r#"{"clientKeyData":"hunter2"}"#), "but not both"),
            (answers(r#"{"token":"hunter2","expirationTimestamp":"soon"}"#), "not a time"),
            (answers(r#"{"token":"hunter2","expirationTimestamp":"2001-01-01T00:00:00Z"}"#), "expired already"),
            (answers(r#"{"token":"hunter2"}"#).replace("/v1", "/v1beta1"), "but the kubeconfig asks for"),
            (r#"echo '{"apiVersion":"client.authentication.k8s.io/v1"}'"#.to_owned(), "no status"),
            ("echo hunter2 >&2; exit 3".to_owned(), "exit status: 3"),
        ] {
            let error = runs(&script).await.err().unwrap();
            let text = format!("{error} {error:?}");
            assert!(text.contains(words) && !text.contains("hunter2"), "{script}: {text}");
        }
    }

    #[tokio::test]
    async fn a_plugin_that_is_not_there_is_named_with_its_hint() {
        let hint = "Install it:\n\u{1b}[31mapt install x";
        let missing = plugin(&json!({"command": "tensile-no-such-plugin", "installHint": hint})).unwrap();
        let text = missing.run().await.err().unwrap().to_string();
        assert!(text.contains("`tensile-no-such-plugin`") && text.contains("Install it: [31mapt install x"), "{text}");
    }

    #[tokio::test]
    async fn it_is_told_what_it_is_asked_and_has_no_terminal() {
        let script = format!(
            "cat; echo \"$KUBERNETES_EXEC_INFO\" | grep -q '\"interactive\":false' && test \"$EXTRA\" = 1 && {}",
            answers(r#"{"token":"t"}"#)
        );
        let env = json!([{"name": "EXTRA", "value": "1"}]);
        plugin(&json!({"args": ["-c", script], "env": env})).unwrap().run().await.unwrap();
    }
}
