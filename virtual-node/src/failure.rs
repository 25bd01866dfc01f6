//! The last words of a process that fails: what happened and why, each thing said once.

use anyhow::Error;

use crate::node::said;

/// An error and its causes in one line.
///
/// Our errors tell their causes where the sentence wants them, in the middle; `{:#}` would add them once more at the end,
/// and an API server's refusal with all of its fields.
pub fn in_one_line(error: &Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let refusal = cause.downcast_ref::<kube::Error>();
        let words = refusal.map_or_else(|| cause.to_string(), said);
        if !line.contains(&words) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&words);
        }
        // What is below is told by it already.
        if refusal.is_some() {
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;
    use kube::core::Status;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen: {source}; choose another port")]
    struct Listen {
        source: io::Error,
    }

    #[test]
    fn a_cause_that_is_told_already_is_not_told_again() {
        let source = io::Error::other("in use");
        let error = Error::new(Listen { source }).context("--admin-address");
        assert_eq!(in_one_line(&error), "--admin-address: cannot listen: in use; choose another port");
    }

    #[test]
    fn a_refusal_is_told_in_the_api_servers_words_only() {
        let status =
            Status { code: 403, message: "pods is forbidden".into(), reason: "Forbidden".into(), ..Status::default() };
        let error = Err::<(), _>(kube::Error::Api(Box::new(status))).context("looking for pods").err();
        assert_eq!(
            error.map(|e| in_one_line(&e)).as_deref(),
            Some("looking for pods: pods is forbidden (403 Forbidden)")
        );
    }
}
