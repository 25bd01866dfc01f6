//! Reading the API server's audit log: which of our accounts asked for what.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// One request, as far as tests ask about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// The account, such as `system:serviceaccount:tensile:virtual-node`.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `patch` and so on.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Plural resource; empty for a path that is none, such as `/readyz`.
    pub resource: String,
    /// Such as `status` or `log`; empty when there is none.
    pub subresource: String,
    /// Empty for what has no namespace, and for a list over all of them.
    pub namespace: String,
    /// Empty for a list.
    pub name: String,
    /// The path with its query.
    pub request_uri: String,
    /// The client's User-Agent.
    pub user_agent: String,
    /// HTTP status; 0 while a watch is under way.
    pub code: u16,
    /// `ResponseStarted` for a watch under way, `ResponseComplete`, or `Panic`.
    pub stage: String,
    /// When the request came, RFC 3339 with microseconds: its head, that is.
    pub received_at: String,
    /// When it had been carried out and answered.
    pub answered_at: String,
}

/// The entries of users whose name begins with `user_prefix`, in the order of the log.
pub(crate) fn read(path: &Path, user_prefix: &str) -> Result<Vec<AuditEntry>> {
    let file = fs::File::open(path)
        .with_context(|| format!("opening the audit log {} (is auditing on for this cluster?)", path.display()))?;
    let mut entries = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.context("reading the audit log")?;
        // The last line may be half written.
        let Ok(event) = serde_json::from_str::<Event>(&line) else {
            continue;
        };
        if event.user.username.starts_with(user_prefix) {
            entries.push(event.into());
        }
    }
    Ok(entries)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: Status,
    #[serde(default)]
    request_received_timestamp: String,
    #[serde(default)]
    stage_timestamp: String,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    code: u16,
}

impl From<Event> for AuditEntry {
    fn from(event: Event) -> Self {
        Self {
            user: event.user.username,
            verb: event.verb,
            group: event.object_ref.api_group,
            resource: event.object_ref.resource,
            subresource: event.object_ref.subresource,
            namespace: event.object_ref.namespace,
            name: event.object_ref.name,
            request_uri: event.request_uri,
            user_agent: event.user_agent,
            code: event.response_status.code,
            stage: event.stage,
            received_at: event.request_received_timestamp,
            answered_at: event.stage_timestamp,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn entries_are_chosen_by_the_users_beginning_and_half_lines_are_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            concat!(
                r#"{"stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/pods/p/status","verb":"patch","#,
                r#""user":{"username":"system:node:lower-1"},"userAgent":"x","objectRef":{"resource":"pods","#,
                r#""subresource":"status","namespace":"a","name":"p"},"responseStatus":{"code":200}}"#,
                "\n",
                r#"{"stage":"ResponseComplete","requestURI":"/readyz","verb":"get","user":{"username":"other"}}"#,
                "\n",
                r#"{"stage":"Respon"#,
            ),
        )
        .unwrap();
        let entries = super::read(file.path(), "system:node:").unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].subresource, "status");
        assert_eq!(entries[0].code, 200);
    }
}
