//! Amounts of resources in canonical units: milli-CPU for `cpu`, base units (bytes, pieces) for all others.
//!
//! This is how kube-scheduler counts (`framework.Resource`), so sums and comparisons agree with it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{
    name::Name,
    quantity::{self, Amount, QuantityError},
};

/// `cpu`, in milli-CPU.
pub const CPU: &str = "cpu";
/// `memory`, in bytes.
pub const MEMORY: &str = "memory";
/// `ephemeral-storage`, in bytes.
pub const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// `pods`, in pieces.
pub const PODS: &str = "pods";
/// What names of huge pages begin with; their amounts are bytes.
pub const HUGEPAGES_PREFIX: &str = "hugepages-";

/// The names that have a place of their own, in the order of [`Resources::fixed`].
pub(crate) const FIXED: [&str; 4] = [CPU, MEMORY, EPHEMERAL_STORAGE, PODS];

/// An amount of each resource. A name that is not there counts as zero. 40 bytes while there are no extended resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    fixed: [i64; 4],
    /// Sorted by name, zeros left out.
    #[allow(clippy::box_collection)] // most pods have none, and this costs them one pointer in place of three
    extended: Option<Box<Vec<(Name, i64)>>>,
}

impl Resources {
    /// Reads a core/v1 ResourceList. Amounts are rounded up; a malformed quantity is refused with the resource's name.
    pub fn of_list(list: &BTreeMap<String, Quantity>) -> Result<Self, ResourceError> {
        let mut resources = Self::default();
        for (name, quantity) in list {
            resources.set(name, canonical(name, Amount::parse_of(name, quantity)?));
        }
        Ok(resources)
    }

    /// Milli-CPU.
    pub fn cpu_millis(&self) -> i64 {
        self.fixed[0]
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> i64 {
        self.fixed[1]
    }

    /// Bytes of ephemeral storage.
    pub fn ephemeral_storage_bytes(&self) -> i64 {
        self.fixed[2]
    }

    /// Pods.
    pub fn pods(&self) -> i64 {
        self.fixed[3]
    }

    /// The amount of one resource by name, in its canonical unit.
    pub fn get(&self, name: &str) -> i64 {
        match fixed_place(name) {
            Some(place) => self.fixed[place],
            None => self.extended().iter().find(|(own, _)| own.as_str() == name).map_or(0, |(_, amount)| *amount),
        }
    }

    /// Sets the amount of one resource, in its canonical unit.
    pub fn set(&mut self, name: &str, amount: i64) {
        match fixed_place(name) {
            Some(place) => self.fixed[place] = amount,
            None => self.update(&Name::new(name), amount, |_, new| new),
        }
    }

    /// Names and amounts of all resources that are not zero, fixed ones first, extended ones by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        let fixed =
            FIXED.iter().zip(self.fixed).map(|(name, amount)| (*name, amount)).filter(|(_, amount)| *amount != 0);
        fixed.chain(self.extended().iter().map(|(name, amount)| (name.as_str(), *amount)))
    }

    /// Adds, and stays at the biggest number when the sum is too big.
    pub fn add(&mut self, other: &Self) {
        self.merge(other, i64::saturating_add);
    }

    /// Subtracts; the result may be below zero.
    pub fn subtract(&mut self, other: &Self) {
        self.merge(other, i64::saturating_sub);
    }

    /// Takes the larger amount of each resource.
    pub fn raise_to(&mut self, other: &Self) {
        self.merge(other, i64::max);
    }

    /// Takes the smaller amount of each resource; one that is missing in `other` becomes zero.
    pub fn lower_to(&mut self, other: &Self) {
        for (place, amount) in self.fixed.iter_mut().enumerate() {
            *amount = (*amount).min(other.fixed[place]);
        }
        self.change_extended(|name, amount| amount.min(other.get(name)));
    }

    /// Raises amounts below zero to zero.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.fixed = self.fixed.map(|amount| amount.max(0));
        self.change_extended(|_, amount| amount.max(0));
        self
    }

    /// Whether every amount of `self` is at most that of `other`.
    pub fn fits(&self, other: &Self) -> bool {
        self.fixed.iter().zip(other.fixed).all(|(own, room)| *own <= room)
            && self.extended().iter().all(|(name, amount)| *amount <= other.get(name.as_str()))
    }

    /// As a core/v1 ResourceList with canonical quantities: memory, storage and huge pages with binary suffixes, as kubelets
    /// write them. The fixed resources are always there, also at zero.
    pub fn to_list(&self) -> BTreeMap<String, Quantity> {
        let fixed = FIXED.iter().zip(self.fixed).map(|(name, amount)| (*name, amount));
        let extended = self.extended().iter().map(|(name, amount)| (name.as_str(), *amount));
        fixed.chain(extended).map(|(name, amount)| (name.to_owned(), Quantity(format(name, amount)))).collect()
    }

    fn extended(&self) -> &[(Name, i64)] {
        self.extended.as_deref().map_or(&[], Vec::as_slice)
    }

    fn merge(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        for (place, amount) in self.fixed.iter_mut().enumerate() {
            *amount = with(*amount, other.fixed[place]);
        }
        for (name, amount) in other.extended() {
            self.update(name, *amount, &with);
        }
    }

    fn update(&mut self, name: &Name, amount: i64, with: impl Fn(i64, i64) -> i64) {
        let place = self.extended().binary_search_by(|(own, _)| own.cmp(name));
        let old = place.map_or(0, |at| self.extended()[at].1);
        let new = with(old, amount);
        match place {
            Ok(at) => {
                if let Some(extended) = self.extended.as_deref_mut() {
                    extended[at].1 = new;
                }
            }
            Err(at) => self.extended.get_or_insert_default().insert(at, (name.clone(), new)),
        }
        if new == 0 {
            self.drop_zeros();
        }
    }

    fn change_extended(&mut self, change: impl Fn(&str, i64) -> i64) {
        if let Some(extended) = self.extended.as_deref_mut() {
            for (name, amount) in extended.iter_mut() {
                *amount = change(name.as_str(), *amount);
            }
            self.drop_zeros();
        }
    }

    /// Equal amounts must be equal values, so a zero is never stored.
    fn drop_zeros(&mut self) {
        if let Some(extended) = self.extended.as_deref_mut() {
            extended.retain(|(_, amount)| *amount != 0);
            if extended.is_empty() {
                self.extended = None;
            }
        }
    }
}

