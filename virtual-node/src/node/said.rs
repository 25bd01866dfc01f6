//! An API server's refusal in one line. kube's own Display repeats the whole Status in its debug form.

/// What the API server said, or what went wrong on the way to it.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        other => innermost(other),
    }
}

/// The cause at the bottom (`Connection refused`), without the layers above it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
