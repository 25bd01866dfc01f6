//! The list of metrics in the docs holds what a running virtual-node serves.

use std::collections::BTreeMap;

use crate::world::world;

#[tokio::test(flavor = "multi_thread")]
async fn the_docs_list_every_metric_that_is_served() {
    let served = world().await.nodes[0].metrics().await.unwrap();
    let mut families: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for line in served.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name).or_default().1 = help;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name).or_default().0 = kind;
        }
    }
    assert!(families.contains_key("tensile_kube_requests"), "{served}");
    // A family without samples is not served, so the page may list more than is seen here.
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    for (name, (kind, help)) in families {
        let suffix = if kind == "counter" { "_total" } else { "" };
        let row = format!("| `{name}{suffix}` | {kind} | {help} |");
        assert!(page.contains(&row), "docs/metrics.md lacks this row:\n{row}");
    }
}