impl<'a> FromIterator<(&'a str, i64)> for Resources {
    fn from_iter<I: IntoIterator<Item = (&'a str, i64)>>(amounts: I) -> Self {
        let mut resources = Self::default();
        for (name, amount) in amounts {
            resources.set(name, amount);
        }
        resources
    }
}

/// A resource whose quantity cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("resource {resource}: {source}")]
pub struct ResourceError {
    /// Name of the resource.
    pub resource: String,
    /// What is wrong with its quantity.
    pub source: QuantityError,
}

impl Amount {
    /// Reads the quantity of a named resource, so that an error tells whose it is.
    pub(crate) fn parse_of(name: &str, quantity: &Quantity) -> Result<Self, ResourceError> {
        Self::parse(&quantity.0).map_err(|source| ResourceError { resource: name.to_owned(), source })
    }
}

/// An exact amount in the canonical unit of its resource, rounded away from zero.
pub fn canonical(name: &str, amount: Amount) -> i64 {
    if name == CPU { amount.millis() } else { amount.units() }
}

/// An amount in canonical units as a canonical quantity.
pub fn format(name: &str, amount: i64) -> String {
    match name {
        CPU => quantity::format_millis(amount),
        MEMORY | EPHEMERAL_STORAGE => quantity::format_binary(amount),
        _ if name.starts_with(HUGEPAGES_PREFIX) => quantity::format_binary(amount),
        _ => quantity::format_decimal(amount),
    }
}

fn fixed_place(name: &str) -> Option<usize> {
    FIXED.iter().position(|fixed| *fixed == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    fn list(items: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
        items.iter().map(|(name, quantity)| ((*name).to_owned(), Quantity((*quantity).to_owned()))).collect()
    }

    #[test]
    fn cpu_counts_in_millis_and_all_else_in_units() {
        let resources = Resources::of_list(&list(&[
            ("cpu", "1.5"),
            ("memory", "1Gi"),
            ("ephemeral-storage", "1k"),
            ("pods", "110"),
            ("nvidia.com/gpu", "8"),
            ("hugepages-2Mi", "4Mi"),
        ]))
        .unwrap();
        assert_eq!(resources.cpu_millis(), 1_500);
        assert_eq!(resources.memory_bytes(), 1 << 30);
        assert_eq!(resources.ephemeral_storage_bytes(), 1_000);
        assert_eq!(resources.pods(), 110);
        assert_eq!(resources.get("nvidia.com/gpu"), 8);
        assert_eq!(resources.get("hugepages-2Mi"), 4 << 20);
        assert_eq!(resources.get("amd.com/gpu"), 0);
        assert_eq!(
            resources.to_list(),
            list(&[
                ("cpu", "1500m"),
                ("memory", "1Gi"),
                ("ephemeral-storage", "1k"),
                ("pods", "110"),
                ("nvidia.com/gpu", "8"),
                ("hugepages-2Mi", "4Mi"),
            ])
        );
    }

    #[test]
    fn a_bad_quantity_is_refused_by_name() {
        let error = Resources::of_list(&list(&[("cpu", "1"), ("memory", "1Gb")])).unwrap_err();
        assert_eq!(error.resource, "memory");
    }

    #[test]
    fn a_pod_without_extended_resources_stays_small() {
        assert!(size_of::<Resources>() <= 40);
    }

    #[test]
    fn zero_of_an_extended_resource_equals_none_of_it() {
        let mut resources: Resources = [("a/b", 2)].into_iter().collect();
        resources.subtract(&[("a/b", 2)].into_iter().collect());
        assert_eq!(resources, Resources::default());
    }

    fn any_resources() -> impl Strategy<Value = Resources> {
        let names = prop::sample::select(vec!["cpu", "memory", "ephemeral-storage", "pods", "x/a", "x/b", "x/c"]);
        prop::collection::vec((names, -1_000_i64..1_000), 0..8).prop_map(|amounts| amounts.into_iter().collect())
    }

    proptest! {
        #[test]
        fn adding_and_subtracting_cancel_out(a in any_resources(), b in any_resources()) {
            let mut sum = a.clone();
            sum.add(&b);
            for name in ["cpu", "memory", "x/a", "x/b"] {
                prop_assert_eq!(sum.get(name), a.get(name) + b.get(name));
            }
            sum.subtract(&b);
            prop_assert_eq!(sum, a);
        }

        #[test]
        fn what_is_lowered_fits_when_nothing_is_below_zero(a in any_resources(), b in any_resources()) {
            let (mut lowered, b) = (a.clamped(), b.clamped());
            lowered.lower_to(&b);
            prop_assert!(lowered.fits(&b));
            let mut raised = b.clone();
            raised.raise_to(&lowered);
            prop_assert_eq!(raised, b);
        }

        #[test]
        fn lists_round_trip(a in any_resources()) {
            prop_assert_eq!(Resources::of_list(&a.to_list()).unwrap(), a);
        }
    }
}
