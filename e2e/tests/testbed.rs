//! The testbed proves itself: what other tests take for granted is shown here once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, WatchEvent, WatchParams};
use tensile_e2e::{Cluster, KwokNodes, RealNodes, SHELL_IMAGE, Seen, Tool, Tools, eventually};

/// The time limit for what takes a second or two on an idle machine.
const SOON: Duration = Duration::from_mins(1);

async fn cluster_with_nodes(name: &str, count: usize) -> Cluster {
    // Building tools is not part of a cluster's start time.
    for tool in
        [Tool::Etcd, Tool::KubeApiserver, Tool::KubeControllerManager, Tool::KubeScheduler, Tool::Kubectl, Tool::Kwok]
    {
        Tools::get(tool).await.unwrap();
    }
    let started = Instant::now();
    let cluster = Cluster::builder(name).nodes(KwokNodes::count(count)).start().await.unwrap();
    eprintln!("the cluster {name} with {count} KWOK nodes started in {:.1} s", started.elapsed().as_secs_f64());
    cluster
}

fn pods_ready(pods: &[Pod]) -> usize {
    pods.iter()
        .filter(|pod| {
            pod.status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| c.type_ == "Ready" && c.status == "True")
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_becomes_ready_on_kwok_nodes_and_its_pods_have_addresses_of_their_own() {
    let cluster = cluster_with_nodes("deploy", 3).await;
    cluster
        .apply_yaml(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 12
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: example.test/web:1}]
",
        )
        .await
        .unwrap();
    let deployments: Api<Deployment> = Api::default_namespaced(cluster.client());
    eventually("12 replicas are ready", SOON, || async {
        let status = deployments.get("web").await?.status.unwrap_or_default();
        Ok(Seen::when(status.ready_replicas == Some(12), status.ready_replicas))
    })
    .await
    .unwrap();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let listed = pods.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(pods_ready(&listed), 12);
    let addresses: std::collections::BTreeSet<String> =
        listed.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect();
    assert_eq!(addresses.len(), 12, "{addresses:?}");
    cluster.stop().await;
}

/// One cluster for the tests that only need some nodes; each works in its own namespace.
async fn shared() -> &'static Cluster {
    static SHARED: tokio::sync::OnceCell<Cluster> = tokio::sync::OnceCell::const_new();
    SHARED.get_or_init(|| cluster_with_nodes("shared", 2)).await
}

