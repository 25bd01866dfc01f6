//! The virtual-node was off while its certificate ran out.

use std::{fs, path::PathBuf, process::Stdio};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tensile_e2e::{Cluster, KwokNodes, Seen, VirtualNode, eventually};

use crate::support::{SOON, deployment, make_namespace, twins, until_ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ran_out_meanwhile_is_replaced_at_the_start_and_no_pod_is_touched() {
    let (upper, lower) = tokio::try_join!(
        Cluster::builder("upper").controller_manager_arg("--cluster-signing-duration=30s").start(),
        Cluster::builder("lower").nodes(KwokNodes::count(1)).start()
    )
    .unwrap();
    let virtual_node = VirtualNode::builder(&upper, &lower).name("vn").start().await.unwrap();
    make_namespace(&upper).await;
    upper.apply_yaml(&deployment(2)).await.unwrap();
    until_ready(&upper, 2, SOON).await;
    let before = twins(&upper, &lower).await;
    virtual_node.kill9();
    let approvals = virtual_node.logs().matches("certificate approve").count();

    let stored = Stored::read(&upper).await;
    eventually("the certificate has run out", SOON, || async {
        Ok(Seen::when(!stored.is_accepted(&upper), "the API server still takes it"))
    })
    .await
    .unwrap();

    // As at the first start somebody has to approve it: who asks is no node any more.
    virtual_node.restart_without_waiting().unwrap();
    let command = eventually("the log tells how to approve the certificate", SOON, || async {
        let logs = virtual_node.logs();
        let told: Vec<&str> = logs.lines().filter(|line| line.contains("certificate approve")).collect();
        let name = told.last().filter(|_| told.len() > approvals).and_then(|line| {
            let rest = line.split_once("certificate approve ")?.1;
            rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.')).next().map(str::to_owned)
        });
        Ok(name.map_or_else(|| Seen::NotYet(logs.lines().last().unwrap_or_default().to_owned()), Seen::Done))
    })
    .await
    .unwrap();
    let approved = upper.kubectl().args(["certificate", "approve", &command]).output().unwrap();
    assert!(approved.status.success(), "{approved:?}");
    virtual_node.until_ready().await.unwrap();
    upper.apply_yaml(&deployment(3)).await.unwrap();
    until_ready(&upper, 3, SOON).await;
    let after = twins(&upper, &lower).await;
    for uid in before.0 {
        assert_eq!(after.1.get(&uid), before.1.get(&uid), "a pod was made anew");
    }
}

/// The certificate that the virtual-node keeps.
struct Stored {
    certificate: PathBuf,
    key: PathBuf,
}

impl Stored {
    async fn read(upper: &Cluster) -> Self {
        let secrets: Api<Secret> = Api::namespaced(upper.client(), "tensile-system");
        let data = secrets.get("vn-identity").await.unwrap().data.unwrap();
        let write = |key: &str| {
            let path = upper.dir().join(key);
            fs::write(&path, &data[key].0).unwrap();
            path
        };
        Self { certificate: write("tls.crt"), key: write("tls.key") }
    }

    fn is_accepted(&self, upper: &Cluster) -> bool {
        let mut kubectl = upper.kubectl();
        kubectl.arg("--client-certificate").arg(&self.certificate).arg("--client-key").arg(&self.key);
        kubectl.args(["auth", "whoami"]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }
}
