//! `kubectl exec`, `attach` and `cp`.

use std::{fmt::Write as _, io::Write, process::Command};

use sha2::{Digest, Sha256};

use crate::{
    command::{Running, run, until},
    world::{World, world},
};

/// How kubectl speaks to the upper API server, and how that one speaks to us: the pod's node decides.
/// The first is translated by the API server (WebSocket to SPDY), the second is SPDY and the third WebSocket all the way.
const ROADS: [(&str, &str, &str); 3] =
    [("", "true", "translated"), ("", "false", "SPDY"), ("ws-", "true", "WebSocket")];

fn kubectl(world: &World, websockets: &str, arguments: &[&str]) -> Command {
    let mut command = world.kubectl(arguments);
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
    command
}

#[test]
fn exec_hands_on_output_input_and_the_exit_code() {
    let Some(world) = world() else { return };
    for (prefix, websockets, road) in ROADS {
        let pod = format!("{prefix}shell");
        let ended = run(
            &mut kubectl(
                world,
                websockets,
                &["exec", &pod, "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 7"],
            ),
            b"",
        );
        assert_eq!((ended.code, ended.text().as_str()), (Some(7), "out\n"), "{road}: {}", ended.err);
        assert!(ended.err.starts_with("err\n"), "{road}: {}", ended.err);
        let ended =
            run(&mut kubectl(world, websockets, &["exec", "-i", &pod, "-c", "side", "--", "wc", "-c"]), b"some input");
        assert_eq!(ended.ok().trim(), "10", "{road}");
        // Arguments arrive as they are.
        let odd = "a b&c=d%41+\"'é";
        let ended = run(&mut kubectl(world, websockets, &["exec", &pod, "-c", "main", "--", "printf", "%s", odd]), b"");
        assert_eq!(ended.ok(), odd, "{road}");
    }
}

#[test]
fn output_of_a_command_that_ends_at_once_is_complete() {
    let Some(world) = world() else { return };
    let mut expected = String::new();
    (1..=20_000).for_each(|number| writeln!(expected, "{number}").unwrap());
    for (prefix, websockets, road) in ROADS {
        for round in 0..10 {
            let pod = format!("{prefix}shell");
            let ended =
                run(&mut kubectl(world, websockets, &["exec", &pod, "-c", "main", "--", "seq", "1", "20000"]), b"");
            assert_eq!(ended.code, Some(0), "{road}, round {round}: {}", ended.err);
            assert!(ended.text() == expected, "{road}, round {round}: {} of {} bytes", ended.out.len(), expected.len());
        }
    }
}

const HUNDRED_MEBIBYTES: usize = 100 << 20;

#[test]
fn a_hundred_mebibytes_go_both_ways_unharmed() {
    let Some(world) = world() else { return };
    // Bytes that compress badly and repeat nowhere near.
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(HUNDRED_MEBIBYTES + 8);
    while bytes.len() < HUNDRED_MEBIBYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(HUNDRED_MEBIBYTES);
    let sum = hex::encode(Sha256::digest(&bytes));
    for (prefix, websockets, road) in ROADS {
        let pod = format!("{prefix}shell");
        let started = std::time::Instant::now();
        let exec = |command: &str, input: &[u8]| {
            let arguments = ["exec", "-i", &pod, "-c", "main", "--", "sh", "-c", command];
            run(&mut kubectl(world, websockets, &arguments), input)
        };
        // Not `cat >/data/big`: without any output, exec ends before its input is read, straight to a node as well.
        let below = exec("tee /data/big | sha256sum", &bytes).ok();
        assert_eq!(below.split(' ').next(), Some(sum.as_str()), "{road}: what went down");
        let up = exec("cat /data/big; rm /data/big", b"");
        assert_eq!(up.code, Some(0), "{road}: {}", up.err);
        assert_eq!(hex::encode(Sha256::digest(&up.out)), sum, "{road}: what came up, {} bytes", up.out.len());
        eprintln!("{road}: 100 MiB down and up in {:.1} s", started.elapsed().as_secs_f64());
    }
}

#[test]
fn files_are_copied_both_ways() {
    let Some(world) = world() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    std::fs::create_dir(&there).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(there.join("file"), &bytes).unwrap();
    run(&mut world.kubectl(&["cp", there.to_str().unwrap(), "shell:/data/copied", "-c", "main"]), b"").ok();
    run(&mut world.kubectl(&["cp", "shell:/data/copied", back.to_str().unwrap(), "-c", "main"]), b"").ok();
    assert!(std::fs::read(back.join("file")).unwrap() == bytes);
}

