//! Readings for people and for programs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use super::{
    offload::{Reading, Subject},
    svg,
};

/// A figure of a reading, with its name and unit.
type Figure = (&'static str, fn(&Reading) -> f64);

/// The figures that are shown.
const FIGURES: [Figure; 9] = [
    ("all created, s", |r| r.all_created_s),
    ("all scheduled, s", |r| r.all_scheduled_s),
    ("all Ready, s", |r| r.all_ready_s),
    ("created -> Ready p50, s", |r| r.ready_p50_s),
    ("created -> Ready p99, s", |r| r.ready_p99_s),
    ("delete, all gone, s", |r| r.delete_s),
    ("CPU of the virtual-node, s", |r| r.agent_cpu_s),
    ("peak memory, MiB", |r| r.agent_rss_peak_mib),
    ("CPU of the machine, s", |r| r.machine_cpu_s),
];

/// One run in a line.
pub(super) fn line(reading: &Reading) -> String {
    format!(
        "{:?} ready {:.1} s, p99 {:.1} s, gone {:.1} s, agent {:.2} CPU s (+{:.2} deleting), {:.0} MiB, machine {:.1} CPU s",
        reading.subject,
        reading.all_ready_s,
        reading.ready_p99_s,
        reading.delete_s,
        reading.agent_cpu_s,
        reading.agent_delete_cpu_s,
        reading.agent_rss_peak_mib,
        reading.machine_cpu_s,
    )
}

/// Prints minimum, median and maximum of each figure, with the ratio of the medians, and requests per pod.
pub(super) fn table(readings: &[Reading]) {
    let mut sizes: Vec<usize> = readings.iter().map(|reading| reading.pods).collect();
    sizes.dedup();
    for pods in sizes {
        println!("\n| {pods} pods | vanilla min / median / max | ours min / median / max | ratio |\n|---|---|---|---|");
        for (name, figure) in FIGURES {
            let of = |subject| spread(readings, pods, subject, figure);
            let (vanilla, ours) = (of(Subject::Vanilla), of(Subject::Ours));
            let ratio = match (vanilla, ours) {
                (Some([_, vanilla, _]), Some([_, ours, _])) if vanilla > 0.0 => format!("{:.2}", ours / vanilla),
                _ => "-".to_owned(),
            };
            println!("| {name} | {} | {} | {ratio} |", shown(vanilla), shown(ours));
        }
        println!("\nrequests per pod (everybody's), {pods} pods:");
        for (what, [vanilla, ours]) in requests(readings, pods) {
            println!("  {what:<44} vanilla {vanilla:>6.2}  ours {ours:>6.2}");
        }
    }
}

fn spread(readings: &[Reading], pods: usize, subject: Subject, figure: fn(&Reading) -> f64) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = readings.iter().filter(|r| r.pods == pods && r.subject == subject).map(figure).collect();
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

fn shown(spread: Option<[f64; 3]>) -> String {
    spread.map_or_else(|| "-".to_owned(), |[min, median, max]| format!("{min:.2} / {median:.2} / {max:.2}"))
}

/// Requests per pod of one size, for vanilla and ours, those that make up at least one in twenty pods.
#[allow(clippy::cast_precision_loss)] // counts of requests and pods are far below 2^52
fn requests(readings: &[Reading], pods: usize) -> BTreeMap<&str, [f64; 2]> {
    let mut all: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for (side, subject) in [Subject::Vanilla, Subject::Ours].into_iter().enumerate() {
        let runs: Vec<&Reading> = readings.iter().filter(|r| r.pods == pods && r.subject == subject).collect();
        for reading in &runs {
            for (what, count) in &reading.requests {
                all.entry(what).or_default()[side] += *count as f64 / (pods * runs.len()) as f64;
            }
        }
    }
    all.retain(|_, sides| sides.iter().any(|count| *count >= 0.05));
    all
}

/// Writes one JSON object a line.
pub(super) fn write_json(path: &Path, readings: &[Reading]) -> Result<()> {
    let lines: Result<Vec<String>, _> = readings.iter().map(serde_json::to_string).collect();
    fs::write(path, lines?.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))
}

/// Draws all runs.
pub(super) fn write_svg(path: &Path, readings: &[Reading]) -> Result<()> {
    let points: Vec<(usize, Subject, f64)> = readings.iter().map(|r| (r.pods, r.subject, r.all_ready_s)).collect();
    fs::write(path, svg::draw(&points)).with_context(|| format!("writing {}", path.display()))
}
