//! `kubectl top` and autoscaling above, by what the lower cluster measures. A metrics-server runs in each of the two
//! clusters; the upper one asks our kubelet API like that of any node.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler};
use serde_json::{Value, json};
use tensile_e2e::{Cluster, Seen, eventually};

use crate::{
    pods::is_ready,
    world::{NODE, SLEEP, Space, container, space},
};

/// From a pod's start to its figures above: each metrics-server asks every 10 s, and knows a container's rate at its second
/// or third answer. A virtual-node that another test kills begins anew.
const MEASURED: Duration = Duration::from_mins(3);

/// Burns what its limit lets it: a fifth of a core.
const BURN: &str = "trap 'exit 0' TERM; while :; do :; done";

/// One metrics API's word on one container of a pod.
#[derive(Clone, Debug, PartialEq)]
struct Figures {
    /// The end of the window, as written.
    at: String,
    window_seconds: f64,
    cpu_nanocores: f64,
    memory: String,
}

/// The container `main` of a pod, as the metrics API of a cluster tells of it; `None` when it does not.
async fn figures(cluster: &Cluster, space: &Space, pod: &str) -> Option<Figures> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods/{pod}", space.name);
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let told: Value = cluster.client().request(request).await.ok()?;
    let main = told["containers"].as_array()?.iter().find(|container| container["name"] == "main")?.clone();
    let window = told["window"].as_str()?;
    Some(Figures {
        at: told["timestamp"].as_str()?.to_owned(),
        window_seconds: window.strip_suffix('s')?.parse().ok()?,
        cpu_nanocores: nanocores(main["usage"]["cpu"].as_str()?),
        memory: main["usage"]["memory"].as_str()?.to_owned(),
    })
}

fn nanocores(text: &str) -> f64 {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = match unit {
        "n" => 1.0,
        "u" => 1e3,
        "m" => 1e6,
        "" => 1e9,
        _ => panic!("a unit that metrics-server does not use: {text}"),
    };
    number.parse::<f64>().unwrap() * scale
}

/// The lines of `kubectl top` without its heading, as words.
async fn top(space: &Space, arguments: &[&str]) -> Result<Vec<Vec<String>>, String> {
    let ended = space.run(&[&["top"], arguments, &["--no-headers"]].concat()).await;
    if ended.code != Some(0) {
        return Err(ended.err);
    }
    Ok(ended.out.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
}

fn millis(text: &str) -> u64 {
    text.strip_suffix('m').unwrap_or_else(|| panic!("no millicores: {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_top_shows_what_the_lower_cluster_measures() {
    let Some(space) = space("top").await else { return };
    let limits = json!({"limits": {"cpu": "200m", "memory": "64Mi"}});
    let mut main = container("main", BURN);
    main["resources"] = limits;
    space.pod("burner", BURN, json!({"containers": [main, container("side", SLEEP)]})).await;
    space.until("burner", "is ready", is_ready).await;

    // Every figure that the lower cluster tells is kept by its time: the upper ones come a scrape later.
    let below: Mutex<BTreeMap<String, Figures>> = Mutex::default();
    let (lower, upper) = eventually("the upper metrics API tells what the lower one told", MEASURED, || async {
        let lower = figures(&space.world.lower, &space, "burner").await;
        let upper = figures(&space.world.upper, &space, "burner").await;
        let mut below = below.lock().unwrap();
        if let Some(told) = &lower {
            below.insert(told.at.clone(), told.clone());
        }
        // The same window: not one that spans two of the lower cluster's.
        let same = upper.as_ref().and_then(|upper| {
            let lower = below.get(&upper.at)?;
            ((lower.window_seconds - upper.window_seconds).abs() < 1.5).then(|| (lower.clone(), upper.clone()))
        });
        Ok(same.map_or_else(|| Seen::NotYet(format!("above {upper:?}, below {lower:?}")), Seen::Done))
    })
    .await
    .unwrap();
    assert_eq!(upper.memory, lower.memory);
    let difference = (upper.cpu_nanocores - lower.cpu_nanocores).abs();
    assert!(difference <= lower.cpu_nanocores * 0.01, "above {upper:?}, below {lower:?}");
    assert!(lower.cpu_nanocores > 20e6, "it burns CPU: {lower:?}");

    let rows = eventually("kubectl top shows both containers", MEASURED, || async {
        let rows = top(&space, &["pod", "burner", "--containers"]).await;
        Ok(match rows {
            Ok(rows) if rows.len() == 2 => Seen::Done(rows),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await
    .unwrap();
    let row = |name: &str| rows.iter().find(|row| row[1] == name).unwrap_or_else(|| panic!("{rows:?}"));
    assert!(millis(&row("main")[2]) > 5 * millis(&row("side")[2]), "{rows:?}");

    let node = eventually("kubectl top shows the virtual node", MEASURED, || async {
        let rows = top(&space, &["node", NODE]).await;
        Ok(match rows {
            Ok(rows) if rows.len() == 1 && rows[0][1].ends_with('m') => Seen::Done(rows[0].clone()),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await
    .unwrap();
    assert!(millis(&node[1]) > 0 && node[3].ends_with("Mi"), "{node:?}");

    let raw = |path: &str| format!("/api/v1/nodes/{NODE}/proxy{path}");
    let summary: Value =
        serde_json::from_str(&space.run(&["get", "--raw", &raw("/stats/summary")]).await.ok()).unwrap();
    let burner = summary["pods"].as_array().unwrap().iter().find(|pod| pod["podRef"]["name"] == "burner").unwrap();
    let pod = space.upper::<k8s_openapi::api::core::v1::Pod>().get("burner").await.unwrap();
    assert_eq!(burner["podRef"]["uid"], *pod.metadata.uid.as_ref().unwrap());
    assert!(burner["cpu"]["usageNanoCores"].as_u64().unwrap() > 20_000_000, "{burner}");
    let own = space.run(&["get", "--raw", &raw("/metrics")]).await.ok();
    assert!(own.contains("tensile_kubelet_requests_total{"), "{own}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_horizontal_pod_autoscaler_above_scales_by_what_runs_below() {
    let Some(space) = space("autoscale").await else { return };
    let burn = BURN.replace('\'', "''");
    space
        .apply(&format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: burner, namespace: NAMESPACE}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: burner}}}}
  template:
    metadata: {{labels: {{app: burner}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
      containers:
        - name: main
          image: IMAGE
          imagePullPolicy: Never
          command: [sh, -c, '{burn}']
          resources: {{requests: {{cpu: 10m}}, limits: {{cpu: 100m}}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: burner, namespace: NAMESPACE}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: burner}}
  minReplicas: 1
  maxReplicas: 2
  metrics: [{{type: Resource, resource: {{name: cpu, target: {{type: Utilization, averageUtilization: 100}}}}}}]
"
        ))
        .await;
    let autoscaler = space.upper::<HorizontalPodAutoscaler>();
    eventually("the Deployment has grown, and both pods are ready", MEASURED, || async {
        let ready = space.upper::<Deployment>().get("burner").await?.status.and_then(|status| status.ready_replicas);
        let seen = autoscaler.get("burner").await?.status;
        Ok(Seen::when(ready == Some(2), (ready, seen)))
    })
    .await
    .unwrap();
}
