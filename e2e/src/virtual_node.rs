//! Runs our `virtual-node` binary between two clusters, installed as an administrator would.

use std::{
    env,
    ffi::OsString,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Node};
use kube::Api;
use parking_lot::Mutex;
use tensile_proto::vocabulary::label;

use crate::{
    claim::PortClaim,
    eventually::{Seen, eventually},
    process::Supervised,
    run::Run,
    site::Site,
    testbed::{Cluster, apply_yaml},
};

/// Names the binary to run in place of the one beside this program.
const BINARY_VARIABLE: &str = "TENSILE_VIRTUAL_NODE";

/// Where the rights that an installation grants are written down; `{{NODE_NAME}}` stands for the node's name.
const RBAC_UPPER: &str = include_str!("../../virtual-node/deploy/rbac-upper.yaml");
const RBAC_LOWER: &str = include_str!("../../virtual-node/deploy/rbac-lower.yaml");

/// Namespace and name of the account that these files make.
const ACCOUNT: (&str, &str) = ("tensile-system", "virtual-node");

/// From the start of the process to a Node that is Ready: a second on an idle machine.
const READY_DEADLINE: Duration = Duration::from_mins(1);

/// How long a process that must fail may take to do so.
const FAILURE_DEADLINE: Duration = Duration::from_secs(30);

/// What to start.
pub struct VirtualNodeBuilder {
    upper: Site,
    lower: Site,
    name: String,
    args: Vec<String>,
    address: Option<IpAddr>,
    approve: bool,
    install: bool,
    binary: &'static str,
    env: Vec<(&'static str, OsString)>,
}

/// A running virtual-node; stopped when dropped.
pub struct VirtualNode {
    name: String,
    command: Mutex<Command>,
    dir: PathBuf,
    admin: PortClaim,
    upper: kube::Client,
    process: Mutex<Supervised>,
    _ports: [PortClaim; 2],
}

impl VirtualNode {
    /// A virtual-node named `vn` that makes `lower` a node of `upper`.
    pub fn builder(upper: &Cluster, lower: &Cluster) -> VirtualNodeBuilder {
        Self::between(Site::of(upper), Site::of(lower))
    }

    /// A virtual-node named `vn` between two clusters that need not be the testbed's.
    pub fn between(upper: Site, lower: Site) -> VirtualNodeBuilder {
        VirtualNodeBuilder {
            upper,
            lower,
            name: "vn".to_owned(),
            args: Vec::new(),
            address: None,
            approve: true,
            install: true,
            binary: "virtual-node",
            env: Vec::new(),
        }
    }

    /// The Node's name.
    pub fn node_name(&self) -> &str {
        &self.name
    }

    /// How the process ended, or nothing while it runs.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.process.lock().exited()
    }

    /// Kills the process without warning, and waits until it is gone.
    pub fn kill9(&self) {
        self.process.lock().kill9();
    }

    /// Stops the process in its tracks (SIGSTOP), as a machine does that is suspended.
    pub fn pause(&self) {
        self.process.lock().pause();
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self) {
        self.process.lock().resume();
    }

    /// Asks the process to end and waits until it has.
    pub async fn term(&self, limit: Duration) -> Result<ExitStatus> {
        self.process.lock().term();
        self.ended(limit).await
    }

    /// Waits until the process has ended.
    pub async fn ended(&self, limit: Duration) -> Result<ExitStatus> {
        eventually("the virtual-node has ended", limit, || async {
            Ok(match self.process.lock().exited() {
                Some(status) => Seen::Done(status),
                None => Seen::NotYet("running".to_owned()),
            })
        })
        .await
    }

    /// Starts the process again, with the same arguments, and waits until it is ready.
    pub async fn restart(&self) -> Result<()> {
        self.restart_without_waiting()?;
        self.until_ready().await
    }

    /// Starts the process again, with the same arguments.
    pub fn restart_without_waiting(&self) -> Result<()> {
        *self.process.lock() = Supervised::spawn(&self.name, &self.command.lock(), &self.dir)?;
        Ok(())
    }

