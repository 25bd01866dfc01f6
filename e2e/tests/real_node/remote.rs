//! `kubectl exec`, `cp` and `port-forward` through the upper API server, with a new and an old kubectl.

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
    world::{KUBECTLS, SLEEP, Space, space},
};

async fn shell(name: &str, script: &str) -> Option<Space> {
    let space = space(name).await?;
    space.pod("shell", script, json!({})).await;
    space.until("shell", "is ready", is_ready).await;
    Some(space)
}

/// The same command in a terminal. Its first line of output is the terminal's device, its second `outside`.
pub fn in_terminal(command: &Command) -> Command {
    let quoted: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''")))
        .collect();
    let mut script = Command::new("script");
    script.args(["-qec", &format!("tty; echo outside; {}", quoted.join(" ")), "/dev/null"]);
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_hands_on_output_input_and_the_exit_code_and_has_a_terminal() {
    let Some(space) = shell("exec", SLEEP).await else { return };
    assert_eq!(space.inside("shell", "hostname").await, "shell\n");
    let _undisturbed = space.undisturbed().await;
    for version in KUBECTLS {
        let exec =
            |flags: &str, script: &str| space.kubectl_of(version, &["exec", flags, "shell", "--", "sh", "-c", script]);
        let ended = run(&mut exec("--quiet", "echo out; echo err >&2; exit 7"), b"");
        assert_eq!((ended.code, ended.out.as_str()), (Some(7), "out\n"), "{}", ended.err);
        assert!(ended.err.starts_with("err\n"), "{}", ended.err);
        let input = vec![b'x'; 100_000];
        assert_eq!(run(&mut exec("-i", "wc -c"), &input).ok().trim(), "100000");

        let inside = "tty; until [ \"$(stty size 2>/dev/null)\" = '33 101' ]; do sleep 0.1; done; echo has its size; \
                      until [ \"$(stty size)\" = '44 111' ]; do sleep 0.1; done; echo follows; \
                      read word; echo \"<$word>\"; exit 5";
        let mut terminal = Running::start(&mut in_terminal(&exec("-it", inside)));
        let device = terminal.line("/dev/").trim().to_owned();
        let resize = |rows, columns| {
            run(Command::new("stty").args(["-F", &device, "rows", rows, "cols", columns]), b"").ok();
        };
        terminal.line("outside");
        terminal.line("/dev/pts/");
        // Not before: containerd loses a size that comes before the process has started, with any client.
        resize("33", "101");
        terminal.line("has its size");
        resize("44", "111");
        terminal.line("follows");
        terminal.write(b"hello\n");
        terminal.line("<hello>");
        assert_eq!(terminal.wait().code, Some(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_both_ways() {
    let Some(space) = shell("copy", SLEEP).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    std::fs::create_dir(&there).unwrap();
    let bytes: Vec<u8> = (0..500_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(there.join("file"), &bytes).unwrap();
    std::os::unix::fs::symlink("file", there.join("link")).unwrap();
    let _undisturbed = space.undisturbed().await;
    for (number, version) in KUBECTLS.into_iter().enumerate() {
        let copied = format!("shell:/tmp/copied-{number}");
        let back = back.join(number.to_string());
        run(&mut space.kubectl_of(version, &["cp", there.to_str().unwrap(), &copied]), b"").ok();
        // kubectl leaves symbolic links out on the way back, from any node.
        let target = format!("readlink /tmp/copied-{number}/link");
        let target = space.kubectl_of(version, &["exec", "shell", "--", "sh", "-c", &target]);
        assert_eq!(run(&mut { target }, b"").ok(), "file\n");
        run(&mut space.kubectl_of(version, &["cp", &copied, back.to_str().unwrap()]), b"").ok();
        assert!(std::fs::read(back.join("file")).unwrap() == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_container_is_forwarded() {
    let Some(space) = shell("forward", "nc -ll -p 7000 -e cat").await else { return };
    let _undisturbed = space.undisturbed().await;
    for version in KUBECTLS {
        let mut forward =
            Running::start(&mut space.kubectl_of(version, &["port-forward", "pod/shell", ":7000", ":7999"]));
        // "Forwarding from 127.0.0.1:40001 -> 7000"
        let [port, closed] = ["-> 7000", "-> 7999"].map(|end| {
            let line = forward.line(end);
            line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok()).unwrap()
        });
        for round in ["hello through two clusters", "hello a second time, please"] {
            assert_eq!(echoed(port, round), round);
        }
        // Nobody listens there: told, and the rest goes on.
        if version == KUBECTLS[0] {
            assert_eq!(echoed(closed, "hello?"), "");
        }
        forward.kill();
    }
}

/// What comes back through a local port; less when the other end closes.
fn echoed(port: u16, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut echoed = vec![0; text.len()];
    let mut count = 0;
    while count < echoed.len() {
        match stream.read(&mut echoed[count..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => count += more,
        }
    }
    String::from_utf8_lossy(&echoed[..count]).into_owned()
}
