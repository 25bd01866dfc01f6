//! Whatever way a test process ends, nothing that it started is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tensile_e2e::run::Run;
use tensile_e2e::{Cluster, KwokNodes, RealNodes, SHELL_IMAGE, Seen, eventually};

/// Set for the process that is to die, which is this same test program.
const VICTIM_ENV: &str = "TENSILE_TESTBED_VICTIM";

/// How long the clean-up may take. It takes about a second on an idle machine.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// The victim: starts a cluster, says so, and waits for its end. Does nothing in an ordinary run.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    if std::env::var_os(VICTIM_ENV).is_none() {
        return;
    }
    let real = RealNodes::available().is_ok();
    let cluster =
        Cluster::builder("victim").nodes(KwokNodes::count(1)).real_nodes(usize::from(real)).start().await.unwrap();
    if real {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {{nodeName: real-0, containers: \
             [{{name: a, image: '{SHELL_IMAGE}', command: [sleep, '3600']}}]}}}}"
        );
        cluster.apply_yaml(&pod).await.unwrap();
        let ready = || async {
            let output = cluster.kubectl().args(["get", "pod", "p", "-o", "jsonpath={.status.phase}"]).output()?;
            Ok(Seen::when(output.stdout == b"Running", output))
        };
        eventually("the victim's pod runs", Duration::from_mins(1), ready).await.unwrap();
    }
    println!("RUN {}", Run::current().unwrap().dir().display());
    std::future::pending::<()>().await;
}

/// Everything that would be left, as far as records and /proc tell before the death.
#[derive(Debug)]
struct Traces {
    run_dir: PathBuf,
    pids: Vec<u32>,
}

impl Traces {
    fn of(run_dir: &Path) -> Self {
        // By the records of our code, and for containers by the node's cgroup.
        let mut pids = Vec::new();
        let mut folders = vec![run_dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                if folder.ends_with("processes") {
                    pids.push(name.parse().unwrap());
                } else if folder.ends_with("cgroups") {
                    let procs = Command::new("find")
                        .args([&format!("/sys/fs/cgroup/pids/{name}"), &format!("/sys/fs/cgroup/{name}")])
                        .args(["-name", "cgroup.procs", "-exec", "cat", "{}", "+"])
                        .output()
                        .unwrap();
                    pids.extend(String::from_utf8_lossy(&procs.stdout).lines().map(|pid| pid.parse::<u32>().unwrap()));
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !path.ends_with("containerd") {
                    folders.push(path);
                }
            }
        }
        assert!(pids.len() >= 5, "too few processes recorded: {pids:?}");
        Self { run_dir: run_dir.to_owned(), pids }
    }

    /// What is still there.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .pids
            .iter()
            .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")))
            .map(|pid| format!("process {pid}: {:?}", std::fs::read_to_string(format!("/proc/{pid}/cmdline"))))
            .collect();
        let run_name = self.run_dir.file_name().unwrap().to_string_lossy().into_owned();
        for folder in ["/run/netns", "/sys/class/net", "/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu"] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains(&run_name) {
                    left.push(entry.path().display().to_string());
                }
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&run_name)).map(str::to_owned));
        if self.run_dir.exists() {
            left.push(self.run_dir.display().to_string());
        }
        left
    }
}

/// Ends the victim also when the test fails before it does so itself.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_victim() -> (Victim, Traces) {
    let mut victim = Victim(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM_ENV, "1")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let run_dir = BufReader::new(victim.0.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("RUN ").map(|(_, dir)| PathBuf::from(dir)))
        .expect("the victim ended before its cluster was up");
    let traces = Traces::of(&run_dir);
    (victim, traces)
}

async fn nothing_is_left_after(signal: Signal) {
    let (mut victim, traces) = start_victim();
    kill_process(Pid::from_child(&victim.0), signal).unwrap();
    victim.0.wait().unwrap();
    let died = Instant::now();
    eventually("nothing is left of the dead test process", GONE_WITHIN, || async {
        let left = traces.left();
        Ok(Seen::when(left.is_empty(), left))
    })
    .await
    .unwrap();
    eprintln!(
        "{} processes and all else were gone {:.1} s after {signal:?}",
        traces.pids.len(),
        died.elapsed().as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_of_the_test_process_leaves_nothing() {
    nothing_is_left_after(Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_nothing() {
    nothing_is_left_after(Signal::INT).await;
}
