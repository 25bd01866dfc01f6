//! `Cluster.Fit`: what a request must be like, and the answer to it.

use std::collections::HashSet;

use tensile_proto::v1::{self, Counting};
use tensile_scheduling::{CountedReason, Fit, FitView};
use tonic::Status;

use super::template::{TemplateError, demand_of_template};
use crate::{capacity::CapacityLedger, context::Settings, node::Reach};

/// Limits of the contract.
const TEMPLATES_MAX: usize = 64;
const REPLICAS_MAX: u32 = 100_000;
const IGNORED_MAX: usize = 4_096;

/// Answers a request on the cluster as it is now, under the snapshot revision that it was reckoned on.
pub(super) fn answer(
    request: &v1::FitRequest,
    ledger: &CapacityLedger,
    settings: &Settings,
    reach: &Reach,
) -> Result<(u64, Vec<v1::TemplateFit>), Status> {
    let counting = check(request)?;
    let templates: Vec<_> = request
        .templates
        .iter()
        .map(|each| {
            let template = each.template.clone().unwrap_or_default();
            let demand = demand_of_template(&template, settings);
            // Absent means one.
            (template.id, each.replicas.max(1), demand)
        })
        .collect();
    if let Some(TemplateError::Malformed(message)) = templates.iter().find_map(|(.., demand)| match demand {
        Err(error @ TemplateError::Malformed(_)) => Some(error),
        _ => None,
    }) {
        return Err(Status::invalid_argument(message.clone()));
    }
    let (revision, mut view) =
        ledger.decide(|engine| (engine.snapshot().revision(), engine.view(&request.ignored_upper_uids)));
    let unreachable = unreachable(reach);
    let fits = templates.into_iter().map(|(id, replicas, demand)| match (demand, &unreachable) {
        (Err(error), _) => nowhere(id, error.message().to_owned()),
        (_, Some(message)) => nowhere(id, message.clone()),
        (Ok(demand), None) => {
            let fit = reckon(&mut view, &demand, replicas, counting);
            template_fit(id, fit)
        }
    });
    Ok((revision, fits.collect()))
}

/// What no room is promised for while the lower API server is away.
pub(super) fn unreachable(reach: &Reach) -> Option<String> {
    let Reach::Unreachable { reason, .. } = reach else { return None };
    Some(format!("the lower API server does not answer, so no room is promised: {reason}"))
}

fn reckon(view: &mut FitView, demand: &tensile_scheduling::Demand, replicas: u32, counting: Counting) -> Fit {
    match counting {
        Counting::Jointly => view.jointly(demand, replicas),
        _ => view.alone(demand, replicas),
    }
}

fn check(request: &v1::FitRequest) -> Result<Counting, Status> {
    let invalid = |message: String| Err(Status::invalid_argument(message));
    let counting = match Counting::try_from(request.counting) {
        Ok(counting @ (Counting::Alone | Counting::Jointly)) => counting,
        Ok(Counting::Unspecified) => {
            return invalid(
                "counting is missing: say COUNTING_ALONE or COUNTING_JOINTLY, for the two differ widely".into(),
            );
        }
        Err(_) => {
            return invalid(format!("counting {} is not known to this virtual-node; upgrade it", request.counting));
        }
    };
    if request.templates.len() > TEMPLATES_MAX {
        return invalid(format!("{} templates; ask for at most {TEMPLATES_MAX} at once", request.templates.len()));
    }
    if request.ignored_upper_uids.len() > IGNORED_MAX {
        return invalid(format!(
            "{} ignored UIDs; at most {IGNORED_MAX} are allowed",
            request.ignored_upper_uids.len()
        ));
    }
    if request.preemption.is_some() {
        return Err(Status::unimplemented(
            "this version of the virtual-node does not look at preemption; leave FitRequest.preemption out, or upgrade it",
        ));
    }
    let mut ids = HashSet::new();
    for each in &request.templates {
        let Some(template) = &each.template else { return invalid("a TemplateCount has no template".into()) };
        if each.replicas > REPLICAS_MAX {
            return invalid(format!(
                "template {:?}: {} replicas; ask for at most {REPLICAS_MAX}",
                template.id, each.replicas
            ));
        }
        if !ids.insert(&template.id) {
            return invalid(format!("template id {:?} stands there twice; ids name the answers", template.id));
        }
    }
    Ok(counting)
}

fn nowhere(template_id: String, message: String) -> v1::TemplateFit {
    let reason = v1::UnfitReason { message: message.clone(), ..v1::UnfitReason::default() };
    v1::TemplateFit { template_id, message, reasons: vec![reason], ..v1::TemplateFit::default() }
}

fn template_fit(template_id: String, fit: Fit) -> v1::TemplateFit {
    let classes = fit.classes.into_iter().map(|(class_id, count)| v1::ClassCount { class_id, count }).collect();
    let reasons = fit.reasons.into_iter().map(unfit_reason).collect();
    v1::TemplateFit { template_id, fits: fit.fits, classes, reasons, message: fit.message, preemption: Vec::new() }
}

/// A reason as the contract has it.
pub(super) fn unfit_reason(counted: CountedReason) -> v1::UnfitReason {
    v1::UnfitReason {
        message: counted.reason.message,
        nodes: counted.nodes,
        plugin: counted.reason.plugin.to_owned(),
        resolvable_by_preemption: counted.resolvable,
    }
}
