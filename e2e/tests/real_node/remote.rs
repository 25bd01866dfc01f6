//! `kubectl exec`, `cp` and `port-forward` through the upper API server.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use serde_json::json;

use crate::{
    command::{Running, run},
    pods::is_ready,
    world::{SLEEP, Space, space},
};

async fn shell(name: &str, script: &str) -> Option<Space> {
    let space = space(name).await?;
    space.pod("shell", script, json!({})).await;
    space.until("shell", "is ready", is_ready).await;
    Some(space)
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_hands_on_output_input_and_the_exit_code_and_has_a_terminal() {
    let Some(space) = shell("exec", SLEEP).await else { return };
    let ended = space.run(&["exec", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(7), "out\n"), "{}", ended.err);
    assert!(ended.err.starts_with("err\n"), "{}", ended.err);
    assert_eq!(space.inside("shell", "hostname").await, "shell\n");

    let _undisturbed = space.undisturbed().await;
    let input = vec![b'x'; 100_000];
    let counted = run(&mut space.kubectl(&["exec", "-i", "shell", "--", "wc", "-c"]), &input).ok();
    assert_eq!(counted.trim(), "100000");

    let inside = "tty; until [ \"$(stty size 2>/dev/null)\" = '33 101' ]; do sleep 0.1; done; \
                  echo has its size; read word; echo \"<$word>\"; exit 5";
    let exec = space.kubectl(&["exec", "-it", "shell", "--", "sh", "-c", inside]);
    let quoted: Vec<String> = std::iter::once(exec.get_program())
        .chain(exec.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''")))
        .collect();
    let mut script = Command::new("script");
    script.args(["-qec", &format!("tty; echo outside; {}", quoted.join(" ")), "/dev/null"]);
    script.envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut terminal = Running::start(&mut script);
    let device = terminal.line("/dev/").trim().to_owned();
    terminal.line("outside");
    terminal.line("/dev/pts/");
    // Not before: containerd loses a size that comes before the process has started, with any client.
    run(Command::new("stty").args(["-F", &device, "rows", "33", "cols", "101"]), b"").ok();
    terminal.line("has its size");
    terminal.write(b"hello\n");
    terminal.line("<hello>");
    assert_eq!(terminal.wait().code, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_both_ways() {
    let Some(space) = shell("copy", SLEEP).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    let bytes: Vec<u8> = (0..500_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(&there, &bytes).unwrap();
    space.run(&["cp", there.to_str().unwrap(), "shell:/tmp/copied"]).await.ok();
    assert_eq!(space.inside("shell", "wc -c </tmp/copied").await.trim(), "500000");
    space.run(&["cp", "shell:/tmp/copied", back.to_str().unwrap()]).await.ok();
    assert!(std::fs::read(back).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_container_is_forwarded() {
    let Some(space) = shell("forward", "nc -ll -p 7000 -e cat").await else { return };
    let _undisturbed = space.undisturbed().await;
    let mut forward = Running::start(&mut space.kubectl(&["port-forward", "pod/shell", ":7000"]));
    // "Forwarding from 127.0.0.1:40001 -> 7000"
    let line = forward.line("127.0.0.1:");
    let port: u16 = line.split([':', ' ']).find_map(|word| word.parse().ok()).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.write_all(b"hello through two clusters").unwrap();
    let mut echoed = [0; 26];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello through two clusters");
    forward.kill();
}
