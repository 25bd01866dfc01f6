//! The list of points is the program's, and the scenes pass all of it. What the release has of this: nothing.

use std::{collections::BTreeSet, fs, process::Command};

use tensile_e2e::virtual_node::binary;

use crate::{behind, ends, leftovers, life, services, start, subject::BINARY, update, waits};

/// Points that no scene passes, and why.
const NOT_PASSED: &[(&str, &str)] =
    &[("event-series", "the count of an event that is told again and again; written some minutes after the first")];

#[test]
fn every_point_of_the_program_is_passed_by_a_scene() {
    let listed = Command::new(binary(BINARY).unwrap()).arg("list-faults").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let listed: BTreeSet<&str> = listed.lines().collect();
    let scenes = [
        life::POINTS,
        &[life::AFTER_A_LOST_ANSWER],
        update::POINTS,
        services::POINTS,
        ends::JOB,
        ends::FORCED,
        ends::EVICTED,
        behind::DELETED_BELOW,
        behind::FORCED_ABOVE,
        leftovers::COPIES,
        leftovers::TOKENS,
        waits::POINTS,
        start::FIRST,
        start::LEASE,
        start::LATER,
    ];
    let passed: BTreeSet<&str> =
        scenes.into_iter().flatten().copied().chain(NOT_PASSED.iter().map(|(point, _)| *point)).collect();
    assert_eq!(listed, passed, "left: points of virtual-node/src/fault/points.rs; right: those of the scenes");
}

#[test]
fn the_binary_that_is_released_has_no_fault_points() {
    let holds = |name| {
        let bytes = fs::read(binary(name).unwrap()).unwrap();
        bytes.windows(WORD.len()).any(|window| window == WORD)
    };
    assert!(holds(BINARY), "the word that is looked for is in neither binary: look for another");
    assert!(!holds("virtual-node"));
}

/// Every fault needs it.
const WORD: &[u8] = b"TENSILE_FAULT_FILE";
