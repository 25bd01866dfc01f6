//! What must be known before anything runs: how to reach both clusters, and which clusters they are.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{Api, Client};
use tensile_chassis::{
    kube_client::{self, Access, AccessSource, ClientOptions, KubeMetrics},
    readiness::Gate,
    retry::Backoff,
};
use tensile_proto::vocabulary::annotation;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{args::Args, context::LowerClients, identity::ClientBuilder, node::said};

/// Its UID is a cluster's identity: it exists in every cluster and is never made anew.
const IDENTITY_NAMESPACE: &str = "kube-system";

/// How often the log repeats that a cluster does not answer.
const REMINDER_INTERVAL: Duration = Duration::from_secs(30);

/// How long the lower cluster may take for its first answer before the Node's memory serves instead. A server that hangs
/// would else use up the client's timeouts and retries, minutes, while the node lease runs out after 40 s.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long a refusal must last until it is believed. An API server that has just started refuses everybody (403, and
/// 401 to ServiceAccounts) until it has read its own RBAC rules, which takes a second or two.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);

/// The longest wait between two questions to a cluster that does not answer.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);

/// The two clusters, not asked anything yet.
pub(crate) struct Clusters {
    /// How our ServiceAccount reaches the upper cluster.
    pub upper: Access,
    /// Acts as our ServiceAccount in the upper cluster.
    pub account: Client,
    /// Builds further clients to the upper cluster with the same limits.
    pub upper_builder: ClientBuilder,
    /// How the lower cluster is reached.
    pub lower_access: Access,
    /// Clients to the lower cluster.
    pub lower: LowerClients,
}

/// Reads both kubeconfigs and makes the clients. Nothing is sent to a cluster yet.
///
/// `me` is who this process is in the election: an audit log shows which replica made a request.
pub(crate) async fn connect(args: &Args, me: &str, metrics: &KubeMetrics) -> Result<Clusters> {
    let user_agent = format!("tensile-virtual-node/{} ({me})", env!("CARGO_PKG_VERSION"));
    let upper = open(
        AccessSource {
            path: args.upper.upper_kubeconfig.clone(),
            context: args.upper.upper_context.clone(),
            flag: "--upper-kubeconfig",
            role: "upper",
        },
        metrics,
    )
    .await?;
    let lower_access = open(
        AccessSource {
            path: Some(args.lower.lower_kubeconfig.clone()),
            context: args.lower.lower_context.clone(),
            flag: "--lower-kubeconfig",
            role: "lower",
        },
        metrics,
    )
    .await?;
    if upper.server() == lower_access.server() {
        bail!(
            "--upper-kubeconfig and --lower-kubeconfig name the same API server {}: a cluster cannot be a node of \
             itself. Give the kubeconfig of another cluster as --lower-kubeconfig",
            upper.server()
        );
    }
    let upper_options = ClientOptions {
        qps: args.upper.upper_qps,
        burst: args.upper.upper_burst,
        user_agent: user_agent.clone(),
        role: "upper",
        ..ClientOptions::default()
    };
    let lower_options = ClientOptions {
        qps: args.lower.lower_qps,
        burst: args.lower.lower_burst,
        user_agent: user_agent.clone(),
        role: "lower",
        ..ClientOptions::default()
    };
    let for_builder = metrics.clone();
    let upper_builder: ClientBuilder = Arc::new(move |access| kube_client::build(access, &upper_options, &for_builder));
    let account = upper_builder(&upper).context("--upper-kubeconfig")?;
    let lower = LowerClients {
        api: kube_client::build(&lower_access, &lower_options, metrics).context("--lower-kubeconfig")?,
        streaming: kube_client::build_streaming(&lower_access, &user_agent).context("--lower-kubeconfig")?,
    };
    Ok(Clusters { upper, account, upper_builder, lower_access, lower })
}

async fn open(source: AccessSource, metrics: &KubeMetrics) -> Result<Access> {
    let flag = source.flag;
    Access::open(source, metrics).await.context(flag)
}

/// The identity of the upper cluster; waits until it answers. `None` at shutdown. `gate` says what is waited for.
pub(crate) async fn upper_identity(
    account: &Client,
    gate: &Gate,
    shutdown: &CancellationToken,
) -> Result<Option<String>> {
    ask("upper", account, Some(gate), shutdown).await
}

/// What is known of the lower cluster.
pub(crate) struct LowerIdentity {
    /// UID of its kube-system namespace.
    pub uid: String,
    /// Version of its API server, as `v1.36.3`.
    pub version: String,
    /// Asked just now. If not, it is what our Node remembers, and must be compared once the cluster answers.
    pub confirmed: bool,
}

