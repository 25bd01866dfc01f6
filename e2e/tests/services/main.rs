//! Services across clusters, by name, on real nodes: CoreDNS resolves, kube-proxy forwards, containers answer.
//!
//! ```text
//!  upper (real node) ──▶ vn-a ──▶ lower a (real node)
//!                   └──▶ vn-b ──▶ lower b (real node)
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::large_futures)] // a world of three clusters is started by one

use std::{collections::BTreeSet, fmt::Write as _, process::Output, time::Duration};

use k8s_openapi::api::{
    core::v1::{Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use tensile_e2e::{Cluster, ClusterDns, RealNodes, SHELL_IMAGE, Seen, VirtualNode, eventually};
use tokio::task::spawn_blocking;

/// The time limit for what takes some seconds on an idle machine.
const SOON: Duration = Duration::from_mins(2);

const NAMESPACE: &str = "shop";

/// Where each server runs: its name, and what puts it there.
const PLACES: [(&str, &str); 3] = [
    ("at-a", "{tensile.dev/cluster: vn-a}"),
    ("at-b", "{tensile.dev/cluster: vn-b}"),
    ("at-upper", "{tensile.test/real: 'true'}"),
];

/// A server in each cluster that says its name, a Service for each, one for all, and one for all without an address.
fn servers() -> String {
    let mut yaml = String::new();
    let service = |name: &str, cluster_ip: &str, selector: &str| {
        format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  clusterIP: {cluster_ip}
  selector: {selector}
  ports: [{{name: http, port: 80, targetPort: www}}, {{name: other, port: 81, targetPort: 8081}}]
---"
        )
    };
    for (name, selector) in PLACES {
        write!(
            yaml,
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: server, at: {name}}}}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  nodeSelector: {selector}
  tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
  hostname: {name}
  subdomain: headless
  containers:
    - name: main
      image: {SHELL_IMAGE}
      imagePullPolicy: Never
      command: [sh, -c, 'mkdir /www /other; echo {name} >/www/index.html; echo other {name} >/other/index.html;
        httpd -p 8080 -h /www; httpd -f -p 8081 -h /other']
      ports: [{{name: www, containerPort: 8080}}]
      readinessProbe: {{httpGet: {{port: 8081, path: /index.html}}, periodSeconds: 1}}
---"
        )
        .unwrap();
        yaml += &service(name, "", &format!("{{at: {name}}}")).replace("  clusterIP: \n", "");
    }
    yaml += &service("all", "", "{app: server}").replace("  clusterIP: \n", "");
    yaml += &service("headless", "None", "{app: server}");
    yaml
}

/// A shell line that prints the addresses behind a Service's name. A static busybox has a resolver in nslookup only (its wget dies).
fn resolve(service: &str) -> String {
    format!("nslookup -type=a {service}.{NAMESPACE}.svc.cluster.local | sed -n 's/^Address: //p'")
}

/// A shell line that fetches a page from a Service, by its name.
fn get(service: &str, port: u16) -> String {
    let request = "printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n'";
    format!("{request} | nc -w 5 $({} | head -n 1) {port} | tail -n 1", resolve(service))
}

struct World {
    upper: Cluster,
    a: Cluster,
    b: Cluster,
    vn_a: VirtualNode,
    /// The other virtual node and the name servers, which only have to live.
    _beside: (VirtualNode, [ClusterDns; 3]),
}