#[test]
fn a_terminal_has_its_size_and_follows_a_change_of_it() {
    let Some(world) = world() else { return };
    for (prefix, websockets, road) in ROADS {
        // The size arrives a moment after the start, here as everywhere.
        let remote = "until [ \"$(stty size 2>/dev/null)\" = '33 101' ]; do sleep 0.1; done; echo first size; \
                      until [ \"$(stty size)\" = '44 111' ]; do sleep 0.1; done; echo second size; \
                      read word; echo \"<$word>\"; exit 5";
        let exec = kubectl(
            world,
            websockets,
            &["exec", "-it", &format!("{prefix}shell"), "-c", "main", "--", "sh", "-c", remote],
        );
        let quoted: Vec<String> = std::iter::once(exec.get_program())
            .chain(exec.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''")))
            .collect();
        let mut script = Command::new("script");
        script.args(["-qec", &format!("tty; stty rows 33 cols 101; {}", quoted.join(" ")), "/dev/null"]);
        for (name, value) in exec.get_envs() {
            script.env(name, value.unwrap());
        }
        let mut terminal = Running::start(&mut script, false);
        let mut keyboard = terminal.stdin();
        let mut screen = terminal.screen();
        let device = screen.line("/dev/pts/");
        screen.line("first size");
        run(Command::new("stty").args(["-F", &device, "rows", "44", "cols", "111"]), b"").ok();
        screen.line("second size");
        keyboard.write_all(b"hello\n").unwrap();
        screen.line("<hello>");
        let seen = screen.rest();
        assert_eq!(terminal.wait().code, Some(5), "{road}: {seen}");
    }
}

#[test]
fn attach_reaches_the_main_process() {
    let Some(world) = world() else { return };
    for (pod, websockets) in [("reader", "false"), ("ws-reader", "true")] {
        let mut attached = Running::start(&mut kubectl(world, websockets, &["attach", "-i", pod]), false);
        let mut keyboard = attached.stdin();
        let mut screen = attached.screen();
        keyboard.write_all(b"hello\n").unwrap();
        screen.line("got hello");
        attached.kill();
    }
}

#[test]
fn many_execs_at_once_all_succeed_and_none_is_left_open() {
    let Some(world) = world() else { return };
    let mut all: Vec<Running> = (0..30)
        .map(|number| {
            let command = format!("cat >/dev/null; echo {number}");
            Running::start(&mut world.kubectl(&["exec", "-i", "shell", "-c", "main", "--", "sh", "-c", &command]), true)
        })
        .collect();
    for (number, exec) in all.iter_mut().enumerate() {
        drop(exec.stdin());
        assert_eq!(exec.wait().ok().trim(), number.to_string());
    }
    // Other tests have a few of their own.
    until("no stream of these is left", || {
        let open = world.metric("tensile_kubelet_streams_open{kind=\"exec\"}");
        (open < 10).then_some(()).ok_or(format!("{open} open"))
    });
}

#[test]
fn a_killed_client_ends_the_input_of_its_command() {
    let Some(world) = world() else { return };
    for (prefix, websockets, road) in ROADS {
        let pod = format!("{prefix}shell");
        let inside = |command: &str| {
            run(&mut kubectl(world, websockets, &["exec", &pod, "-c", "main", "--", "sh", "-c", command]), b"")
        };
        let command = "echo up; cat; touch /data/input-ended";
        let mut exec = Running::start(
            &mut kubectl(world, websockets, &["exec", "-i", &pod, "-c", "main", "--", "sh", "-c", command]),
            false,
        );
        let _keyboard = exec.stdin();
        let mut screen = exec.screen();
        screen.line("up");
        exec.kill();
        until("the command has seen the end of its input", || {
            let ended = inside("test -e /data/input-ended");
            if ended.code == Some(0) { Ok(()) } else { Err(format!("{road}: {ended:?}")) }
        });
        inside("rm /data/input-ended").ok();
    }
}

#[test]
fn what_cannot_be_run_is_explained() {
    let Some(world) = world() else { return };
    for (_, websockets, road) in &ROADS[..2] {
        let ended = run(&mut kubectl(world, websockets, &["exec", "late", "--", "true"]), b"");
        assert_ne!(ended.code, Some(0));
        assert!(ended.err.contains("waiting to start: ConfigMap \"settings\" not found"), "{road}: {}", ended.err);
        let ended = run(&mut kubectl(world, websockets, &["exec", "gone", "--", "true"]), b"");
        assert_ne!(ended.code, Some(0));
        assert!(ended.err.contains("pod \"gone\" does not exist"), "{road}: {}", ended.err);
        let ended =
            run(&mut kubectl(world, websockets, &["exec", "shell", "-c", "main", "--", "no-such-command"]), b"");
        assert_ne!(ended.code, Some(0));
        assert!(ended.err.contains("no-such-command"), "{road}: {}", ended.err);
    }
}
