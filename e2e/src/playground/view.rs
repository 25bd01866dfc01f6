//! A snapshot as lines of text. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::snapshot::{ClusterSeen, NodeSeen, PodSeen, Snapshot};

/// Between columns.
const GAP: usize = 2;

/// Colours by what a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Waiting,
    Bad,
    Faint,
    Heading,
}

impl Tone {
    /// The terminal's own sixteen colours, so that they fit its background.
    fn start(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Waiting => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Faint => "\x1b[2m",
            Self::Heading => "\x1b[1m",
        }
    }
}

struct Cell(Tone, String);

fn plain_cell(text: impl Into<String>) -> Cell {
    Cell(Tone::Plain, text.into())
}

/// The whole screen: at most `height` lines of at most `width` columns.
pub(super) fn lines(snapshot: &Snapshot, hints: &[String], width: usize, height: usize) -> Vec<String> {
    let title = format!("tensile playground, up for {}. q or Ctrl-C removes everything.", span(snapshot.age));
    let mut lines = vec![fit(&[Cell(Tone::Heading, title)], &[width], width), String::new()];
    lines.extend(table(&["CLUSTER", "ROLE", "API SERVER", "NODES"], clusters(&snapshot.clusters), width));
    lines.push(String::new());
    let heads = ["VIRTUAL NODE", "READY", "LOWER ANSWERS", "PODS", "CPU", "MEMORY", "PROCESS"];
    lines.extend(table(&heads, nodes(&snapshot.nodes), width));
    lines.push(String::new());
    let footer: Vec<String> = hints.iter().map(|line| fit(&[plain_cell(line.clone())], &[width], width)).collect();

    let heads = ["POD", "STATUS", "READY", "VIRTUAL NODE", "NODE BELOW", "ADDRESS", "AGE"];
    let pods = table(&heads, pods(&snapshot.pods), width);
    // The hints stay in sight, however many pods there are; one line in between is empty, and one may say "more".
    let room = height.saturating_sub(lines.len() + footer.len() + 1);
    if pods.len() <= room {
        lines.extend(pods);
    } else {
        let shown = room.saturating_sub(1);
        let more = pods.len() - shown;
        lines.extend(pods.into_iter().take(shown));
        lines.push(format!("... and {more} more"));
    }
    lines.push(String::new());
    lines.extend(footer);
    lines.truncate(height);
    lines
}

/// One line for each thing, by its name: what a log shows when it changes.
pub(super) fn plain(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for ClusterSeen { name, role, server_url, nodes, about } in &snapshot.clusters {
        let nodes = nodes.as_ref().map_or_else(Clone::clone, |count| format!("{count} nodes {about}"));
        lines.insert(format!("cluster {name}"), format!("cluster {name}: {role}, {server_url}, {}", nodes.trim_end()));
    }
    for node in &snapshot.nodes {
        let NodeSeen { name, ready, lower_reachable, pods, pods_max, cpu, memory, .. } = node;
        lines.insert(
            format!("virtual node {name}"),
            format!(
                "virtual node {name}: Ready {ready}, lower cluster answers {lower_reachable}, {pods} of {pods_max} pods, \
                 {cpu} CPUs, {memory} of memory"
            ),
        );
    }
    for pod in &snapshot.pods {
        let ready = if pod.ready { "ready" } else { "not ready" };
        let place = [pod.node.as_str(), pod.lower_node.as_str()].map(|part| if part.is_empty() { "?" } else { part });
        let name = format!("pod {}/{}", pod.namespace, pod.name);
        let line = format!("{name}: {}, {ready}, on {}", pod.status, place.join(" / "));
        lines.insert(name, line);
    }
    lines
}

fn clusters(seen: &[ClusterSeen]) -> Vec<Vec<Cell>> {
    let row = |cluster: &ClusterSeen| {
        let nodes = match &cluster.nodes {
            Ok(count) => plain_cell(format!("{count} {}", cluster.about)),
            Err(why) => Cell(Tone::Bad, why.clone()),
        };
        vec![plain_cell(&cluster.name), plain_cell(cluster.role), Cell(Tone::Faint, cluster.server_url.clone()), nodes]
    };
    seen.iter().map(row).collect()
}

fn nodes(seen: &[NodeSeen]) -> Vec<Vec<Cell>> {
    let judged = |status: &str| Cell(if status == "True" { Tone::Good } else { Tone::Bad }, status.to_owned());
    let row = |node: &NodeSeen| {
        vec![
            plain_cell(&node.name),
            judged(&node.ready),
            judged(&node.lower_reachable),
            plain_cell(format!("{} of {}", node.pods, node.pods_max)),
            plain_cell(&node.cpu),
            plain_cell(&node.memory),
            Cell(Tone::Faint, node.process.clone()),
        ]
    };
    seen.iter().map(row).collect()
}

