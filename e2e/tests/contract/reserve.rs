//! `Reserve` and `Release` against each other, against time, and against pods that know nothing of them.

use std::time::Duration;

use kube::api::DeleteParams;
use serde_json::json;
use tensile_e2e::{Seen, eventually};
use tensile_proto::v1::RefusalReason;

use crate::{
    caller::{Reserver, outcome, room_for},
    world::{LONG, SOON, World, fit, foreign_pod, spec, template, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn of_callers_that_race_for_the_last_room_as_many_win_as_there_is_room_and_their_pods_start_there() {
    let world = world().await;
    let space = world.namespace("race").await;
    let spec = spec("race", 2);
    let mut pods = Vec::new();
    for pod in 0..8 {
        let name = format!("p{pod}");
        pods.push((space.create(&name, &spec).await, name));
    }
    // Two schedulers ask for all eight at once, four each. There is room for four.
    let mut callers = Vec::new();
    for _ in 0..2 {
        callers.push(Reserver::open(world.channel("multi-scheduler").await).await);
    }
    let templated = template("race", &spec);
    let asking = callers.iter_mut().zip(pods.chunks(4)).map(|(caller, pods)| {
        let template = templated.clone();
        async move {
            for (uid, _) in pods {
                caller.send(room_for(uid, template.clone(), LONG)).await;
            }
            let mut answers = Vec::new();
            for _ in pods {
                answers.push(caller.answer().await);
            }
            answers
        }
    });
    let answers: Vec<_> = futures::future::join_all(asking).await.into_iter().flatten().collect();
    let mut won = Vec::new();
    for answer in answers {
        let (_, name) = pods.iter().find(|(uid, _)| *uid == answer.upper_uid).unwrap();
        match outcome(answer) {
            Ok(reserved) => won.push((name, reserved.lower_node)),
            Err(refused) => {
                assert_eq!(refused.reason(), RefusalReason::NoRoom);
                assert!(refused.message.contains("2 Insufficient cpu"), "{}", refused.message);
            }
        }
    }
    assert_eq!(won.len(), 4, "{won:?}");
    for (name, node) in &won {
        space.bind(name, "vn", Some(node)).await;
    }
    for (name, node) in &won {
        assert_eq!(space.lower_node_of(name).await, *node, "{name}");
    }
    assert_eq!(fit(&mut world.client("multi-scheduler").await, templated, 9).await.fits, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_is_neither_bound_nor_released_comes_back_when_its_time_is_over() {
    let world = world().await;
    let templated = template("ttl", &spec("ttl", 2));
    let mut client = world.client("multi-scheduler").await;
    let mut caller = Reserver::open(world.channel("multi-scheduler").await).await;
    caller.ask(room_for("one", templated.clone(), Duration::from_secs(1))).await.unwrap();
    assert_eq!(fit(&mut client, templated.clone(), 9).await.fits, 0);
    eventually("another may have the room", SOON, || {
        let mut client = client.clone();
        let template = templated.clone();
        async move {
            let fit = fit(&mut client, template, 9).await;
            Ok(Seen::when(fit.fits == 1, fit.message))
        }
    })
    .await
    .unwrap();
    caller.ask(room_for("two", templated.clone(), LONG)).await.unwrap();
    assert_eq!(caller.ask(room_for("one", templated, LONG)).await.unwrap_err().reason(), RefusalReason::NoRoom);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_reserved_place_a_foreign_pod_took_is_given_another() {
    let world = world().await;
    let space = world.namespace("foreign").await;
    let spec = spec("foreign", 3);
    let uid = space.create("ours", &spec).await;
    let templated = template("foreign", &spec);
    let mut caller = Reserver::open(world.channel("multi-scheduler").await).await;
    let first = caller.ask(room_for(&uid, templated.clone(), LONG)).await.unwrap();
    // Somebody who knows of no reservations puts a pod there.
    let mut foreign = spec.clone();
    foreign["nodeName"] = json!(first.lower_node);
    let strangers = foreign_pod(world, "foreign", foreign).await;
    eventually("another node is named", SOON, || {
        let (request, first) = (room_for(&uid, templated.clone(), LONG), first.lower_node.clone());
        async move {
            let again = Reserver::open(world.channel("multi-scheduler").await).await.ask(request).await;
            let moved = again.as_ref().is_ok_and(|again| again.lower_node != first);
            Ok(Seen::when(moved, again))
        }
    })
    .await
    .unwrap();
    // Even with the old name in its Binding the pod goes where there is room.
    space.bind("ours", "vn", Some(&first.lower_node)).await;
    assert_ne!(space.lower_node_of("ours").await, first.lower_node);
    strangers.delete("foreign", &DeleteParams::default().grace_period(0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_lower_scheduler_refuses_on_its_reserved_node_is_sent_to_another() {
    let world = world().await;
    let space = world.namespace("stray").await;
    // One that can complete: its lower pod has a finalizer to be taken off.
    let mut spec = spec("stray", 1);
    spec["restartPolicy"] = json!("Never");
    let uid = space.create("ours", &spec).await;
    let mut caller = Reserver::open(world.channel("multi-scheduler").await).await;
    let first = caller.ask(room_for(&uid, template("stray", &spec), LONG)).await.unwrap();
    // A stranger's pod there wants none of ours beside it, which nobody can see in ours.
    let mut jealous = spec.clone();
    jealous["nodeSelector"] = json!({"kubernetes.io/hostname": first.lower_node});
    jealous["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "labelSelector": {"matchLabels": {"app": "stray"}}, "namespaceSelector": {}, "topologyKey": "kubernetes.io/hostname",
    }]}});
    foreign_pod(world, "jealous", jealous).await;
    let moves = moves(world).await;
    space.bind("ours", "vn", Some(&first.lower_node)).await;
    assert_ne!(space.lower_node_of("ours").await, first.lower_node);
    assert!(self::moves(world).await > moves, "the move is not counted");
    // Above it is the same pod.
    assert_eq!(space.upper.get("ours").await.unwrap().metadata.uid, Some(uid));
}

/// How many pods were given another lower node.
async fn moves(world: &World) -> u64 {
    let metrics = world.node.metrics().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("tensile_contract_reservation_moves_total "));
    line.unwrap().parse().unwrap()
}
