//! Events about lower pods, told again on the upper pods, where their user looks.
//!
//! By default warnings only: they are what a user must act on, and the others (a lower scheduler alone reports one for
//! each pod) would cost a write to the upper API server for each pod of a burst.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Event as LowerEvent;
use kube::Api;
use tensile_chassis::{
    readiness::Gate,
    watch::{Event, WatchMetrics, WatchOptions, watch},
};
use tokio_util::sync::CancellationToken;

use super::sync::Syncer;
use crate::{
    events::{PodRef, Severity},
    names::Key,
};

/// Which events of lower pods appear above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LowerEvents {
    /// Warnings: failed scheduling, image pulls, probes, crashes.
    Warnings,
    /// All.
    All,
    /// None.
    None,
}

/// Tells lower events above until told to stop.
pub(super) async fn relay(
    syncer: Arc<Syncer>,
    which: LowerEvents,
    gate: Gate,
    metrics: WatchMetrics,
    shutdown: CancellationToken,
) {
    let mut selector = "involvedObject.kind=Pod".to_owned();
    match which {
        LowerEvents::Warnings => selector.push_str(",type=Warning"),
        LowerEvents::All => {}
        LowerEvents::None => {
            gate.set_ready();
            return shutdown.cancelled().await;
        }
    }
    let options = WatchOptions { field_selector: Some(selector), metrics, ..WatchOptions::new("lower-events") };
    let mut events = watch(Api::<LowerEvent>::all(syncer.lower.api.clone()), options, gate);
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(event) = events.next() => event,
            else => return,
        };
        // What a list brings was told before, by this process or the one before it.
        if let Event::Applied(event) = event
            && syncer.fence.check().is_ok()
        {
            tell(&syncer, event);
        }
    }
}

fn tell(syncer: &Syncer, event: LowerEvent) {
    let involved = event.involved_object;
    let (Some(namespace), Some(name)) = (involved.namespace, involved.name) else { return };
    let Some((key, uid)) = syncer.index.upper_of(&Key::new(namespace, name), involved.uid.as_deref()) else { return };
    let severity = if event.type_.as_deref() == Some("Warning") { Severity::Warning } else { Severity::Normal };
    let subject = PodRef { namespace: &key.namespace, name: &key.name, uid: &uid };
    let note = format!("[{}] {}", syncer.settings.cluster_name, event.message.unwrap_or_default());
    syncer.recorder.pod(subject, severity, event.reason.unwrap_or_default(), note);
}
