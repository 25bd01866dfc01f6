//! Keeps the clusters of `tests/offload` running, so that one of its tests takes seconds. See CONTRIBUTING.md.

use anyhow::Result;
use tensile_e2e::{Cluster, KwokNodes, kept::Kept};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<()> {
    tensile_e2e::install_crypto();
    let mut terminate = signal(SignalKind::terminate())?;
    let lower = |name: &'static str| Cluster::builder(name).nodes(KwokNodes::count(3)).start();
    let (upper, a, b) = tokio::try_join!(Cluster::builder("upper").start(), lower("lower-a"), lower("lower-b"))?;
    let clusters = [&upper, &a, &b];
    let written = Kept::of(&clusters).write()?;
    for cluster in clusters {
        println!("{:<8} kubectl --kubeconfig {}", cluster.name(), cluster.admin_kubeconfig().display());
    }
    println!(
        "\nrun a test against them: TENSILE_KEPT=1 cargo test -p tensile-e2e --test offload -- NAME\nCtrl-C removes them"
    );
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    drop(written);
    tokio::join!(upper.stop(), a.stop(), b.stop());
    Ok(())
}
