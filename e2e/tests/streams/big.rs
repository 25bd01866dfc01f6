//! Big streams, compared by checksum.

use std::{
    fs::File,
    io::Write,
    net::{Shutdown, TcpStream},
    process::{Command, Stdio},
    time::Instant,
};

use tensile_e2e::{Seen, eventually};

use crate::{
    command::{Running, run},
    world::{SLEEP, SOON, World, world},
};

/// MiB that go through each stream, unless [`SIZE_VARIABLE`] says otherwise: enough to fill every buffer many times.
const MIB: u32 = 128;

/// Set it to 1024 to measure; then the same goes to the lower cluster without a virtual-node, for comparison.
const SIZE_VARIABLE: &str = "TENSILE_STREAM_MIB";

/// What a virtual-node may grow by while so much goes through it.
const GROWTH_MAX_MIB: f64 = 24.0;

#[tokio::test(flavor = "multi_thread")]
async fn big_streams_arrive_unharmed_through_exec_and_port_forward_and_fill_no_memory() {
    let Some((world, _turn)) = world().await else { return };
    let asked: Option<u32> = std::env::var(SIZE_VARIABLE).ok().map(|mib| mib.parse().unwrap());
    let mib = asked.unwrap_or(MIB);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes");
    let mut random = Command::new("head");
    random.args(["-c", &(u64::from(mib) << 20).to_string(), "/dev/urandom"]).stdout(File::create(&path).unwrap());
    assert!(random.status().unwrap().success());
    let sum = sum_of(Stdio::from(File::open(&path).unwrap()));

    // Its input stays open: at the end of it nc ends its half of the connection, and containerd then cuts the other.
    let sink = "mkfifo /tmp/open; exec 3<>/tmp/open; while :; do nc -l -p 7001 <&3 | sha256sum >>/data/sums; done";
    let source = "while [ ! -e /data/ready ]; do sleep 0.1; done; while :; do nc -l -p 7002 </data/bytes; done";
    world.pod("big", &[("main", SLEEP), ("sink", sink), ("source", source)]).await;
    world.until_no_stream_is_left().await;
    let before = world.node.rss_mib().unwrap();
    let mut roads: Vec<(&str, Kubectl)> = vec![("virtual-node", World::kubectl)];
    if asked.is_some() {
        roads.push(("lower cluster", World::kubectl_below));
    }
    for (round, (road, kubectl)) in roads.into_iter().enumerate() {
        let took = |what: &str, since: Instant| {
            eprintln!("{road}: {mib} MiB by {what}: {:.0} MiB/s", f64::from(mib) / since.elapsed().as_secs_f64());
        };
        // Not `cat >/data/bytes`: without any output exec ends before its input is read, straight to a node as well.
        let store = "tee /data/bytes | sha256sum; touch /data/ready";
        let started = Instant::now();
        let mut exec = kubectl(world, &["exec", "-i", "big", "-c", "main", "--", "sh", "-c", store]);
        let stored = exec.stdin(File::open(&path).unwrap()).output().unwrap();
        let stored_sum = String::from_utf8_lossy(&stored.stdout);
        assert_eq!(stored_sum.split(' ').next(), Some(sum.as_str()), "{road}: {stored:?}");
        took("exec stdin", started);

        let started = Instant::now();
        let mut exec = kubectl(world, &["exec", "big", "-c", "main", "--", "cat", "/data/bytes"]);
        let mut exec = exec.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(sum_of(Stdio::from(exec.stdout.take().unwrap())), sum, "{road}");
        assert!(exec.wait().unwrap().success());
        took("exec stdout", started);

        let mut forward = Running::start(&mut kubectl(world, &["port-forward", "pod/big", ":7001", ":7002"]));
        let [sink, source] = ["-> 7001", "-> 7002"].map(|end| port(&forward.line(end)));
        let started = Instant::now();
        let mut connection = connect(sink);
        std::io::copy(&mut File::open(&path).unwrap(), &mut connection).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let sums =
            || run(&mut world.kubectl_below(&["exec", "big", "-c", "main", "--", "cat", "/data/sums"]), b"").ok();
        let arrived = eventually("all has arrived in the container", SOON, || async {
            let sums = sums();
            Ok(sums.lines().nth(round).map_or_else(|| Seen::NotYet(sums.clone()), |line| Seen::Done(line.to_owned())))
        })
        .await
        .unwrap();
        assert_eq!(arrived.split(' ').next(), Some(sum.as_str()), "{road}");
        took("port-forward, into the pod", started);

        let started = Instant::now();
        let mut connection = connect(source);
        let mut summing = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut into = summing.stdin.take().unwrap();
        std::io::copy(&mut connection, &mut into).unwrap();
        into.flush().unwrap();
        drop(into);
        assert_eq!(first_word(&summing.wait_with_output().unwrap().stdout), sum, "{road}");
        took("port-forward, out of the pod", started);
        forward.kill();
    }
    let after = world.node.rss_mib().unwrap();
    eprintln!("resident: {before:.1} MiB before, {after:.1} MiB after");
    assert!(after - before < GROWTH_MAX_MIB, "{before} MiB before, {after} MiB after");
    world.until_no_stream_is_left().await;
}

/// A connection whose reads and writes do not wait for ever.
fn connect(port: u16) -> TcpStream {
    let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.set_read_timeout(Some(SOON)).unwrap();
    connection.set_write_timeout(Some(SOON)).unwrap();
    connection
}

type Kubectl = fn(&World, &[&str]) -> Command;

/// The checksum of all that comes.
fn sum_of(from: Stdio) -> String {
    first_word(&Command::new("sha256sum").stdin(from).output().unwrap().stdout)
}

fn first_word(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split(' ').next().unwrap().to_owned()
}

/// Of "Forwarding from 127.0.0.1:40001 -> 7000".
fn port(line: &str) -> u16 {
    line.split([':', ' ']).find_map(|word| word.parse().ok()).unwrap()
}
