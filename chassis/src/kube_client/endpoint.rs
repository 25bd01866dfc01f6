//! A client's connections to where its [`Access`] leads now.

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, header::USER_AGENT};
use hyper::body::Incoming;
use kube::client::Body;
use parking_lot::Mutex;
use tower::{BoxError, ServiceExt};

use super::{
    BuildError,
    access::{Access, Snapshot},
    connect::{Connector, HttpVersions, Pings, Transport},
    fenced,
    guarded::PoolFence,
};

/// A pool of connections that follows its access. Requests under way end where they began; the next ones go where the
/// access leads then.
pub(super) struct Endpoint {
    access: Access,
    versions: HttpVersions,
    pings: Pings,
    user_agent: HeaderValue,
    /// For a pool of a leader's writes.
    fence: Option<PoolFence>,
    /// The connections, and what they were made from.
    pool: Mutex<(Arc<Connector>, Transport)>,
}

impl Endpoint {
    pub(super) fn new(
        access: &Access,
        versions: HttpVersions,
        pings: Pings,
        user_agent: &HeaderValue,
    ) -> Result<Self, BuildError> {
        let connector = access.current().connector.clone();
        let pool = Mutex::new((connector.clone(), connector.transport(versions, pings)?));
        Ok(Self { access: access.clone(), versions, pings, user_agent: user_agent.clone(), fence: None, pool })
    }

    /// The same for writes that only a leader may make: its connections break when it leads no more.
    pub(super) fn of_leader(
        access: &Access,
        versions: HttpVersions,
        pings: Pings,
        user_agent: &HeaderValue,
    ) -> Result<Self, BuildError> {
        let mut endpoint = Self::new(access, versions, pings, user_agent)?;
        let fence = PoolFence::default();
        let connector = access.current().connector.clone();
        let transport = connector.guarded_transport(versions, pings, Some(fence.clone()))?;
        (endpoint.fence, endpoint.pool) = (Some(fence), Mutex::new((connector, transport)));
        Ok(endpoint)
    }

    /// Sends a request, and once more when it is refused as unauthenticated and newer credentials can be had; `refused`
    /// is told of the first answer then. A request that was refused so was surely not carried out.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        refused: impl FnOnce(),
    ) -> Result<Response<Incoming>, BoxError> {
        let repeat = if self.access.may_change() { copy_of(&request) } else { None };
        let snapshot = self.access.current();
        let answer = self.send_by(&snapshot, request).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let Some(repeat) = repeat else { return Ok(answer) };
        let Some(newer) = self.access.after_refusal(snapshot.number).await else { return Ok(answer) };
        drop(answer);
        refused();
        self.send_by(&newer, repeat).await
    }

    async fn send_by(&self, snapshot: &Snapshot, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let transport = self.transport(snapshot)?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.user_agent.clone());
        for (name, value) in &snapshot.headers {
            headers.append(name, value.clone());
        }
        fenced::check(&request)?;
        if let (Some(pool), Some(fence)) = (&self.fence, fenced::fence_of(&request)) {
            pool.get_or_init(|| fence.clone());
        }
        transport.oneshot(request).await
    }

    fn transport(&self, snapshot: &Snapshot) -> Result<Transport, BuildError> {
        let mut pool = self.pool.lock();
        if !Arc::ptr_eq(&pool.0, &snapshot.connector) {
            let transport = snapshot.connector.guarded_transport(self.versions, self.pings, self.fence.clone())?;
            *pool = (snapshot.connector.clone(), transport);
        }
        Ok(pool.1.clone())
    }
}

/// `None` when the body is a stream that cannot be sent twice.
pub(super) fn copy_of(request: &Request<Body>) -> Option<Request<Body>> {
    let body = request.body().try_clone()?;
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}
