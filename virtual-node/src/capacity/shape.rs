//! What of the room the Node object shows.

use tensile_scheduling::{Room, name::Name};

use crate::node::Shape;

impl From<&Room> for Shape {
    fn from(room: &Room) -> Self {
        let text = |name: &Option<Name>| name.as_ref().map(|n| n.as_str().to_owned());
        // The upper scheduler subtracts the requests of all our pods from `allocatable`, also of those on lower nodes
        // that are cordoned or not Ready, whose size is not in the sum. Without giving that back, cordoning a lower node
        // would take its pods' room from the others.
        let plus_held = |sum: &tensile_scheduling::Resources| {
            let mut sum = sum.clone();
            sum.add(&room.held_elsewhere);
            sum.clamped().to_list()
        };
        Self {
            capacity: plus_held(&room.capacity),
            allocatable: plus_held(&room.allocatable),
            os: text(&room.os),
            arch: text(&room.arch),
            region: text(&room.region),
            zone: text(&room.zone),
            declared_features: room.declared_features.clone(),
            nodes_ready: room.nodes_ready as usize,
            nodes_total: room.nodes_total as usize,
        }
    }
}
