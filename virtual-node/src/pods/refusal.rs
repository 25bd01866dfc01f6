//! What an API server's refusal means for a pod: whether it passes, and what its user must be told.

use kube::Error;

/// A refusal of the lower API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Whether trying again may help.
    pub lasts: Lasts,
    /// Reason of the event and the condition, in CamelCase. `None`: nothing a user could mend; it is logged.
    pub reason: Option<&'static str>,
    /// What was refused, in the lower API server's words, and the cure.
    pub message: String,
}

/// How long a refusal lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// It passes by itself: tried again with growing pauses.
    Passing,
    /// Somebody must change something in the lower cluster: tried again with growing pauses, up to a minute.
    UntilMended,
    /// Only another spec would be accepted.
    Final,
}

/// Words in a Forbidden's message that tell what kind it is, with what to tell the user. The API has no better sign:
/// admission plugins answer 403 with a sentence. The first that fits counts.
const FORBIDDEN: &[(&str, Lasts, Option<&str>, &str)] = &[
    // The ServiceAccount controller of a namespace just made is a moment behind (K plugin/pkg/admission/serviceaccount).
    ("serviceaccount \"default\" not found", Lasts::Passing, None, ""),
    ("error looking up service account", Lasts::Passing, None, ""),
    (
        "is being terminated",
        Lasts::UntilMended,
        Some("NamespaceTerminating"),
        "wait until the lower namespace is gone; it is then made anew",
    ),
    (
        "exceeded quota",
        Lasts::UntilMended,
        Some("LowerQuotaExceeded"),
        "raise the ResourceQuota of that namespace in the lower cluster, or free some of it",
    ),
    (
        "no PriorityClass with name",
        Lasts::UntilMended,
        Some("PriorityClassNotFound"),
        "create a PriorityClass of that name in the lower cluster",
    ),
    (
        "RuntimeClass",
        Lasts::UntilMended,
        Some("RuntimeClassNotFound"),
        "create a RuntimeClass of that name in the lower cluster",
    ),
    (
        "violates PodSecurity",
        Lasts::UntilMended,
        Some("LowerPodSecurity"),
        "tighten the pod's securityContext, or relax the Pod Security level of that namespace in the lower cluster",
    ),
];

/// Judges a refusal.
pub fn judge(error: &Error) -> Refused {
    let Error::Api(status) = error else {
        return Refused { lasts: Lasts::Passing, reason: None, message: error.to_string() };
    };
    let message = status.message.as_str();
    let told = |lasts, reason, cure: &str| Refused {
        lasts,
        reason,
        message: if cure.is_empty() {
            format!("the lower cluster refused the pod: {message}")
        } else {
            format!("the lower cluster refused the pod: {message}; {cure}")
        },
    };
    match status.code {
        403 => match FORBIDDEN.iter().find(|(words, ..)| message.contains(words)) {
            Some((_, lasts, reason, cure)) => told(*lasts, *reason, cure),
            None => told(
                Lasts::UntilMended,
                Some("LowerForbidden"),
                "look at the admission rules of the lower cluster and at the rights of tensile's account in it",
            ),
        },
        401 => told(Lasts::UntilMended, Some("LowerUnauthorized"), "renew the lower cluster's credentials"),
        404 if message.contains("namespaces") => told(Lasts::Passing, None, ""),
        400 => told(
            Lasts::UntilMended,
            Some("LowerAdmissionDenied"),
            "look at the admission webhooks of the lower cluster",
        ),
        422 => told(Lasts::Final, Some("LowerInvalid"), "change the named field of the pod and create it again"),
        _ => told(Lasts::Passing, None, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn refused(code: u16, message: &str) -> Refused {
        judge(&Error::Api(Box::new(Status { code, message: message.into(), ..Status::default() })))
    }

    #[test]
    fn a_namespace_just_made_passes_without_a_word() {
        let refused = refused(
            403,
            "pods \"a\" is forbidden: error looking up service account x/default: serviceaccount \"default\" not found",
        );
        assert_eq!((refused.lasts, refused.reason), (Lasts::Passing, None));
    }

    #[test]
    fn quota_and_classes_name_their_cure() {
        assert_eq!(refused(403, "pods \"a\" is forbidden: exceeded quota: q").reason, Some("LowerQuotaExceeded"));
        let class = refused(403, "pods \"a\" is forbidden: no PriorityClass with name high was found");
        assert_eq!(class.reason, Some("PriorityClassNotFound"));
        assert!(class.message.contains("create a PriorityClass"));
    }

    #[test]
    fn an_invalid_spec_is_final_and_an_overload_passes() {
        assert_eq!(refused(422, "spec.x: Invalid value").lasts, Lasts::Final);
        assert_eq!(refused(429, "too many requests").lasts, Lasts::Passing);
    }
}