async fn namespace(cluster: &Cluster, name: &str) -> Api<Pod> {
    cluster.apply_yaml(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}")).await.unwrap();
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(cluster.client(), name);
    eventually("the namespace has its default service account", SOON, || async {
        Ok(Seen::when(accounts.get_opt("default").await?.is_some(), "none"))
    })
    .await
    .unwrap();
    Api::namespaced(cluster.client(), name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_and_another_one_fails_with_its_exit_code() {
    let cluster = shared().await;
    let pods = namespace(cluster, "jobs").await;
    cluster
        .apply_yaml(
            "
apiVersion: batch/v1
kind: Job
metadata: {name: good, namespace: jobs}
spec:
  completions: 3
  parallelism: 3
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{name: main, image: example.test/job:1}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: bad, namespace: jobs}
spec:
  backoffLimit: 0
  template:
    metadata: {annotations: {tensile.test/run-for: 100ms, tensile.test/exit-code: '7'}}
    spec:
      restartPolicy: Never
      containers: [{name: main, image: example.test/job:1}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: endless, namespace: jobs}
spec:
  template:
    metadata: {annotations: {tensile.test/run-for: never}}
    spec:
      restartPolicy: Never
      containers: [{name: main, image: example.test/job:1}]
",
        )
        .await
        .unwrap();
    let jobs: Api<Job> = Api::namespaced(cluster.client(), "jobs");
    eventually("one Job is complete and one has failed", SOON, || async {
        let condition = |job: &Job, wanted: &str| {
            job.status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| c.type_ == wanted && c.status == "True")
        };
        let (good, bad) = (jobs.get("good").await?, jobs.get("bad").await?);
        Ok(Seen::when(condition(&good, "Complete") && condition(&bad, "Failed"), (good.status, bad.status)))
    })
    .await
    .unwrap();
    let failed = pods.list(&ListParams::default().labels("job-name=bad")).await.unwrap().items;
    let terminated = failed[0].status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0]
        .state
        .as_ref()
        .unwrap()
        .terminated
        .clone()
        .unwrap();
    assert_eq!(terminated.exit_code, 7);
    let endless = pods.list(&ListParams::default().labels("job-name=endless")).await.unwrap().items;
    assert_eq!(endless[0].status.as_ref().unwrap().phase.as_deref(), Some("Running"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_shows_its_containers_terminated_before_it_goes() {
    let cluster = shared().await;
    let pods = namespace(cluster, "deletes").await;
    cluster
        .apply_yaml("{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: deletes}, spec: {containers: [{name: a, image: x.test/a:1}, {name: b, image: x.test/b:1}]}}")
        .await
        .unwrap();
    eventually("the pod is ready", SOON, || async {
        let pod = pods.get("p").await?;
        Ok(Seen::when(pods_ready(std::slice::from_ref(&pod)) == 1, pod.status))
    })
    .await
    .unwrap();

    let version = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut watch = pods.watch(&WatchParams::default().timeout(60), &version).await.unwrap().boxed();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    let mut seen_terminated = false;
    while let Some(event) = watch.try_next().await.unwrap() {
        match event {
            WatchEvent::Modified(pod) => {
                let statuses = pod.status.unwrap_or_default().container_statuses.unwrap_or_default();
                seen_terminated |= statuses.len() == 2
                    && statuses
                        .iter()
                        .all(|s| s.state.as_ref().is_some_and(|s| s.terminated.is_some() && s.running.is_none()));
            }
            WatchEvent::Deleted(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen_terminated, "the pod went away without terminated containers");
    assert!(pods.get_opt("p").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_readiness_gates_is_ready_as_long_as_they_are_true() {
    let cluster = shared().await;
    let pods = namespace(cluster, "gates").await;
    cluster
        .apply_yaml("{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: gates}, spec: {readinessGates: [{conditionType: tensile.test/gate}], containers: [{name: a, image: x.test/a:1}]}}")
        .await
        .unwrap();
    let condition = |pod: &Pod, wanted: &str| {
        pod.status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .find(|c| c.type_ == wanted)
            .map(|c| c.status.clone())
    };
    eventually("the containers are ready and the pod is not", SOON, || async {
        let pod = pods.get("p").await?;
        let both = (condition(&pod, "ContainersReady"), condition(&pod, "Ready"));
        Ok(Seen::when(both == (Some("True".to_owned()), Some("False".to_owned())), both))
    })
    .await
    .unwrap();
    for wanted in ["True", "False", "True"] {
        let patch = serde_json::json!({"status": {"conditions": [{"type": "tensile.test/gate", "status": wanted}]}});
        pods.patch_status("p", &kube::api::PatchParams::default(), &kube::api::Patch::Strategic(&patch)).await.unwrap();
        eventually("the pod follows its gate", SOON, || async {
            let pod = pods.get("p").await?;
            Ok(Seen::when(condition(&pod, "Ready").as_deref() == Some(wanted), pod.status))
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_node_runs_a_shell_pod_whose_logs_and_exit_codes_can_be_read() {
    if let Err(reason) = RealNodes::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    for tool in Tool::ALL {
        Tools::get(tool).await.unwrap();
    }
    let started = Instant::now();
    let cluster = Cluster::builder("real").real_nodes(2).verify_kubelets(true).start().await.unwrap();
    eprintln!("a cluster with 2 real nodes started in {:.1} s", started.elapsed().as_secs_f64());
    // One pod on each node; the first serves, the second fetches from it by address and by Service.
    cluster
        .apply_yaml(&format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  nodeName: real-0
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: {SHELL_IMAGE}
    command: [sh, -c, 'mkdir /www && echo hello from web >/www/index.html && echo serving && exec httpd -f -p 8080 -h /www']
---
apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  nodeName: real-1
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: client, image: {SHELL_IMAGE}, command: [sleep, '3600']}}
"
        ))
        .await
        .unwrap();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    eventually("both pods are ready", SOON, || async {
        let listed = pods.list(&ListParams::default()).await?.items;
        Ok(Seen::when(pods_ready(&listed) == 2, listed.into_iter().map(|pod| pod.status).collect::<Vec<_>>()))
    })
    .await
    .unwrap();
    let kubectl = |arguments: &[&str]| {
        let output = cluster.kubectl().args(arguments).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    assert_eq!(kubectl(&["logs", "web"]), (Some(0), "serving\n".to_owned()));
    assert_eq!(kubectl(&["exec", "client", "--", "sh", "-c", "exit 7"]).0, Some(7));
    let address = pods.get("web").await.unwrap().status.unwrap().pod_ip.unwrap();
    let by_address = format!("http://{address}:8080/");
    assert_eq!(
        kubectl(&["exec", "client", "--", "wget", "-qO-", &by_address]),
        (Some(0), "hello from web\n".to_owned())
    );
    let services: Api<k8s_openapi::api::core::v1::Service> = Api::default_namespaced(cluster.client());
    let service = services.get("web").await.unwrap().spec.unwrap().cluster_ip.unwrap();
    // Not `wget -T`: Debian's static busybox dies of it with a segmentation fault.
    let by_service = format!("http://{service}/");
    eventually("the Service leads to the pod", SOON, || async {
        let answer = kubectl(&["exec", "client", "--", "timeout", "2", "wget", "-qO-", &by_service]);
        Ok(Seen::when(answer == (Some(0), "hello from web\n".to_owned()), answer))
    })
    .await
    .unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_killed_paused_or_without_etcd_comes_back_with_its_data() {
    let cluster = Cluster::builder("outages").scheduler(false).controller_manager(false).start().await.unwrap();
    let url = cluster.server_url().to_owned();
    cluster.apply_yaml("{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {key: value}}").await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let present = || async { Ok(Seen::when(maps.get("kept").await?.data.is_some(), "no data")) };

    cluster.stop_apiserver();
    maps.get("kept").await.expect_err("a killed API server answered");
    cluster.start_apiserver().await.unwrap();
    assert_eq!(cluster.server_url(), url);
    eventually("the data is there after a kill", SOON, present).await.unwrap();

    cluster.pause_apiserver();
    let hanging = tokio::time::timeout(Duration::from_millis(500), maps.get("kept")).await;
    assert!(hanging.is_err(), "a stopped API server answered: {hanging:?}");
    cluster.resume_apiserver();
    eventually("the data is there after a pause", SOON, present).await.unwrap();

    cluster.stop_etcd();
    cluster.start_etcd().await.unwrap();
    eventually("the data is there after etcd was away", SOON, present).await.unwrap();
    assert!(cluster.metrics().await.unwrap().contains("apiserver_request_total"));
    let apiserver = cluster.apiserver_process().unwrap();
    assert!(apiserver.cpu_seconds().unwrap() > 0.0);
    assert!(apiserver.rss_peak_mib().unwrap() > 50.0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_get_kubeconfigs_and_what_they_ask_for_is_audited() {
    let cluster = shared().await;
    namespace(cluster, "tensile-accounts").await;
    cluster
        .apply_yaml(
            "
{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: tensile-accounts}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: testbed-readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects:
- {kind: ServiceAccount, name: reader, namespace: tensile-accounts}
- {kind: Group, name: testbed-second-group, apiGroup: rbac.authorization.k8s.io}
",
        )
        .await
        .unwrap();
    let by_token = cluster.service_account_kubeconfig("tensile-accounts", "reader").await.unwrap();
    let by_certificate = cluster.user_kubeconfig("tensile-user", &["testbed-group", "testbed-second-group"]).unwrap();
    for kubeconfig in [&by_token, &by_certificate] {
        let get = |what: &'static str| {
            cluster.kubectl().arg("--kubeconfig").arg(kubeconfig).args(["get", what, "-A"]).output().unwrap()
        };
        eventually("the account may list pods", SOON, || async {
            let output = get("pods");
            Ok(Seen::when(output.status.success(), String::from_utf8_lossy(&output.stderr)))
        })
        .await
        .unwrap();
        let refused = get("secrets");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("forbidden"), "{refused:?}");
    }
    for user in ["system:serviceaccount:tensile-accounts:reader", "tensile-user"] {
        eventually("both answers are in the audit log", SOON, || async {
            let entries = cluster.audit_log(user)?;
            let codes: Vec<(&str, u16)> = entries.iter().map(|e| (e.resource.as_str(), e.code)).collect();
            let both = codes.contains(&("pods", 200)) && codes.contains(&("secrets", 403));
            Ok(Seen::when(both, codes))
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_certificate_request_is_signed() {
    let cluster = shared().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "somebody");
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
    cluster
        .apply_yaml(&format!(
            "
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: somebody}}
spec: {{signerName: kubernetes.io/kube-apiserver-client, usages: ['client auth'], request: {encoded}}}
"
        ))
        .await
        .unwrap();
    let approved =
        cluster.approve_csrs(|request| request.spec.signer_name.ends_with("apiserver-client")).await.unwrap();
    assert_eq!(approved, ["somebody"]);
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client());
    eventually("the request has its certificate", SOON, || async {
        let status = requests.get("somebody").await?.status.unwrap_or_default();
        Ok(Seen::when(status.certificate.is_some(), status.conditions))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kwok_touches_no_node_but_its_own() {
    let cluster = shared().await;
    let pods = namespace(cluster, "foreign").await;
    cluster
        .apply_yaml(
            "
{apiVersion: v1, kind: Node, metadata: {name: foreign}}
---
apiVersion: v1
kind: Pod
metadata: {name: on-foreign, namespace: foreign}
spec:
  nodeName: foreign
  tolerations: [{operator: Exists}]
  containers: [{name: a, image: x.test/a:1}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-kwok, namespace: foreign}
spec:
  nodeName: kwok-0
  containers: [{name: a, image: x.test/a:1}]
",
        )
        .await
        .unwrap();
    // The second pod came later: when it runs, KWOK has passed over the first.
    eventually("the pod on a KWOK node runs", SOON, || async {
        let pod = pods.get("on-kwok").await?;
        Ok(Seen::when(pods_ready(std::slice::from_ref(&pod)) == 1, pod.status))
    })
    .await
    .unwrap();
    let untouched = pods.get("on-foreign").await.unwrap().status.unwrap();
    assert_eq!(untouched.phase.as_deref(), Some("Pending"), "{untouched:?}");
    assert!(untouched.start_time.is_none() && untouched.container_statuses.is_none(), "{untouched:?}");
    let nodes: Api<Node> = Api::all(cluster.client());
    let info = nodes.get("foreign").await.unwrap().status.unwrap_or_default().node_info.unwrap_or_default();
    assert_eq!(info.kubelet_version, "");
}
