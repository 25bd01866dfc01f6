//! Ports and numbers that no other test process on this machine uses.
//!
//! A claim is a locked file in the folder that all runs share. The lock ends with the process, so a
//! crash leaves nothing behind; and a claim outlives the process that listens on the port, so a
//! server can be killed and started again on the same one.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, anyhow};
use rand::Rng;

use crate::run::base_dir;

/// Below Linux's range for outgoing connections (32768 and up), or one of those could take the
/// port while its server is being restarted.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Enough to find a free one even on a machine where most ports are taken.
const PORT_TRIES: u32 = 200;

/// A TCP port that is ours as long as this value lives.
#[derive(Debug)]
pub struct PortClaim {
    port: u16,
    _lock: File,
}

impl PortClaim {
    /// Claims a port on which nothing listens, on any address.
    pub fn new() -> Result<Self> {
        for _ in 0..PORT_TRIES {
            let port = rand::rng().random_range(PORTS);
            let Some(lock) = try_claim(&format!("port-{port}"))? else {
                continue;
            };
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
                return Ok(Self { port, _lock: lock });
            }
        }
        Err(anyhow!("no free TCP port found between {} and {} in {PORT_TRIES} tries", PORTS.start, PORTS.end))
    }

    /// The port's number.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A small number that is ours as long as this value lives.
#[derive(Debug)]
pub struct NumberClaim {
    number: u8,
    _lock: File,
}

impl NumberClaim {
    /// Claims the lowest free number below `end` for `purpose`.
    pub fn below(end: u8, purpose: &str) -> Result<Self> {
        for number in 0..end {
            if let Some(lock) = try_claim(&format!("{purpose}-{number}"))? {
                return Ok(Self { number, _lock: lock });
            }
        }
        Err(anyhow!("all {end} numbers for {purpose} are taken by other test processes; stop some"))
    }

    /// The number.
    pub fn number(&self) -> u8 {
        self.number
    }
}

fn try_claim(name: &str) -> Result<Option<File>> {
    let dir = base_dir()?.join("claims");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let path = dir.join(name);
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    Ok(file.try_lock().is_ok().then_some(file))
}
