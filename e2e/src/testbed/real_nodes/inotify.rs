//! The kernel's limit that clusters meet first: inotify instances per user.
//!
//! Debian allows 128. An API server holds 6, a controller manager 5, a node's programs 8 (counted in
//! /proc/PID/fd), so some ten clusters at once use them up. Control planes run on without, but a
//! kubelet ends with "inotify_init: too many open files".

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::inotify::{CreateFlags, init};

use crate::eventually::{Seen, eventually};

/// What a node's programs need, and a few for others who start at the same moment.
const NEEDED: usize = 12;

/// Other tests end and give theirs back meanwhile.
const DEADLINE: Duration = Duration::from_mins(3);

/// Waits until a node's programs will get their instances.
pub(super) async fn wait_for_room() -> Result<()> {
    eventually("enough inotify instances are free", DEADLINE, || async {
        let probes: Vec<_> = (0..NEEDED).map_while(|_| init(CreateFlags::CLOEXEC).ok()).collect();
        Ok(Seen::when(probes.len() == NEEDED, format!("{} free, {NEEDED} needed", probes.len())))
    })
    .await
    .context(
        "a kubelet would not start: run fewer clusters at once, or raise the limit with \
         `sysctl -w fs.inotify.max_user_instances=1024`",
    )
}
