//! The run's bridge, and the addresses and routes of its nodes.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;

use super::run;
use crate::claim::NumberClaim;
use crate::run::Run;

/// How many processes with real nodes may run at once on a machine, and how many nodes each has.
/// Their product is what 198.18.128.0/17 holds in /24s.
const RUNS_MAX: u8 = 16;
const NODES_MAX: u8 = 8;

/// The network of this process's real nodes, shared by its clusters.
#[derive(Debug)]
pub(crate) struct Network {
    bridge: String,
    claim: NumberClaim,
    slots: Mutex<[Option<Slot>; NODES_MAX as usize]>,
}

/// One node's place in the network.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    number: u8,
    /// The network namespace's name, as in `/run/netns/NAME`.
    pub(crate) netns: String,
    /// The node's own address.
    pub(crate) address: Ipv4Addr,
    /// The range of its pods, a /24.
    pub(crate) pod_cidr: String,
}

impl Network {
    /// The network of this process; the first call makes the bridge.
    pub(crate) fn shared() -> Result<&'static Self> {
        static NETWORK: OnceLock<Result<Network, String>> = OnceLock::new();
        NETWORK
            .get_or_init(|| Self::begin().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("making the bridge of the real nodes: {error}"))
    }

    fn begin() -> Result<Self> {
        let owner = Run::current()?;
        let claim = NumberClaim::below(RUNS_MAX, "network")?;
        let bridge = format!("tb{}", owner.name());
        // The record first: what is recorded and missing is no harm.
        record(owner.dir(), "bridges", &bridge)?;
        let network = Self { bridge, claim, slots: Mutex::default() };
        ip(&["link", "add", &network.bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", network.host_address()), "dev", &network.bridge])?;
        ip(&["link", "set", &network.bridge, "up"])?;
        Ok(network)
    }

    /// The bridge's own address, at which nodes and their pods reach this machine.
    pub(crate) fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.claim.number(), 1)
    }

    /// Makes a namespace with an address on the bridge and routes to all other nodes' pods. Its
    /// record goes into `dir`.
    pub(crate) fn add_node(&self, dir: &Path, service_cidr: &str) -> Result<Slot> {
        // Held throughout: two nodes that join at once must learn of each other.
        let mut slots = self.slots.lock();
        let number = (0..NODES_MAX)
            .find(|number| slots[usize::from(*number)].is_none())
            .with_context(|| format!("this process runs {NODES_MAX} real nodes already; stop some"))?;
        let unique = next_unique();
        let owner = Run::current()?.name();
        let slot = Slot {
            number,
            netns: format!("tensile-{owner}-{unique}"),
            address: Ipv4Addr::new(198, 18, self.claim.number(), 10 + number),
            pod_cidr: format!("198.18.{}.0/24", 128 + self.claim.number() * NODES_MAX + number),
        };
        record(dir, "netns", &slot.netns)?;
        self.connect(&slot, &format!("tv{owner}n{unique}"), service_cidr)?;
        for other in slots.iter().flatten() {
            route_to_pods(&other.netns, &slot)?;
            route_to_pods(&slot.netns, other)?;
        }
        ip(&["route", "replace", &slot.pod_cidr, "via", &slot.address.to_string(), "dev", &self.bridge])?;
        slots[usize::from(number)] = Some(slot.clone());
        Ok(slot)
    }

    fn connect(&self, slot: &Slot, veth: &str, service_cidr: &str) -> Result<()> {
        let netns = slot.netns.as_str();
        let host = self.host_address().to_string();
        ip(&["netns", "add", netns])?;
        ip(&["link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", netns])?;
        ip(&["link", "set", veth, "master", &self.bridge, "up"])?;
        ip(&["-n", netns, "link", "set", "lo", "up"])?;
        ip(&["-n", netns, "addr", "add", &format!("{}/24", slot.address), "dev", "eth0"])?;
        ip(&["-n", netns, "link", "set", "eth0", "up"])?;
        // A packet to a ClusterIP needs some route before kube-proxy's rules rewrite it.
        ip(&["-n", netns, "route", "add", service_cidr, "via", &host])?;
        let forward =
            ["nsenter", &format!("--net=/run/netns/{netns}"), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]
                .map(str::to_owned);
        run(Command::new(&forward[0]).args(&forward[1..]))
    }

    /// Frees the place. The namespace itself goes with its record's folder.
    pub(crate) fn remove_node(&self, slot: &Slot) {
        let mut slots = self.slots.lock();
        slots[usize::from(slot.number)] = None;
        let _ = ip(&["route", "del", &slot.pod_cidr, "dev", &self.bridge]);
    }
}

fn route_to_pods(netns: &str, of: &Slot) -> Result<()> {
    ip(&["-n", netns, "route", "replace", &of.pod_cidr, "via", &of.address.to_string()])
}

/// Namespaces and interfaces are removed by the kernel a little later than asked for, so a name is not
/// used twice.
fn next_unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments))
}

/// Writes down that the folder's owner made `name`; `cleanup.sh` reads it.
pub(crate) fn record(dir: &Path, kind: &str, name: &str) -> Result<()> {
    let records = dir.join(kind);
    std::fs::create_dir_all(&records)
        .and_then(|()| std::fs::write(records.join(name), ""))
        .with_context(|| format!("recording {kind} {name}"))
}
