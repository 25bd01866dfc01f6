//! A cluster that a virtual-node joins: one of the testbed's, or one that somebody has already.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::testbed::{Clients, Cluster, account_token, approve_requests, write_private};

/// A cluster as its administrator reaches it.
#[derive(Clone)]
pub struct Site {
    name: String,
    kubeconfig: PathBuf,
    server_url: String,
    client: Client,
    address: Option<IpAddr>,
}

impl Site {
    /// One of the testbed's clusters.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`Cluster::client`] does.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            name: cluster.name().to_owned(),
            kubeconfig: cluster.admin_kubeconfig().to_owned(),
            server_url: cluster.server_url().to_owned(),
            client: cluster.client(),
            address: Some(cluster.host_address()),
        }
    }

    /// The cluster of a kubeconfig's current context. Nothing is sent to it yet.
    pub async fn open(name: &str, kubeconfig: &Path) -> Result<Self> {
        let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
        let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("using {}", kubeconfig.display()))?;
        Ok(Self {
            name: name.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            server_url: config.cluster_url.to_string(),
            client: Clients::new(kubeconfig).await?.get()?,
            address: None,
        })
    }

    /// The name given to it here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The API server's URL.
    pub fn server_url(&self) -> &str {
        &self.server_url
    }

    /// Acts as the administrator.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The address of this machine that the cluster's API server most likely reaches: the one from which this machine
    /// would talk to it.
    pub fn address_of_this_machine(&self) -> Result<IpAddr> {
        if let Some(address) = self.address {
            return Ok(address);
        }
        let url: http::Uri = self.server_url.parse().with_context(|| format!("the server URL {}", self.server_url))?;
        let host = url.host().context("the server URL has no host")?.trim_matches(['[', ']']);
        let local = |target: SocketAddr| -> std::io::Result<IpAddr> {
            // Connecting a datagram socket sends nothing: it only makes the kernel choose a route.
            let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(target)?;
            Ok(socket.local_addr()?.ip())
        };
        std::net::ToSocketAddrs::to_socket_addrs(&(host, url.port_u16().unwrap_or(443)))
            .and_then(|mut addresses| addresses.next().ok_or_else(|| std::io::Error::other("no address")))
            .and_then(local)
            .with_context(|| format!("finding this machine's address towards {host}; give it with --node-address"))
    }

    /// Writes a kubeconfig for a service account, with a token of one day, to `path`.
    pub(crate) async fn account_kubeconfig(&self, namespace: &str, account: &str, path: &Path) -> Result<()> {
        let token = account_token(&self.client, namespace, account).await?;
        let admin = Kubeconfig::read_from(&self.kubeconfig)
            .with_context(|| format!("reading {}", self.kubeconfig.display()))?;
        let text = with_token(admin, &token).with_context(|| format!("using {}", self.kubeconfig.display()))?;
        write_private(path, &text)
    }

    /// Approves the certificate requests that `wanted` picks; see [`Cluster::approve_csrs`].
    pub(crate) async fn approve(&self, wanted: impl Fn(&CertificateSigningRequest) -> bool) -> Result<Vec<String>> {
        approve_requests(&self.client, wanted).await
    }
}

/// The way to the current context's cluster, with a token in place of the administrator's credentials.
fn with_token(mut admin: Kubeconfig, token: &str) -> Result<String> {
    let current = admin.current_context.clone().context("it has no current-context")?;
    let context = admin
        .contexts
        .iter()
        .find(|context| context.name == current)
        .and_then(|named| named.context.clone())
        .with_context(|| format!("its current context {current} is not in it"))?;
    admin.clusters.retain(|cluster| cluster.name == context.cluster);
    let clusters: Value = serde_json::to_value(&admin.clusters)?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": clusters,
        "users": [{"name": "account", "user": {"token": token}}],
        "contexts": [{"name": current, "context": {"cluster": context.cluster, "user": "account"}}],
        "current-context": current,
    })
    .to_string())
}
