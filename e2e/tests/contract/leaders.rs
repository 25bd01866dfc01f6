//! What survives a change of leaders.

use tensile_e2e::{Seen, VirtualNode, claim::PortClaim, eventually};
use tensile_proto::v1::{self, RefusalReason, cluster_client::ClusterClient};
use tonic::Code;

use crate::{
    caller::{Reserver, room_for},
    world::{LONG, SOON, fit, spec, template, world},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_keeps_the_room_of_bound_pods_and_promises_nothing_before_it_knows_all() {
    let world = world().await;
    let space = world.namespace("leader").await;
    let start = async |port: &PortClaim, first: bool| {
        let mut args = world.authority.args("vn-pair");
        args.push(format!("--grpc-address=127.0.0.1:{}", port.port()));
        args.extend(
            ["--reservation-ttl-max=3", "--lease-duration=3", "--lease-renew-deadline=2", "--lease-retry=0.3"]
                .map(Into::into),
        );
        let node = VirtualNode::builder(&world.upper, &world.lower).name("vn-pair").args(args);
        if first { node.start().await.unwrap() } else { node.installed().start().await.unwrap() }
    };
    let ports = [PortClaim::new().unwrap(), PortClaim::new().unwrap()];
    let leader = start(&ports[0], true).await;
    let _standby = start(&ports[1], false).await;
    let channel =
        |port: &PortClaim| world.authority.channel(&format!("127.0.0.1:{}", port.port()), "vn-pair", "multi-scheduler");
    let spec = spec("leader", 3);
    let templated = template("leader", &spec);

    // Only one of the two answers, and the other says who does.
    let mut other = ClusterClient::new(channel(&ports[1]));
    let status = other.watch(v1::WatchRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("leads") && status.message().contains("tensile.dev/endpoint"), "{status}");

    // One pod is bound with its reservation, and its lower pod is never seen by the leader: it dies at once.
    let uid = space.create("ours", &spec).await;
    let mut caller = Reserver::open(channel(&ports[0])).await;
    caller.send(room_for(&uid, templated.clone(), LONG)).await;
    let answer = caller.answer().await;
    let before = answer.revision.unwrap();
    let reserved = crate::caller::outcome(answer).unwrap();
    assert_eq!(reserved.ttl.unwrap().seconds, 3, "the operator's limit");
    leader.kill9();
    space.bind("ours", "vn-pair", Some(&reserved.lower_node)).await;

    // The standby takes over under a later epoch, and does not sell the room meanwhile.
    let opened = eventually("the new leader makes reservations", SOON, || {
        let channel = channel(&ports[1]);
        let request = room_for("another", templated.clone(), LONG);
        async move {
            let mut leads = ClusterClient::new(channel.clone());
            if let Err(status) = leads.release(v1::ReleaseRequest::default()).await {
                return Ok(Seen::NotYet(format!("{status}")));
            }
            let mut caller = Reserver::open(channel).await;
            caller.send(request).await;
            let answer = caller.answer().await;
            let epoch = answer.revision.unwrap().epoch;
            match crate::caller::outcome(answer) {
                Err(refused) if refused.reason() == RefusalReason::NotOpen => Ok(Seen::NotYet("not open".into())),
                answered => Ok(Seen::Done((epoch, answered))),
            }
        }
    });
    let (epoch, answered) = opened.await.unwrap();
    assert!(epoch > before.epoch, "epoch {epoch} after {}", before.epoch);
    assert_eq!(answered.unwrap_err().reason(), RefusalReason::NoRoom, "the bound pod's room was sold");
    assert_eq!(space.lower_node_of("ours").await, reserved.lower_node);
    let mut client = ClusterClient::new(channel(&ports[1]));
    assert_eq!(fit(&mut client, templated, 9).await.fits, 0);
}