fn pods(seen: &[PodSeen]) -> Vec<Vec<Cell>> {
    let row = |pod: &PodSeen| {
        let tone = match pod.status.as_str() {
            "Running" | "Succeeded" => Tone::Good,
            "Pending" | "ContainerCreating" | "PodInitializing" | "Terminating" => Tone::Waiting,
            _ => Tone::Bad,
        };
        let name =
            if pod.namespace == "default" { pod.name.clone() } else { format!("{}/{}", pod.namespace, pod.name) };
        vec![
            plain_cell(name),
            Cell(tone, pod.status.clone()),
            Cell(if pod.ready { Tone::Good } else { Tone::Waiting }, if pod.ready { "yes" } else { "no" }.to_owned()),
            plain_cell(&pod.node),
            plain_cell(&pod.lower_node),
            plain_cell(&pod.address),
            Cell(Tone::Faint, span(pod.age)),
        ]
    };
    seen.iter().map(row).collect()
}

fn table(heads: &[&str], rows: Vec<Vec<Cell>>, width: usize) -> Vec<String> {
    let heads: Vec<Cell> = heads.iter().map(|head| Cell(Tone::Faint, (*head).to_owned())).collect();
    let rows: Vec<Vec<Cell>> = std::iter::once(heads).chain(rows).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].1.chars().count()).max().unwrap_or_default() + GAP)
        .collect();
    rows.iter().map(|row| fit(row, &widths, width)).collect()
}

/// The cells side by side, cut at `width`. Widths are counted in characters: all names here are ASCII.
fn fit(cells: &[Cell], widths: &[usize], width: usize) -> String {
    let mut line = String::new();
    let mut left = width;
    for (place, (Cell(tone, text), wide)) in cells.iter().zip(widths).enumerate() {
        let shown: String = text.chars().take(left).collect();
        left -= shown.chars().count();
        let pad = wide.saturating_sub(shown.chars().count()).min(left);
        let pad = if place + 1 == cells.len() { 0 } else { pad };
        left -= pad;
        let end = if tone.start().is_empty() { "" } else { "\x1b[0m" };
        let _ = write!(line, "{}{shown}{end}{}", tone.start(), " ".repeat(pad));
    }
    line
}

/// As kubectl shows ages.
fn span(age: Duration) -> String {
    match age.as_secs() {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pods: usize) -> Snapshot {
        Snapshot {
            age: Duration::from_secs(75),
            clusters: vec![ClusterSeen {
                name: "east".to_owned(),
                role: "lower",
                server_url: "https://198.18.0.1:20443".to_owned(),
                nodes: Err("no answer".to_owned()),
                about: "real",
            }],
            nodes: vec![NodeSeen { name: "east".to_owned(), ready: "True".to_owned(), ..NodeSeen::default() }],
            pods: (0..pods)
                .map(|number| PodSeen {
                    namespace: "default".to_owned(),
                    name: format!("hello-{number}"),
                    status: "Running".to_owned(),
                    node: "east".to_owned(),
                    lower_node: "real-0".to_owned(),
                    ..PodSeen::default()
                })
                .collect(),
        }
    }

    fn bare(line: &str) -> String {
        let mut text = String::new();
        let mut rest = line;
        while let Some((before, after)) = rest.split_once('\x1b') {
            text.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        text + rest
    }

    #[test]
    fn a_screen_never_overflows_and_keeps_its_hints() {
        let hints = vec!["Try in another terminal:".to_owned(), format!("  export KUBECONFIG={}", "x".repeat(200))];
        for (width, height) in [(80, 24), (40, 18), (200, 60)] {
            let lines = lines(&seen(50), &hints, width, height);
            assert!(lines.len() <= height, "{} lines on {height}", lines.len());
            assert!(lines.iter().all(|line| bare(line).chars().count() <= width), "{lines:#?}");
            assert!(lines.iter().any(|line| bare(line).starts_with("Try in another")), "{lines:#?}");
        }
    }

    #[test]
    fn what_does_not_answer_is_shown_and_pods_that_do_not_fit_are_counted() {
        let text = lines(&seen(50), &[], 100, 20).iter().map(|line| bare(line)).collect::<Vec<_>>().join("\n");
        assert!(text.contains("no answer"), "{text}");
        assert!(text.contains("hello-0"), "{text}");
        assert!(text.contains(" more"), "{text}");
    }

    #[test]
    fn a_log_names_the_place_of_each_pod_on_both_sides() {
        assert_eq!(plain(&seen(1))["pod default/hello-0"], "pod default/hello-0: Running, not ready, on east / real-0");
    }
}