    /// All that the process has logged, over restarts.
    pub fn logs(&self) -> String {
        fs::read_to_string(self.process.lock().log_path()).unwrap_or_default()
    }

    /// Where probes and metrics are served.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin.port())
    }

    /// CPU time used so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.process.lock().cpu_seconds()
    }

    /// Peak resident memory so far.
    pub fn rss_peak_mib(&self) -> Result<f64> {
        self.process.lock().rss_peak_mib()
    }

    /// Resident memory now.
    pub fn rss_mib(&self) -> Result<f64> {
        self.process.lock().rss_mib()
    }

    /// File descriptors open now.
    pub fn open_files(&self) -> Result<usize> {
        self.process.lock().open_files()
    }

    /// Waits until its Node is Ready, after [`VirtualNodeBuilder::start_without_waiting`].
    pub async fn until_ready(&self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.upper.clone());
        eventually(&format!("virtual node {} is Ready", self.name), READY_DEADLINE, || async {
            // One lock for both: a second one inside the condition would wait for the first for ever.
            let ended = {
                let process = self.process.lock();
                process.exited().map(|status| (status, process.log_tail(20)))
            };
            if let Some((status, last_words)) = ended {
                bail!("the process has ended ({status}): {last_words}");
            }
            let ready = self.probe().await;
            if ready.as_deref().is_ok_and(|text| text.starts_with("ready")) {
                let node = nodes.get(&self.name).await?;
                let status = node.status.unwrap_or_default();
                let is_ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
                return Ok(Seen::when(is_ready && status.allocatable.is_some(), status.conditions));
            }
            Ok(Seen::NotYet(format!("{ready:?}; its last words:\n{}", self.process.lock().log_tail(8))))
        })
        .await
    }

    /// What the admin port answers to a path, whatever its status.
    pub async fn get(&self, path: &str) -> Result<String> {
        http_get(self.admin.port(), path).await
    }

    async fn probe(&self) -> Result<String> {
        http_get(self.admin.port(), "/ready").await
    }

    /// The process's own metrics.
    pub async fn metrics(&self) -> Result<String> {
        http_get(self.admin.port(), "/metrics").await
    }
}

impl VirtualNodeBuilder {
    /// Names the Node.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Further arguments of the command.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Leaves the node's certificate request to the test.
    #[must_use]
    pub fn unapproved(mut self) -> Self {
        self.approve = false;
        self
    }

    /// The address to publish, if not the one that [`Site::address_of_this_machine`] finds.
    #[must_use]
    pub fn address(mut self, address: Option<IpAddr>) -> Self {
        self.address = address;
        self
    }

    /// Another binary than `virtual-node`, built beside it.
    #[must_use]
    pub fn binary(mut self, name: &'static str) -> Self {
        self.binary = name;
        self
    }

    /// Adds to the process's environment.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// The rights are granted already; see [`rights`].
    #[must_use]
    pub fn installed(mut self) -> Self {
        self.install = false;
        self
    }

    /// Installs the rights, starts the process, approves its certificate, and waits until the Node is Ready.
    pub async fn start(self) -> Result<VirtualNode> {
        let node = self.launch().await?;
        let name = node.name.clone();
        tokio::select! {
            ready = node.until_ready() => ready?,
            never = approve_when_asked(&self.upper, &name), if self.approve => never?,
        }
        Ok(node)
    }

    /// Starts the process and waits until it has ended by itself; gives its exit code and what it logged.
    pub async fn start_expecting_failure(self) -> Result<(Option<i32>, String)> {
        let node = self.launch().await?;
        let status = eventually("the virtual-node ends by itself", FAILURE_DEADLINE, || async {
            let process = node.process.lock();
            Ok(process.exited().map_or_else(|| Seen::NotYet(process.log_tail(5)), Seen::Done))
        });
        let status = tokio::select! {
            status = status => status?,
            never = approve_when_asked(&self.upper, &node.name), if self.approve => { never?; bail!("approval ended") }
        };
        Ok((status.code(), node.logs()))
    }

    /// Installs the rights and starts the process; whatever comes of it is left to the test.
    pub async fn start_without_waiting(self) -> Result<VirtualNode> {
        self.launch().await
    }

