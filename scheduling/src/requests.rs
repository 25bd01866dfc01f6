//! What a pod asks for, as kube-scheduler counts it (`PodRequests` in component-helpers 0.36).
//!
//! Sums are exact and rounded once at the end, for 1.5m + 1.5m of CPU is 3m and not 4m.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    quantity::Amount,
    resources::{CPU, HUGEPAGES_PREFIX, MEMORY, PODS, ResourceError, Resources, canonical},
};

/// A core/v1 ResourceList.
pub(crate) type List = BTreeMap<String, Quantity>;

/// What a pod asks of a node: the larger of what its containers need while running and while any init container runs, with
/// sidecars (KEP-753), pod-level resources (KEP-2837), resizes in progress (KEP-1287, KEP-5419) and overhead (KEP-688), and one
/// of `pods`.
///
/// Resource claims that stand for node resources (KEP-5517) are not counted: the feature is alpha and off in 1.36.
pub fn pod_requests(pod: &Pod) -> Result<Resources, ResourceError> {
    let mut total = Sum::default();
    if let Some(spec) = &pod.spec {
        let resize = Resize::of(pod.status.as_ref());
        total = containers(spec, &resize)?;
        pod_level(spec, &resize, &mut total)?;
        total.add_list(spec.overhead.as_ref())?;
    }
    let mut requests: Resources = total.0.iter().map(|(name, amount)| (*name, canonical(name, *amount))).collect();
    requests.set(PODS, 1);
    Ok(requests)
}

/// The sum of the containers and sidecars, or the most that an init container needs with the sidecars started before it.
fn containers<'a>(spec: &'a PodSpec, resize: &Resize<'a>) -> Result<Sum<'a>, ResourceError> {
    let mut total = Sum::default();
    for container in &spec.containers {
        total.add(&resize.container(container)?);
    }
    let mut sidecars = Sum::default();
    let mut start = Sum::default();
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            let requests = resize.container(container)?;
            total.add(&requests);
            sidecars.add(&requests);
            start.raise_to(&sidecars);
        } else {
            let mut step = sidecars.clone();
            step.add_list(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))?;
            start.raise_to(&step);
        }
    }
    total.raise_to(&start);
    Ok(total)
}

/// Requests of the pod as a whole take the place of the containers' sum, resource by resource.
fn pod_level<'a>(spec: &'a PodSpec, resize: &Resize<'a>, total: &mut Sum<'a>) -> Result<(), ResourceError> {
    let Some(requests) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) else {
        return Ok(());
    };
    let status =
        resize.status.and_then(|status| Some((status.resources.as_ref()?, status.allocated_resources.as_ref())));
    let effective = match status {
        Some((actuated, allocated)) => resize.effective(Some(requests), actuated.requests.as_ref(), allocated)?,
        None => Sum::of(Some(requests))?,
    };
    for name in requests.keys().filter(|name| is_pod_level(name)) {
        *total.entry(name) = effective.get(name);
    }
    Ok(())
}

/// Resources that may be requested for a pod as a whole.
fn is_pod_level(name: &str) -> bool {
    name == CPU || name == MEMORY || name.starts_with(HUGEPAGES_PREFIX)
}

/// How far a resize in place has come. Until it is done, the pod holds the most of what is wanted, allotted and in force.
struct Resize<'a> {
    status: Option<&'a PodStatus>,
    /// The node can never grant it, so what is wanted does not count.
    infeasible: bool,
}

impl<'a> Resize<'a> {
    fn of(status: Option<&'a PodStatus>) -> Self {
        let pending = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "PodResizePending"));
        Self { status, infeasible: pending.is_some_and(|pending| pending.reason.as_deref() == Some("Infeasible")) }
    }

    /// Requests of a container or sidecar.
    fn container(&self, container: &'a Container) -> Result<Sum<'a>, ResourceError> {
        let wanted = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let status = self.status_of(&container.name);
        match status.and_then(|status| Some((status.resources.as_ref()?, status.allocated_resources.as_ref()))) {
            Some((actuated, allocated)) => self.effective(wanted, actuated.requests.as_ref(), allocated),
            None => Sum::of(wanted),
        }
    }

    fn status_of(&self, name: &str) -> Option<&'a ContainerStatus> {
        let status = self.status?;
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten()).find(|status| status.name == name)
    }

    fn effective(
        &self,
        wanted: Option<&'a List>,
        actuated: Option<&'a List>,
        allocated: Option<&'a List>,
    ) -> Result<Sum<'a>, ResourceError> {
        let mut most = Sum::of(actuated)?;
        most.raise_to(&Sum::of(allocated)?);
        if !self.infeasible {
            most.raise_to(&Sum::of(wanted)?);
        }
        Ok(most)
    }
}

/// Exact amounts by name. Pods name two or three resources, so a list beats a map.
#[derive(Clone, Default)]
struct Sum<'a>(Vec<(&'a str, Amount)>);

impl<'a> Sum<'a> {
    fn of(list: Option<&'a List>) -> Result<Self, ResourceError> {
        let mut sum = Self::default();
        sum.add_list(list)?;
        Ok(sum)
    }

    fn get(&self, name: &str) -> Amount {
        self.0.iter().find(|(own, _)| *own == name).map_or(Amount::ZERO, |(_, amount)| *amount)
    }

    fn entry(&mut self, name: &'a str) -> &mut Amount {
        let place = self.0.iter().position(|(own, _)| *own == name).unwrap_or_else(|| {
            self.0.push((name, Amount::ZERO));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }

    fn add_list(&mut self, list: Option<&'a List>) -> Result<(), ResourceError> {
        for (name, quantity) in list.into_iter().flatten() {
            let amount = Amount::parse_of(name, quantity)?;
            let entry = self.entry(name);
            *entry = entry.plus(amount);
        }
        Ok(())
    }

    fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.entry(name);
            *entry = entry.plus(*amount);
        }
    }

    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.entry(name);
            *entry = (*entry).max(*amount);
        }
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
