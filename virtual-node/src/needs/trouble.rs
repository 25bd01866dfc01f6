//! What a failed request means for a pod that needs something.

use kube::core::Status;

/// Status code of a request that an admission plugin or a quota refused, or that we have no right to.
const FORBIDDEN: u16 = 403;

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The lower namespace is gone, or is being deleted.
    NamespaceGone,
    /// The object changed under us, or came or went: look again at once.
    Raced,
    /// The API server understood and said no. Trying again helps only when somebody changes something.
    Refused(String),
    /// The API server was away, busy or slow.
    Passing(String),
}

impl Trouble {
    /// Reads a client error. Its text never holds the body of a request, so no Secret.
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            other => Self::Passing(other.to_string()),
        }
    }

    fn of_status(status: &Status) -> Self {
        let kind = status.details.as_ref().map(|details| details.kind.as_str()).unwrap_or_default();
        let terminating = status.code == FORBIDDEN && status.message.contains("because it is being terminated");
        if terminating || (status.is_not_found() && kind == "namespaces") {
            return Self::NamespaceGone;
        }
        if status.is_not_found() || status.is_conflict() || status.is_already_exists() {
            return Self::Raced;
        }
        match status.code {
            // 401 is passing: credentials are rotated, and reloaded on change.
            401 | 408 | 429 | 500.. => Self::Passing(status.message.clone()),
            _ => Self::Refused(status.message.clone()),
        }
    }
}

/// The message of an error as people should read it: that of the API server, where it has one.
pub(super) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether an error says that the object is not there.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, reason: &str, message: &str, kind: &str) -> Status {
        serde_json::from_value(serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "reason": reason, "message": message, "details": { "kind": kind },
        }))
        .unwrap_or_default()
    }

    #[test]
    fn refusals_are_told_apart() {
        let terminating =
            "configmaps \"x\" is forbidden: unable to create new content in namespace t because it is being terminated";
        let cases = [
            (status(403, "Forbidden", terminating, "configmaps"), Trouble::NamespaceGone),
            (status(404, "NotFound", "namespaces \"t\" not found", "namespaces"), Trouble::NamespaceGone),
            (status(404, "NotFound", "configmaps \"x\" not found", "configmaps"), Trouble::Raced),
            (status(409, "AlreadyExists", "", "configmaps"), Trouble::Raced),
            (status(409, "Conflict", "", "configmaps"), Trouble::Raced),
            (status(403, "Forbidden", "exceeded quota", "configmaps"), Trouble::Refused("exceeded quota".into())),
            (status(422, "Invalid", "bad", "configmaps"), Trouble::Refused("bad".into())),
            (status(503, "ServiceUnavailable", "busy", ""), Trouble::Passing("busy".into())),
        ];
        for (status, expected) in cases {
            assert_eq!(Trouble::of_status(&status), expected, "{status:?}");
        }
    }
}