    async fn launch(&self) -> Result<VirtualNode> {
        let Self { upper, lower, name, args, .. } = self;
        let rights = rights(name);
        if self.install {
            apply_yaml(&upper.client(), &rights.upper).await.context("rights in the upper cluster")?;
            apply_yaml(&lower.client(), &rights.lower).await.context("rights in the lower cluster")?;
        }
        let dir = Run::current()?.new_dir(name)?;
        let kubeconfigs = [dir.join("upper.kubeconfig"), dir.join("lower.kubeconfig")];
        for (site, path) in [(upper, &kubeconfigs[0]), (lower, &kubeconfigs[1])] {
            site.account_kubeconfig(ACCOUNT.0, ACCOUNT.1, path).await?;
        }
        let address = self.address.map_or_else(|| upper.address_of_this_machine(), Ok)?;
        let (kubelet, grpc, admin) = (PortClaim::new()?, PortClaim::new()?, PortClaim::new()?);
        let mut command = Command::new(binary(self.binary)?);
        command
            .args(["--node-name", name, "--cluster-name", name])
            .arg("--upper-kubeconfig")
            .arg(&kubeconfigs[0])
            .arg("--lower-kubeconfig")
            .arg(&kubeconfigs[1])
            .args(["--node-address", &address.to_string()])
            .arg(format!("--kubelet-address={address}:{}", kubelet.port()))
            .arg(format!("--grpc-address={address}:{}", grpc.port()))
            .arg(format!("--admin-address=127.0.0.1:{}", admin.port()))
            .args(args)
            .env("TENSILE_LOG", env::var("TENSILE_LOG").unwrap_or_else(|_| "info,tensile_virtual_node=debug".into()))
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        let process = Supervised::spawn(name, &command, &dir)?;
        Ok(VirtualNode {
            name: name.clone(),
            command: Mutex::new(command),
            dir,
            admin,
            upper: upper.client(),
            process: Mutex::new(process),
            _ports: [kubelet, grpc],
        })
    }
}

/// What an installation grants to the account of one virtual node, as YAML.
pub struct Rights {
    /// In the upper cluster.
    pub upper: String,
    /// In the lower cluster.
    pub lower: String,
}

/// The rights of the virtual node named `node_name`.
pub fn rights(node_name: &str) -> Rights {
    let of = |text: &str| text.replace("{{NODE_NAME}}", node_name);
    Rights { upper: of(RBAC_UPPER), lower: of(RBAC_LOWER) }
}

/// Approves certificate requests of this virtual node whenever they come, as an install step would. Ends with an
/// error only.
async fn approve_when_asked(upper: &Site, node_name: &str) -> Result<()> {
    // A label is anybody's to write; who asked is not.
    let account = format!("system:serviceaccount:{}:{}", ACCOUNT.0, ACCOUNT.1);
    loop {
        let of_node = |request: &CertificateSigningRequest| {
            let labelled = request.metadata.labels.as_ref().and_then(|labels| labels.get(label::VIRTUAL_NODE));
            labelled.is_some_and(|name| *name == node_name) && request.spec.username.as_ref() == Some(&account)
        };
        // An API server that is away must not end the start; the wait for Ready has the deadline.
        if let Ok(approved) = upper.approve(of_node).await
            && !approved.is_empty()
        {
            tracing::info!(?approved, node_name, "approved the node's certificate");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The binary to run: the one built beside this program, or for `virtual-node` the one named by the environment.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY_VARIABLE)
        && name == "virtual-node"
    {
        return Ok(path.into());
    }
    let me = env::current_exe().context("finding this program")?;
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| Path::is_file(path));
    found.with_context(|| {
        let me = me.display();
        if name == "virtual-node" {
            format!(
                "no {name} beside {me}: build it with `cargo build -p tensile-virtual-node`, or name one in {BINARY_VARIABLE}"
            )
        } else {
            format!("no {name} beside {me}: build it as scripts/test does")
        }
    })
}

/// A GET without a client library: the answer's body, whatever its status.
pub(crate) async fn http_get(port: u16, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let get = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), get).await.context("no answer in 5 s")??;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
