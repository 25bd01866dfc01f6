//! The owner mark: which upper object a lower object stands for. Nothing without our mark is ever touched (rule 1).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tensile_proto::vocabulary::{annotation, label};

use crate::names::Key;

/// Who owns a lower object, as its labels and annotations say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerMark {
    /// UID of the upper cluster's kube-system namespace.
    pub cluster: String,
    /// UID of the upper object.
    pub uid: String,
    /// The virtual node that manages it.
    pub virtual_node: String,
    /// Namespace and name of the upper object.
    pub key: Key,
}

impl OwnerMark {
    /// Reads the mark; `None` when any part is missing, for then the object is not ours to touch.
    pub fn read(meta: &ObjectMeta) -> Option<Self> {
        let labels = meta.labels.as_ref()?;
        let annotations = meta.annotations.as_ref()?;
        Some(Self {
            cluster: labels.get(label::UPPER_CLUSTER)?.clone(),
            uid: labels.get(label::UPPER_UID)?.clone(),
            virtual_node: labels.get(label::VIRTUAL_NODE)?.clone(),
            key: Key::new(
                annotations.get(annotation::UPPER_NAMESPACE)?.clone(),
                annotations.get(annotation::UPPER_NAME)?.clone(),
            ),
        })
    }

    /// Writes the mark.
    pub fn write(&self, meta: &mut ObjectMeta) {
        let labels = meta.labels.get_or_insert_default();
        labels.insert(label::UPPER_CLUSTER.into(), self.cluster.clone());
        labels.insert(label::UPPER_UID.into(), self.uid.clone());
        labels.insert(label::VIRTUAL_NODE.into(), self.virtual_node.clone());
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(annotation::UPPER_NAMESPACE.into(), self.key.namespace.clone());
        annotations.insert(annotation::UPPER_NAME.into(), self.key.name.clone());
    }
}
