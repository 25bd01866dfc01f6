//! Asks the metrics API of the lower cluster, and says in a user's words why there is no answer.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use tensile_chassis::kube_client::NoRetry;
use tokio::time::timeout;

use super::sample::{NodeSample, PodSample, Read, nodes, pods};

/// metrics-server waits 10 s for a kubelet; an answer that says what is wrong shall come before.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// A pod's metrics with its labels are about 1 KiB, so this is room for 64,000 pods of ours.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

const API: &str = "/apis/metrics.k8s.io/v1beta1";

/// Why the lower cluster's metrics API has no figures for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The API is not there.
    #[error(
        "the lower cluster serves no metrics API (metrics.k8s.io): install metrics-server there, and CPU and memory of \
         its pods appear here"
    )]
    NotServed,
    /// Our account may not read it.
    #[error(
        "the lower cluster does not let the virtual node's account list {what} of its metrics API ({status}): apply \
         deploy/rbac-lower.yaml there"
    )]
    Forbidden {
        /// `pods` or `nodes`.
        what: &'static str,
        /// The status of the answer.
        status: u16,
    },
    /// The API is registered, and who serves it is not well.
    #[error(
        "the lower cluster's metrics API does not work ({status} when asked for {what}): look at its metrics-server and \
         at `kubectl get apiservice v1beta1.metrics.k8s.io` there"
    )]
    Broken {
        /// `pods` or `nodes`.
        what: &'static str,
        /// The status of the answer.
        status: u16,
    },
    /// No answer.
    #[error("the lower cluster's API server was not reached when asked for its metrics API: {0}")]
    Unreachable(String),
    /// No list.
    #[error("the lower cluster's metrics API answered with what is no list of {what}: {why}")]
    Unreadable {
        /// `pods` or `nodes`.
        what: &'static str,
        /// What the reader says.
        why: String,
    },
}

/// Lists the metrics of pods with these labels.
pub async fn list_pods(lower: &kube::Client, label_selector: &str) -> Result<Read<PodSample>, Unavailable> {
    // The values of our labels need encoding neither for a selector nor for an address; its own signs do.
    let selector = label_selector.replace('=', "%3D").replace(',', "%2C").replace('/', "%2F");
    list(lower, "pods", &format!("{API}/pods?labelSelector={selector}"), pods).await
}

/// Lists the metrics of all nodes.
pub async fn list_nodes(lower: &kube::Client) -> Result<Read<NodeSample>, Unavailable> {
    list(lower, "nodes", &format!("{API}/nodes"), nodes).await
}

async fn list<T: Send + 'static>(
    lower: &kube::Client,
    what: &'static str,
    uri: &str,
    read: fn(&[u8]) -> Result<Read<T>, serde_json::Error>,
) -> Result<Read<T>, Unavailable> {
    let unreachable = |why: &dyn std::fmt::Display| Unavailable::Unreachable(why.to_string());
    let answer = async {
        let mut request = Request::get(uri).body(kube::client::Body::empty()).map_err(|error| unreachable(&error))?;
        // The next scrape is the next try.
        request.extensions_mut().insert(NoRetry);
        let response = lower.send(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(refusal(what, status));
        }
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| unreachable(&error))?.to_bytes())
    };
    let body = timeout(ANSWER_MAX, answer)
        .await
        .map_err(|_| Unavailable::Unreachable(format!("no answer within {} s", ANSWER_MAX.as_secs())))??;
    // Thousands of pods are megabytes of JSON: other requests are not to wait for that.
    tokio::task::spawn_blocking(move || read(&body))
        .await
        .map_err(|error| unreachable(&error))?
        .map_err(|error| Unavailable::Unreadable { what, why: error.to_string() })
}

fn refusal(what: &'static str, status: StatusCode) -> Unavailable {
    match status {
        StatusCode::NOT_FOUND => Unavailable::NotServed,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Unavailable::Forbidden { what, status: status.as_u16() },
        _ => Unavailable::Broken { what, status: status.as_u16() },
    }
}
