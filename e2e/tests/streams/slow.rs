//! Readers that stop reading.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
};

use tensile_e2e::{Seen, eventually};

use crate::{
    command::run,
    world::{SLEEP, SOON, World, world},
};

/// Readers of each kind that stand still.
const EACH: usize = 10;

/// What so many streams may cost in all: 16 KiB each way, the same again in TLS, and what a log has under way.
const GROWTH_MAX_MIB: f64 = 24.0;

/// Enough that it never fits into the buffers of kernels and API servers on the way.
const NUMBERS: u32 = 12_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stop_cost_no_memory_hold_up_nobody_and_lose_nothing() {
    let Some((world, _turn)) = world().await else { return };
    let talks = format!("yes \"$(seq 1 200 | tr -d '\\n')\" | head -n 60000; {SLEEP}");
    world.pod("slow", &[("main", SLEEP), ("talks", &talks)]).await;
    world.until_no_stream_is_left().await;
    let before = world.node.rss_mib().unwrap();

    let numbers = format!("seq 1 {NUMBERS} & echo $! >/data/writer; wait");
    let mut patient = Stopped::start(world, &["exec", "slow", "-c", "main", "--", "sh", "-c", &numbers]);
    let others: Vec<Stopped> = (0..EACH)
        .flat_map(|_| {
            [
                vec!["exec", "slow", "-c", "main", "--", "seq", "1", "12000000"],
                vec!["logs", "-f", "slow", "-c", "talks"],
            ]
        })
        .map(|arguments| Stopped::start(world, &arguments))
        .collect();
    // What the writer has written so far: its process's own count. Each look is one more exec, which must go on.
    let written = || run(&mut world.kubectl(&["exec", "slow", "-c", "main", "--", "sh", "-c", WRITTEN]), b"").ok();
    let mut last = [String::new(), String::new()];
    eventually("the writer stands still, for nobody reads", SOON, || {
        let now = written();
        let still = last.iter().all(|before| *before == now);
        last = [std::mem::take(&mut last[1]), now];
        let last = last.clone();
        async move { Ok(Seen::when(still, last)) }
    })
    .await
    .unwrap();
    let after = world.node.rss_mib().unwrap();
    eprintln!("resident: {before:.1} MiB before, {after:.1} MiB with {} readers that do not read", 2 * EACH + 1);
    assert!(after - before < GROWTH_MAX_MIB, "{before} MiB before, {after} MiB after");
    drop(others);

    // The first line is read already.
    let mut expected = 2;
    for line in patient.out.by_ref().lines() {
        assert_eq!(line.unwrap(), expected.to_string());
        expected += 1;
    }
    assert_eq!(expected, NUMBERS + 1, "the last line");
    assert!(patient.child.wait().unwrap().success());
    world.until_no_stream_is_left().await;
}

/// How much the process whose number is in `/data/writer` has written.
const WRITTEN: &str = "grep wchar /proc/$(cat /data/writer)/io";

/// kubectl, of whose output one line was read and no more.
struct Stopped {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Stopped {
    fn start(world: &World, arguments: &[&str]) -> Self {
        let mut command: Command = world.kubectl(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (send, first) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            // Nobody listens any more when it took too long.
            let _ = send.send((line, out));
        });
        let first = first.recv_timeout(SOON);
        if first.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (line, out) = first.unwrap_or_else(|_| panic!("{arguments:?} printed nothing for {SOON:?}"));
        assert_ne!(line, "", "{arguments:?}");
        Self { child, out }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
