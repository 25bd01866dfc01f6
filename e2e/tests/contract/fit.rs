//! `Fit` against what the lower scheduler then does.

use serde_json::json;
use tensile_proto::v1::{self, placement_event::Event};

use crate::world::{fit, spec, template, world};

#[tokio::test(flavor = "multi_thread")]
async fn fit_tells_how_many_the_lower_scheduler_then_places_and_why_no_more() {
    let world = world().await;
    let space = world.namespace("fill").await;
    // Three nodes of three CPUs hold three pods of two; a host port narrows nothing here, and the tainted node takes none.
    let spec = spec("fill", 2);
    let mut client = world.client("multi-scheduler").await;
    let promised = fit(&mut client, template("fill", &spec), 50).await;
    let wanted = promised.fits as usize + 2;
    for pod in 0..wanted {
        let name = format!("p{pod}");
        space.create(&name, &spec).await;
        space.bind(&name, "vn", None).await;
    }
    let (placed, said) = space.judged(wanted).await;
    assert_eq!((placed, promised.fits), (3, 3));
    // The scheduler adds what preemption would give.
    let said = said.unwrap();
    let words = promised.message.trim_end_matches('.');
    assert!(said.starts_with(words), "promised: {words}\nsaid: {said}");

    // What the lower scheduler said is told to whoever watches placements.
    let request = v1::WatchPlacementsRequest::default();
    let mut placements = world.client("descheduler").await.watch_placements(request).await.unwrap().into_inner();
    let (mut bound, mut waiting) = (0, 0);
    while bound < placed || waiting < 2 {
        let event = tokio::time::timeout(crate::world::SOON, placements.message()).await.expect("no event");
        let Some(Event::Placement(placement)) = event.unwrap().unwrap().event else { continue };
        bound += usize::from(placement.lower_node.starts_with("fill"));
        waiting += usize::from(placement.verdict() == v1::Verdict::Unschedulable && placement.message == said);
    }

    // Tolerating the taint opens the big node, less what is on it already.
    let mut tolerant = spec.clone();
    tolerant["tolerations"] = json!([{"key": "gpu", "operator": "Exists"}]);
    assert_eq!(fit(&mut client, template("fill", &tolerant), 100).await.fits, 32);
}