impl World {
    async fn start() -> Self {
        tensile_e2e::install_crypto();
        let cluster = |name: &str| Cluster::builder(name).real_nodes(1).dns(true).start();
        let (upper, a, b) = tokio::try_join!(cluster("upper"), cluster("a"), cluster("b")).unwrap();
        let vn = |lower, name| VirtualNode::builder(&upper, lower).name(name).start();
        let (vn_a, vn_b, one, two, three) = tokio::try_join!(
            vn(&a, "vn-a"),
            vn(&b, "vn-b"),
            ClusterDns::start(&upper),
            ClusterDns::start(&a),
            ClusterDns::start(&b)
        )
        .unwrap();
        let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
        upper.apply_yaml(&namespace).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(upper.client(), NAMESPACE);
        eventually("the namespace has its ServiceAccount", SOON, || async {
            Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
        })
        .await
        .unwrap();
        Self { upper, a, b, vn_a, _beside: (vn_b, [one, two, three]) }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.upper.client(), NAMESPACE)
    }

    /// Runs a shell line in a pod, through the upper cluster.
    async fn sh(&self, pod: &str, line: &str) -> Output {
        let mut command = self.upper.kubectl();
        command.args(["-n", NAMESPACE, "exec", pod, "--", "sh", "-c", line]);
        spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Waits until a shell line in a pod prints this.
    async fn until_says(&self, pod: &str, line: &str, wanted: &str) {
        eventually(&format!("`{line}` in pod {pod} prints {wanted:?}"), SOON, || async {
            let output = self.sh(pod, line).await;
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let seen = format!("{said:?} {}", String::from_utf8_lossy(&output.stderr));
            Ok(Seen::when(output.status.success() && said == wanted, seen))
        })
        .await
        .unwrap();
    }

    async fn until_ready(&self, count: usize) {
        let pods = self.pods();
        eventually(&format!("{count} pods are Ready"), SOON, || async {
            let all = pods.list(&ListParams::default()).await?.items;
            let ready = |pod: &Pod| {
                let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
                conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
            };
            let states: Vec<_> = all.iter().map(|pod| (&pod.metadata.name, ready(pod), &pod.status)).collect();
            Ok(Seen::when(states.iter().filter(|state| state.1).count() == count, format!("{states:?}")))
        })
        .await
        .unwrap();
    }

    /// The addresses that a Service has in a cluster.
    async fn addresses(&self, cluster: &Cluster, service: &str) -> anyhow::Result<BTreeSet<String>> {
        let slices: Api<EndpointSlice> = Api::namespaced(cluster.client(), NAMESPACE);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let slices = slices.list(&of_service).await?.items;
        Ok(slices
            .into_iter()
            .flat_map(|slice| slice.endpoints.unwrap_or_default())
            .flat_map(|one| one.addresses)
            .collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_one_cluster_reaches_servers_in_every_other_by_the_services_names() {
    if let Err(reason) = RealNodes::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut w = World::start().await;
    w.upper.apply_yaml(&servers()).await.unwrap();
    w.until_ready(PLACES.len()).await;

    // From each cluster to each, by two ports.
    for (client, _) in PLACES {
        for (server, _) in PLACES {
            w.until_says(client, &get(server, 80), server).await;
        }
        w.until_says(client, &get("at-b", 81), "other at-b").await;
        // One Service for all: after a while each has answered.
        let twenty = format!("for i in $(seq 20); do {}; done | sort -u | xargs", get("all", 80));
        w.until_says(client, &twenty, "at-a at-b at-upper").await;
        // Without an address of its own: one name for each pod, and all addresses by the Service's.
        w.until_says(client, &get("at-a.headless", 8080), "at-a").await;
        w.until_says(client, &format!("{} | wc -l", resolve("headless")), "3").await;
        // Short names are found in the pod's own namespace.
        w.until_says(client, "grep -c '^search shop.svc.cluster.local ' /etc/resolv.conf", "1").await;
    }

    // A pod that goes is no endpoint any more, in any cluster.
    w.pods().delete("at-upper", &DeleteParams::default()).await.unwrap();
    let all = w.addresses(&w.upper, "all").await.unwrap();
    eventually("two endpoints are left in each cluster", SOON, || async {
        let seen =
            [w.addresses(&w.upper, "all").await?, w.addresses(&w.a, "all").await?, w.addresses(&w.b, "all").await?];
        Ok(Seen::when(seen.iter().all(|these| these.len() == 2 && *these == seen[0]), (all.len(), seen)))
    })
    .await
    .unwrap();

    // Where pods of other clusters cannot be reached, they are not told of.
    w.vn_a.term(SOON).await.unwrap();
    w.vn_a = VirtualNode::builder(&w.upper, &w.a).name("vn-a").args(["--network=isolated"]).start().await.unwrap();
    let own: Pod = w.pods().get("at-a").await.unwrap();
    let own: BTreeSet<String> = own.status.unwrap().pod_ip.into_iter().collect();
    eventually("only the cluster's own pod is told there", SOON, || async {
        let (here, there) = (w.addresses(&w.a, "all").await?, w.addresses(&w.b, "all").await?);
        Ok(Seen::when(here == own && there.len() == 2, (here, there)))
    })
    .await
    .unwrap();
    w.until_says("at-a", &get("all", 80), "at-a").await;
}
