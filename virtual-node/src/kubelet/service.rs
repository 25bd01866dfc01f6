//! One request from its arrival to its answer: who calls, may they, what do they want.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
};

use http::{HeaderValue, Request, StatusCode, header};
use rustls_pki_types::CertificateDer;
use tensile_chassis::admin::Metrics;
use tracing::{debug, warn};

use super::{
    Lookup, PodLookup,
    authentication::{Authenticator, Unauthenticated},
    authorization::{Authorizer, Unauthorized},
    health::healthy,
    logs,
    metrics::{KubeletMetrics, OpenStream, Streams},
    own_metrics::own_metrics,
    pods,
    reply::{Reply, text},
    route::Route,
    stream::{self, Lives},
    usage::Usage,
};
use crate::names::Key;

/// What it takes to answer.
pub struct Service {
    /// This node's name.
    pub node_name: String,
    /// Finds out who calls.
    pub authenticator: Authenticator,
    /// Finds out what they may.
    pub authorizer: Authorizer,
    /// Finds lower pods.
    pub lookup: Arc<dyn PodLookup>,
    /// Lists the upper pods of this node, as the node.
    pub upper: kube::Client,
    /// Opens streams in the lower cluster.
    pub lower: kube::Client,
    /// Bounds the open streams.
    pub streams: Streams,
    /// CPU and memory of the node and its pods.
    pub usage: Usage,
    /// The metrics of this process.
    pub own_metrics: OnceLock<Metrics>,
    /// Counts answers.
    pub metrics: KubeletMetrics,
    /// Where streams live.
    pub lives: Lives,
}

/// Why a request is not served, in words for the one who asked.
struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let mut reply = text(refusal.status, refusal.text);
        if refusal.status == StatusCode::TOO_MANY_REQUESTS {
            reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        reply
    }
}

impl Service {
    /// Answers a request that came over a connection with this chain of client certificates.
    pub async fn answer<B>(
        &self,
        chain: &[CertificateDer<'static>],
        mut request: Request<B>,
    ) -> Result<Reply, Infallible> {
        let route = Route::of(request.uri().path());
        let reply = match self.admit(chain, &request).await {
            Ok(()) => self.serve(&route, &mut request).await.unwrap_or_else(Reply::from),
            Err(refusal) => refusal.into(),
        };
        self.metrics.answered(route.label(), reply.status().as_u16());
        Ok(reply)
    }

    /// Lets authenticated and authorized callers in, whatever they ask for: strangers do not learn what there is.
    async fn admit<B>(&self, chain: &[CertificateDer<'static>], request: &Request<B>) -> Result<(), Refusal> {
        let caller = self.authenticator.authenticate(chain, request.headers()).await.map_err(|error| {
            if let Unauthenticated::Review(_) = error {
                warn!(%error, "a caller of the kubelet API could not be authenticated");
            } else {
                debug!(%error, "a caller of the kubelet API was not authenticated");
            }
            Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized")
        })?;
        let path = request.uri().path();
        self.authorizer.authorize(&caller, request.method(), path).await.map_err(|error| match &error {
            Unauthorized::Forbidden { .. } => {
                debug!(%error, path, "a caller of the kubelet API was refused");
                Refusal::new(StatusCode::FORBIDDEN, error.to_string())
            }
            Unauthorized::Review { source, .. } => {
                warn!(%error, cause = %source, "a caller of the kubelet API could not be authorized");
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
        })
    }

    async fn serve<B>(&self, route: &Route, request: &mut Request<B>) -> Result<Reply, Refusal> {
        if !route.allows(request.method()) {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"));
        }
        match route {
            Route::Healthz => Ok(healthy(request.uri().path(), request.uri().query())),
            Route::Pods => Ok(pods::list(&self.upper, &self.node_name, self.place(route)?).await),
            Route::Logs { pod, container } => {
                let lower = self.lower_pod(pod, Some(container))?;
                let query = request.uri().query().unwrap_or_default();
                Ok(logs::open(&self.lower, &lower, container, query, self.place(route)?).await)
            }
            Route::Stream { kind, pod, container } => {
                let container = container.as_deref();
                let lower = self.lower_pod(pod, container)?;
                let place = self.place(route)?;
                Ok(stream::open(request, &self.lower, *kind, &lower, container, place, &self.lives).await)
            }
            Route::Metrics => Ok(own_metrics(self.own_metrics.get())),
            Route::ResourceMetrics => Ok(self.usage.resource_metrics().await),
            Route::Summary => Ok(self.usage.summary().await),
            Route::ContainerMetrics => Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "a virtual node has no containers of its own: the kubelets of the lower cluster serve their metrics. CPU \
                 and memory of this node's pods are at /metrics/resource",
            )),
            Route::NotServed => {
                Err(Refusal::new(StatusCode::NOT_FOUND, "a virtual node does not serve this part of the kubelet API"))
            }
            Route::Unknown => Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
        }
    }

    /// The lower pod, or a kubelet's words for why there is none.
    fn lower_pod(&self, pod: &Key, container: Option<&str>) -> Result<Key, Refusal> {
        match self.lookup.lower_of(pod) {
            Lookup::Found { lower } => Ok(lower),
            Lookup::NotYet { why } => {
                let container = container.map(|name| format!("container \"{name}\" in ")).unwrap_or_default();
                let why = format!("{container}pod \"{}\" is waiting to start: {why}", pod.name);
                Err(Refusal::new(StatusCode::BAD_REQUEST, why))
            }
            Lookup::Unknown => Err(Refusal::new(
                StatusCode::NOT_FOUND,
                format!("pod \"{}\" does not exist on node \"{}\"", pod.name, self.node_name),
            )),
        }
    }

    fn place(&self, route: &Route) -> Result<OpenStream, Refusal> {
        self.streams.open(route.label()).ok_or_else(|| {
            Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "as many streams as --kubelet-streams-max allows are open; try again later, or raise it",
            )
        })
    }
}
