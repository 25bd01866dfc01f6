//! What an earlier run left in the lower cluster: found at start, and taken away when no pod came to use it.

use std::sync::{Arc, atomic::Ordering};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api,
    api::{ListParams, ObjectMeta, PartialObjectMeta},
};
use tensile_proto::vocabulary::label;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    book::{Kind, NeedKey},
    mirrored::Mirrored,
    plan::Purpose,
    shared::Shared,
    start,
};
use crate::{names::Key, owner::OwnerMark};

/// Objects in one page; only their metadata travels.
const PAGE_OBJECTS_MAX: u32 = 500;

/// Finds the ConfigMaps and Secrets that this virtual node made.
pub(super) async fn find(shared: &Arc<Shared>) -> Result<(), kube::Error> {
    let begun = Instant::now();
    let copies = find_kind::<ConfigMap>(shared).await? + find_kind::<Secret>(shared).await?;
    shared.tokens.looked(begun);
    info!(copies, "found in the lower cluster from an earlier run");
    if shared.collecting.load(Ordering::Acquire) {
        collect(shared);
    }
    Ok(())
}

/// Takes away what was found and no pod holds; also what is found later on.
pub(super) fn collect(shared: &Arc<Shared>) {
    shared.collecting.store(true, Ordering::Release);
    let found = std::mem::take(&mut *shared.leftovers.lock());
    for entry in found.into_iter().filter_map(|key| shared.book.seed(key)) {
        start(shared, entry);
    }
    shared.tokens.collect_leftovers();
}

async fn find_kind<K: Mirrored>(shared: &Shared) -> Result<usize, kube::Error> {
    let api: Api<K> = Api::all(shared.lower.clone());
    let selector = format!(
        "{}={},{}={},{}",
        label::UPPER_CLUSTER,
        shared.settings.upper_cluster_uid,
        label::VIRTUAL_NODE,
        shared.settings.node_name,
        label::NEED
    );
    let mut params = ListParams::default().labels(&selector).limit(PAGE_OBJECTS_MAX);
    let mut count = 0;
    loop {
        let page = api.list_metadata(&params).await?;
        for object in page.items {
            count += usize::from(remember::<K>(shared, object));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(count),
        }
    }
}

/// Notes one object; false when it is not where we would put it.
fn remember<K: Mirrored>(shared: &Shared, object: PartialObjectMeta<K>) -> bool {
    let meta = object.metadata;
    let place = Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let (Some(mark), Some(purpose)) = (OwnerMark::read(&meta), Purpose::read(&meta)) else {
        warn!(%place, "an object in the lower cluster carries half of our mark; it is left alone");
        return false;
    };
    if shared.settings.namespaces.lower(&mark.key.namespace) != place.namespace {
        warn!(%place, upper = %mark.key, "a copy from another namespace mapping is left alone; delete it by hand");
        return false;
    }
    match purpose {
        Purpose::Token => shared.tokens.found(place, mark.uid, &meta),
        Purpose::Copy | Purpose::RootCa => shared.leftovers.lock().extend(need_key(K::WORD, &meta)),
    }
    true
}

/// Which thing a lower object of ours is the copy of.
pub(super) fn need_key(word: &str, meta: &ObjectMeta) -> Option<NeedKey> {
    let mark = OwnerMark::read(meta)?;
    let kind = match Purpose::read(meta)? {
        Purpose::Token => return None,
        Purpose::RootCa => Kind::RootCa,
        Purpose::Copy if word == Secret::WORD => Kind::Secret,
        Purpose::Copy => Kind::ConfigMap,
    };
    Some(NeedKey::new(kind, &mark.key.namespace, &mark.key.name))
}
