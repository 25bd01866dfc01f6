//! What a user reads while a pod waits, in a kubelet's own words where it has some.

use super::{Missing, Retry, book::Refused, mirrored::Mirrored};
use crate::translate::UsedBy;

/// A referenced object does not exist in the upper cluster. Reasons and messages as in `K pkg/kubelet/kuberuntime` (for
/// environments) and `K pkg/volume/util/operationexecutor` (for volumes).
pub(super) fn absent<K: Mirrored>(name: &str, used_by: &UsedBy) -> Missing {
    let not_found = format!("{} \"{name}\" not found", K::WORD);
    let (reason, message) = match used_by {
        UsedBy::Volume(volume) => ("FailedMount", mount_failed(volume, &not_found)),
        UsedBy::Env(_) => ("Failed", format!("Error: {not_found}")),
        UsedBy::ImagePull => (
            "FailedToRetrieveImagePullSecret",
            format!(
                "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
            ),
        ),
    };
    Missing { reason, message, retry: Retry::Waits, quiet: false }
}

/// The volume could not be set up.
pub(super) fn mount_failed(volume: &str, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}")
}

/// A token could not be had.
pub(super) fn no_token(volume: &str, why: &str, retry: Retry) -> Missing {
    Missing {
        reason: "FailedMount",
        message: mount_failed(volume, &format!("failed to fetch token: {why}")),
        retry,
        quiet: false,
    }
}

/// Something is refused; the message says it all.
pub(super) fn refused(refused: Refused) -> Missing {
    Missing { reason: refused.reason, message: refused.message, retry: Retry::Waits, quiet: false }
}

/// Nothing is wrong; it only is not there yet.
pub(super) fn pending(what: &str) -> Missing {
    Missing {
        reason: "PreparingLowerCluster",
        message: format!("{what} is being written to the lower cluster"),
        retry: Retry::Waits,
        quiet: true,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};

    use super::*;

    #[test]
    fn a_missing_config_map_reads_as_under_a_kubelet() {
        let missing = absent::<ConfigMap>("settings", &UsedBy::Volume("config".into()));
        assert_eq!(missing.reason, "FailedMount");
        assert_eq!(
            missing.message,
            "MountVolume.SetUp failed for volume \"config\" : configmap \"settings\" not found"
        );
    }

    #[test]
    fn a_missing_secret_of_an_environment_reads_as_under_a_kubelet() {
        let missing = absent::<Secret>("password", &UsedBy::Env("main".into()));
        assert_eq!((missing.reason, missing.message.as_str()), ("Failed", "Error: secret \"password\" not found"));
    }
}