/// The identity of the lower cluster.
///
/// If it does not answer while our Node is there already, the Node's memory serves: the Node's lease must be kept
/// during an outage of the lower cluster, also by a process that was restarted in the middle of it. Otherwise this
/// waits. `None` at shutdown.
///
/// The upper cluster by another address is refused.
pub(crate) async fn lower_identity(
    lower: &Client,
    node_client: &Client,
    node_name: &str,
    upper_uid: &str,
    gate: &Gate,
    shutdown: &CancellationToken,
) -> Result<Option<LowerIdentity>> {
    gate.set_unready("waiting for the first answer of the lower cluster");
    match tokio::time::timeout(FIRST_ANSWER_MAX, cluster_uid(lower)).await {
        Ok(Ok(uid)) => return identified(uid, lower, upper_uid).await.map(Some),
        // It answers, so that the Node's memory is not needed.
        Ok(Err(error)) if is_refusal(&error) => {
            let Some(uid) = ask("lower", lower, Some(gate), shutdown).await? else { return Ok(None) };
            return identified(uid, lower, upper_uid).await.map(Some);
        }
        Ok(Err(error)) => warn!(error = said(&error), "the lower cluster does not answer"),
        Err(_) => warn!("the lower cluster does not answer within {} s", FIRST_ANSWER_MAX.as_secs()),
    }
    if let Ok(Some(node)) = Api::<Node>::all(node_client.clone()).get_opt(node_name).await
        && let Some(uid) = node.metadata.annotations.as_ref().and_then(|all| all.get(annotation::LOWER_CLUSTER))
    {
        info!("going on with what the Node remembers of the lower cluster");
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        let version = info.map(|info| info.kubelet_version.clone()).unwrap_or_default();
        return Ok(Some(LowerIdentity { uid: uid.clone(), version, confirmed: false }));
    }
    let Some(uid) = ask("lower", lower, Some(gate), shutdown).await? else { return Ok(None) };
    identified(uid, lower, upper_uid).await.map(Some)
}

/// The lower cluster has said who it is.
async fn identified(uid: String, lower: &Client, upper_uid: &str) -> Result<LowerIdentity> {
    if uid == upper_uid {
        bail!(
            "--upper-kubeconfig and --lower-kubeconfig lead to the same cluster (kube-system UID {uid}) by two \
             addresses: a cluster cannot be a node of itself. Give the kubeconfig of another cluster as \
             --lower-kubeconfig"
        );
    }
    Ok(LowerIdentity { uid, version: version(lower).await, confirmed: true })
}

/// Waits until the lower cluster answers and compares it with what we took it for.
pub(crate) async fn confirm_lower(lower: &Client, expected: &str, shutdown: &CancellationToken) -> Result<()> {
    match ask("lower", lower, None, shutdown).await? {
        Some(uid) if uid != expected => bail!(
            "--lower-kubeconfig leads to another cluster (kube-system UID {uid}) than the one that this Node stood for \
             ({expected}); give the old cluster's kubeconfig, or delete the Node to begin anew with this one"
        ),
        Some(_) | None => Ok(()),
    }
}

/// Asks a cluster for its identity until it answers, or until it has refused us for [`REFUSAL_PATIENCE`].
async fn ask(
    which: &str,
    client: &Client,
    gate: Option<&Gate>,
    shutdown: &CancellationToken,
) -> Result<Option<String>> {
    if let Some(gate) = gate {
        gate.set_unready(format!("waiting for the first answer of the {which} cluster"));
    }
    let mut backoff = Backoff::new(Duration::from_millis(200), ASK_AGAIN_MAX);
    let mut reminded: Option<Instant> = None;
    let mut refusing: Option<Instant> = None;
    loop {
        let answer = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            answer = cluster_uid(client) => answer,
        };
        match answer {
            Ok(uid) => return Ok(Some(uid)),
            Err(error) if is_refusal(&error) => {
                if let Some(gate) = gate {
                    gate.set_unready(format!("the {which} cluster refuses us: {}", said(&error)));
                }
                if refusing.is_none() {
                    warn!(
                        error = said(&error),
                        "the {which} cluster refuses us; asking again, for it may just have started"
                    );
                    // Its pauses may have grown long while it was away.
                    backoff.reset();
                }
                if refusing.get_or_insert_with(Instant::now).elapsed() >= REFUSAL_PATIENCE {
                    return Err(refused(which, &error));
                }
            }
            Err(error) => {
                refusing = None;
                if let Some(gate) = gate {
                    gate.set_unready(format!("the {which} cluster does not answer: {}", said(&error)));
                }
                if reminded.is_none_or(|at| at.elapsed() >= REMINDER_INTERVAL) {
                    warn!(
                        error = said(&error),
                        "the {which} cluster does not answer; are `server` and `certificate-authority` in \
                         --{which}-kubeconfig right? Trying on"
                    );
                    reminded = Some(Instant::now());
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

async fn cluster_uid(client: &Client) -> Result<String, kube::Error> {
    let namespace = Api::<Namespace>::all(client.clone()).get(IDENTITY_NAMESPACE).await?;
    Ok(namespace.metadata.uid.unwrap_or_default())
}

/// "Who are you", or "you may not".
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401 || status.code == 403)
}

fn refused(which: &str, error: &kube::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "the {which} cluster refuses us: {}. Check the credentials in --{which}-kubeconfig, and that the rights in \
         deploy/rbac-{which}.yaml are applied there",
        said(error)
    )
}

async fn version(client: &Client) -> String {
    match client.apiserver_version().await {
        Ok(version) => version.git_version,
        Err(error) => {
            warn!(error = said(&error), "could not read the lower cluster's version");
            String::new()
        }
    }
}
