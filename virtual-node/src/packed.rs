//! An object kept as its JSON bytes.
//!
//! A pod as a Rust value is many times its JSON: each of its hundreds of optional fields has its place whether it is
//! set or not. Of thousands of pods that wait at once, bytes are kept; a worker unpacks the one that it works on.

use std::{fmt, marker::PhantomData, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use tracing::error;

/// A `T`, packed. Cheap to clone.
pub struct Packed<T> {
    bytes: Arc<[u8]>,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Packed<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), of: PhantomData }
    }
}

/// Equal bytes are equal objects: fields are written in their order, maps are sorted.
impl<T> PartialEq for Packed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> fmt::Debug for Packed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.bytes))
    }
}

impl<T: Serialize + DeserializeOwned> Packed<T> {
    /// Packs an object. `None` where that fails, which no object that came from an API server does: whoever needs it
    /// then reads it anew.
    pub fn of(object: &T) -> Option<Self> {
        match serde_json::to_vec(object) {
            Ok(bytes) => Some(Self { bytes: bytes.into(), of: PhantomData }),
            Err(error) => {
                error!(%error, "cannot pack an object; it is read anew when it is needed");
                None
            }
        }
    }

    /// The object; `None` as for [`Self::of`].
    pub fn unpack(&self) -> Option<T> {
        serde_json::from_slice(&self.bytes)
            .inspect_err(|error| error!(%error, "cannot unpack an object; it is read anew"))
            .ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_only_equal_things_are_equal() {
        let status = |phase: &str| -> PodStatus {
            serde_json::from_value(json!({"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]}))
                .unwrap()
        };
        let packed = Packed::of(&status("Running")).unwrap();
        assert_eq!(packed.unpack(), Some(status("Running")));
        assert_eq!(packed, Packed::of(&status("Running")).unwrap());
        assert_ne!(packed, Packed::of(&status("Failed")).unwrap());
    }
}
