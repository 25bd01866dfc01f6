//! What a run costs: CPU of the whole machine, and requests as the API servers count them.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

use crate::Cluster;

/// Ticks of /proc/stat in a second: fixed at 100 by the kernel's interface for user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that the machine has spent on anything but waiting, since it was started.
pub(super) fn machine_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    // cpu user nice system idle iowait irq softirq steal ...
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let busy: f64 =
        ticks.iter().enumerate().filter(|(field, _)| !matches!(field, 3 | 4) && *field < 8).map(|(_, t)| t).sum();
    Ok(busy / TICKS_PER_SECOND)
}

/// Counts of requests by cluster, verb and resource: `upper PATCH pods/status`.
pub(super) type Requests = BTreeMap<String, u64>;

/// Reads how many requests both API servers have answered so far.
pub(super) async fn requests(clusters: &[&Cluster]) -> Result<Requests> {
    let mut all = Requests::new();
    for cluster in clusters {
        count(cluster.name(), &cluster.metrics().await?, &mut all);
    }
    Ok(all)
}

/// What came in between two readings.
pub(super) fn difference(before: &Requests, after: &Requests) -> Requests {
    let grown = after.iter().map(|(what, now)| (what.clone(), now - before.get(what).copied().unwrap_or_default()));
    grown.filter(|(_, count)| *count > 0).collect()
}

fn count(cluster: &str, metrics: &str, into: &mut Requests) {
    for line in metrics.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
        let Some((labels, value)) = line.split_once("} ") else { continue };
        let label = |name: &str| {
            let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
            Some(&labels[start..start + labels[start..].find('"')?])
        };
        let (verb, resource) = (label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
        let subresource = label("subresource").filter(|s| !s.is_empty()).map(|s| format!("/{s}")).unwrap_or_default();
        // Counts are printed as floats, some as 1e+06; none here is large enough to lose a digit.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let value = value.trim().parse::<f64>().unwrap_or_default() as u64;
        *into.entry(format!("{cluster} {verb} {resource}{subresource}")).or_default() += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_summed_over_codes() {
        let metrics = "
apiserver_request_total{code=\"201\",component=\"apiserver\",resource=\"pods\",subresource=\"\",verb=\"POST\"} 7
apiserver_request_total{code=\"409\",component=\"apiserver\",resource=\"pods\",subresource=\"\",verb=\"POST\"} 2
apiserver_request_total{code=\"200\",component=\"apiserver\",resource=\"pods\",subresource=\"status\",verb=\"PATCH\"} 5
";
        let mut all = Requests::new();
        count("upper", metrics, &mut all);
        assert_eq!(all["upper POST pods"], 9);
        assert_eq!(all["upper PATCH pods/status"], 5);
    }
}
