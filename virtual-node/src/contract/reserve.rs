//! `Cluster.Reserve`: one caller's stream of requests, answered one by one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{Stream, stream};
use tensile_proto::v1::{self, RefusalReason, reserve_request::Kind, reserve_response::Outcome};
use tensile_scheduling::{Demand, Wish};
use tonic::{Status, Streaming};

use super::{
    fit::{unfit_reason, unreachable},
    reservations::{Held, NotHeld},
    service::ClusterService,
    stream::Term,
    template::{TemplateError, demand_of_template},
};

/// Limits of the contract.
const TEMPLATES_MAX: usize = 256;
const EXCLUDED_MAX: usize = 64;
const UID_BYTES_MAX: usize = 128;
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_mins(10);
const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// Answers the requests of a stream.
pub(super) fn answers(
    service: ClusterService,
    requests: Streaming<v1::ReserveRequest>,
    term: Term,
) -> impl Stream<Item = Result<v1::ReserveResponse, Status>> {
    let desk = Desk { service, templates: HashMap::new(), uses: 0 };
    stream::unfold(Some((desk, requests, term)), |place| async move {
        let (mut desk, mut requests, mut term) = place?;
        let request = tokio::select! {
            biased;
            status = term.ended() => return Some((Err(status), None)),
            request = requests.message() => request,
        };
        match request {
            Ok(Some(request)) => match desk.answer(request, &term) {
                Ok(answer) => Some((Ok(answer), Some((desk, requests, term)))),
                Err(status) => Some((Err(status), None)),
            },
            // The caller has said all it wanted, or is gone.
            Ok(None) | Err(_) => None,
        }
    })
}

/// What is remembered for one stream.
struct Desk {
    service: ClusterService,
    /// Demands by template id, and when each was used last.
    templates: HashMap<String, (Arc<Demand>, u64)>,
    uses: u64,
}

impl Desk {
    fn answer(&mut self, request: v1::ReserveRequest, term: &Term) -> Result<v1::ReserveResponse, Status> {
        // A deposed leader must not promise anything, whether it knows of its end or not.
        self.service.epoch(request.target.as_ref())?;
        let behind =
            request.budget_revision.map(|budget| budget.epoch < term.epoch() || budget.number < self.service.number());
        let outcome = self.judge(&request);
        let outcome_name = match &outcome {
            Outcome::Reserved(reserved) if reserved.existed => "existed",
            Outcome::Reserved(_) => "reserved",
            Outcome::Refused(refused) => refusal_name(refused.reason()),
        };
        let budget = match behind {
            None => "none",
            Some(false) => "newest",
            Some(true) => "behind",
        };
        self.service.metrics.reserved(outcome_name, budget);
        Ok(v1::ReserveResponse {
            request_id: request.request_id,
            upper_uid: request.upper_uid,
            revision: Some(term.revision(self.service.number())),
            outcome: Some(outcome),
        })
    }

