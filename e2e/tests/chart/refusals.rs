//! A value that is wrong is refused with words that lead to the right one.

use crate::helm::{template, value_set};

/// Arguments on top of the minimal value set, and what the refusal must say.
const WRONG: [(&[&str], &[&str]); 12] = [
    (&["--set", "replica=3"], &["additional properties 'replica' not allowed"]),
    (&["--set", "lower.kubeConfig.existingSecret=x"], &["/lower", "additional properties 'kubeConfig' not allowed"]),
    (&["--set", "node.lowerUnreachable=wait"], &["/node/lowerUnreachable", "'hold', 'evict'"]),
    (&["--set", "nodeName=East_1"], &["/nodeName", "does not match pattern"]),
    (&["--set", "node.taints={a}"], &["/node/taints/0", "does not match pattern"]),
    (&["--set", "kubelet.port=99999"], &["/kubelet/port", "65,535"]),
    (&["--set", "extraArgs={pod-workers=3}"], &["/extraArgs/0", "does not match pattern"]),
    (&["--set", "image.repository="], &["image.repository is not set", "make image"]),
    (
        &["--set", "lower.kubeconfig.existingSecret="],
        &[
            "kubeconfig of the lower cluster is not set",
            "lower.kubeconfig.existingSecret=NAME",
            "scripts/lower-account",
        ],
    ),
    (&["--set", "lower.kubeconfig.content=x"], &["are both set"]),
    (&["--set", "hostNetwork=true"], &["kubelet.port is 10250", "--set kubelet.port=10350"]),
    (&["--set", "identity.mode=kubeconfig"], &["identity.kubeconfigSecret=NAME"]),
];

#[tokio::test]
async fn every_wrong_value_is_named_with_what_is_wanted() {
    let minimal = value_set("minimal").display().to_string();
    for (arguments, wanted) in WRONG {
        let refusal = template(&[&["--values", minimal.as_str()], arguments].concat()).await.unwrap_err();
        for words in wanted {
            assert!(refusal.contains(words), "{arguments:?} should say {words:?}, and says: {refusal}");
        }
    }
}
