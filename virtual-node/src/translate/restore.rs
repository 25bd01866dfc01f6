//! Puts back what the webhook took out of the upper scheduler's way (annotation `tensile.dev/cluster-selector`, or
//! tensile-kube's `clusterSelector`).
//!
//! What stayed in the spec holds too, so the two are joined as Kubernetes joins constraints: required node affinity is
//! an OR of terms, so both sides' terms are multiplied; lists that are ANDs or preferences are appended.

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, NodeSelector, NodeSelectorTerm, Pod, PodAffinity, PodAntiAffinity, PodSpec,
};
use tensile_proto::codec::{ClusterSelector, HostPort};

use super::{Refusal, affinity};
use crate::context::Settings;

/// Reason of every refusal here.
const REASON: &str = "InvalidClusterSelector";

/// Protocol of a port that names none.
const PROTOCOL_DEFAULT: &str = "TCP";

/// Most terms that joining may give: each is evaluated on every lower node.
const TERMS_MAX: usize = 256;

/// Restores the moved constraints of `upper` into `spec`, whose own constraints are translated already.
///
/// # Errors
/// Reason `InvalidClusterSelector`, with the path of the field.
pub(super) fn restore(spec: &mut PodSpec, upper: &Pod, settings: &Settings) -> Result<(), Refusal> {
    let Some(annotations) = &upper.metadata.annotations else { return Ok(()) };
    let moved =
        ClusterSelector::of_annotations(annotations).map_err(|error| Refusal::new(REASON, error.to_string()))?;
    let Some(moved) = moved else { return Ok(()) };
    if moved.host_network {
        spec.host_network = Some(true);
    }
    for (index, port) in moved.host_ports.iter().enumerate() {
        restore_port(spec, index, port)?;
    }
    let mut constraints = PodSpec {
        node_selector: Some(moved.node_selector),
        affinity: moved.affinity,
        tolerations: Some(moved.tolerations),
        topology_spread_constraints: Some(moved.topology_spread_constraints),
        ..PodSpec::default()
    };
    // They were moved before the upper API server could merge label keys into them.
    affinity::map_constraints(&mut constraints, None, settings);

    if let Some(selector) = constraints.node_selector {
        spec.node_selector.get_or_insert_default().extend(selector);
    }
    append_new(&mut spec.tolerations, constraints.tolerations);
    append_new(&mut spec.topology_spread_constraints, constraints.topology_spread_constraints);
    if let Some(moved) = constraints.affinity {
        join(spec.affinity.get_or_insert_default(), moved)?;
    }
    Ok(())
}

fn restore_port(spec: &mut PodSpec, index: usize, moved: &HostPort) -> Result<(), Refusal> {
    let mut containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    let is_it = |port: &ContainerPort| {
        port.container_port == moved.container_port
            && port.protocol.as_deref().unwrap_or(PROTOCOL_DEFAULT) == moved.protocol
            && port.host_port.is_none_or(|own| own == moved.host_port)
    };
    let ports = containers.find(|container: &&mut Container| container.name == moved.container).map(|it| &mut it.ports);
    let port = ports.into_iter().flatten().flatten().find(|port| is_it(port));
    let Some(port) = port else {
        return Err(Refusal::new(
            REASON,
            format!(
                "annotation tensile.dev/cluster-selector: hostPorts[{index}]: container {:?} has no free port {}/{}; \
                 create the pod again so that the webhook writes the annotation anew",
                moved.container, moved.container_port, moved.protocol
            ),
        ));
    };
    port.host_port = Some(moved.host_port);
    port.host_ip.clone_from(&moved.host_ip);
    Ok(())
}

fn append_new<T: PartialEq>(list: &mut Option<Vec<T>>, moved: Option<Vec<T>>) {
    for item in moved.into_iter().flatten() {
        let list = list.get_or_insert_default();
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn join(own: &mut Affinity, moved: Affinity) -> Result<(), Refusal> {
    if let Some(moved) = moved.node_affinity {
        let own = own.node_affinity.get_or_insert_default();
        let required = own.required_during_scheduling_ignored_during_execution.take();
        own.required_during_scheduling_ignored_during_execution =
            join_required(required, moved.required_during_scheduling_ignored_during_execution)?;
        append_new(
            &mut own.preferred_during_scheduling_ignored_during_execution,
            moved.preferred_during_scheduling_ignored_during_execution,
        );
    }
    if let Some(PodAffinity {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: preferred,
    }) = moved.pod_affinity
    {
        let own = own.pod_affinity.get_or_insert_default();
        append_new(&mut own.required_during_scheduling_ignored_during_execution, required);
        append_new(&mut own.preferred_during_scheduling_ignored_during_execution, preferred);
    }
    if let Some(PodAntiAffinity {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: preferred,
    }) = moved.pod_anti_affinity
    {
        let own = own.pod_anti_affinity.get_or_insert_default();
        append_new(&mut own.required_during_scheduling_ignored_during_execution, required);
        append_new(&mut own.preferred_during_scheduling_ignored_during_execution, preferred);
    }
    Ok(())
}

/// Both must hold: (a or b) and (c or d) is (a and c) or (a and d) or (b and c) or (b and d).
fn join_required(own: Option<NodeSelector>, moved: Option<NodeSelector>) -> Result<Option<NodeSelector>, Refusal> {
    let (own, moved) = match (own, moved) {
        (Some(own), Some(moved)) => (own.node_selector_terms, moved.node_selector_terms),
        (only, None) | (None, only) => return Ok(only),
    };
    if own.len() * moved.len() > TERMS_MAX {
        return Err(Refusal::new(
            REASON,
            format!(
                "annotation tensile.dev/cluster-selector: affinity.nodeAffinity: {} terms joined with {} of the spec give \
                 more than {TERMS_MAX}; use fewer terms with more values each",
                moved.len(),
                own.len()
            ),
        ));
    }
    let mut terms = Vec::with_capacity(own.len() * moved.len());
    for one in &own {
        for other in &moved {
            let mut term: NodeSelectorTerm = one.clone();
            append_new(&mut term.match_expressions, other.match_expressions.clone());
            append_new(&mut term.match_fields, other.match_fields.clone());
            terms.push(term);
        }
    }
    Ok(Some(NodeSelector { node_selector_terms: terms }))
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