    fn judge(&mut self, request: &v1::ReserveRequest) -> Outcome {
        let invalid = |message: String| refused(RefusalReason::Invalid, message);
        let uid = &request.upper_uid;
        if uid.is_empty() || uid.len() > UID_BYTES_MAX {
            return invalid("upper_uid is empty or too long; give metadata.uid of the upper pod".into());
        }
        if request.excluded_lower_nodes.len() > EXCLUDED_MAX {
            return invalid(format!(
                "{} excluded_lower_nodes; at most {EXCLUDED_MAX} are allowed",
                request.excluded_lower_nodes.len()
            ));
        }
        let ttl = match ttl(request.ttl.as_ref()) {
            Ok(ttl) => ttl,
            Err(message) => return invalid(message),
        };
        let demand = match self.demand(request) {
            Ok(demand) => demand,
            Err(refused) => return Outcome::Refused(refused),
        };
        let reach = self.service.reach.borrow().clone();
        let away = unreachable(&reach);
        let wish = Wish { class_id: &request.preferred_class_id, excluded_nodes: &request.excluded_lower_nodes };
        let reservations = &self.service.reservations;
        let mut answer = reservations.reserve(uid, &demand, wish, ttl, away.is_none());
        if let (Err(NotHeld::NoRoom(_)), false) = (&answer, wish.class_id.is_empty()) {
            // The class is a preference: when it is full, any will do.
            let wish = Wish { class_id: "", ..wish };
            answer = reservations.reserve(uid, &demand, wish, ttl, away.is_none());
        }
        match answer {
            Ok(held) => reserved(held),
            Err(NotHeld::NoRoom(fit)) => Outcome::Refused(v1::Refused {
                reason: RefusalReason::NoRoom.into(),
                message: fit.message,
                unfit: fit.reasons.into_iter().map(unfit_reason).collect(),
                retry_after: None,
            }),
            Err(NotHeld::NotOpen { after }) => Outcome::Refused(v1::Refused {
                reason: RefusalReason::NotOpen.into(),
                message: super::state::NOT_OPEN.into(),
                unfit: Vec::new(),
                retry_after: Some(duration(after)),
            }),
            Err(NotHeld::Overloaded) => refused(
                RefusalReason::Overloaded,
                "too many reservations are open here; bind or release some first".into(),
            ),
            Err(NotHeld::Unreachable) => refused(RefusalReason::Unreachable, away.unwrap_or_default()),
        }
    }

    /// What the pod asks for, by its template.
    fn demand(&mut self, request: &v1::ReserveRequest) -> Result<Arc<Demand>, v1::Refused> {
        self.uses += 1;
        let refusal = |reason: RefusalReason, message: String| v1::Refused {
            reason: reason.into(),
            message,
            ..v1::Refused::default()
        };
        match &request.kind {
            None => Err(refusal(RefusalReason::Invalid, "neither template nor template_id is set".into())),
            Some(Kind::TemplateId(id)) => {
                let Some((demand, used)) = self.templates.get_mut(id) else {
                    let message = format!("template {id:?} is not remembered on this stream; send it in full");
                    return Err(refusal(RefusalReason::UnknownTemplate, message));
                };
                *used = self.uses;
                Ok(demand.clone())
            }
            Some(Kind::Template(template)) => {
                let demand = demand_of_template(template, &self.service.settings).map_err(|error| {
                    let (TemplateError::Malformed(message) | TemplateError::Refused(message)) = error;
                    refusal(RefusalReason::Invalid, message)
                })?;
                if self.templates.len() >= TEMPLATES_MAX && !self.templates.contains_key(&template.id) {
                    let least = self.templates.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| id.clone());
                    self.templates.remove(&least.unwrap_or_default());
                }
                self.templates.insert(template.id.clone(), (demand.clone(), self.uses));
                Ok(demand)
            }
        }
    }
}

fn ttl(asked: Option<&prost_types::Duration>) -> Result<Duration, String> {
    let Some(asked) = asked else { return Ok(TTL_DEFAULT) };
    let read = Duration::try_from(*asked).ok().filter(|ttl| (TTL_MIN..=TTL_MAX).contains(ttl));
    read.ok_or_else(|| format!("ttl of {asked} is not between {TTL_MIN:?} and {TTL_MAX:?}"))
}

fn reserved(held: Held) -> Outcome {
    Outcome::Reserved(v1::Reserved {
        lower_node: held.place.node,
        class_id: held.place.class_id,
        ttl: held.ttl.map(duration),
        existed: held.existed,
    })
}

fn refused(reason: RefusalReason, message: String) -> Outcome {
    Outcome::Refused(v1::Refused { reason: reason.into(), message, ..v1::Refused::default() })
}

fn duration(duration: Duration) -> prost_types::Duration {
    // Some minutes at most, so it always can be written.
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

/// The reason as a metric's label.
fn refusal_name(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::Unspecified | RefusalReason::NoRoom => "no_room",
        RefusalReason::NotOpen => "not_open",
        RefusalReason::UnknownTemplate => "unknown_template",
        RefusalReason::Invalid => "invalid",
        RefusalReason::Unreachable => "unreachable",
        RefusalReason::Overloaded => "overloaded",
        RefusalReason::PodGone => "pod_gone",
    }
}
