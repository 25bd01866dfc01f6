//! Many streams at once.

use futures::AsyncBufReadExt;
use kube::api::LogParams;
use tensile_e2e::{Seen, eventually};

use crate::{
    command::{Running, run},
    world::{SLEEP, SOON, World, world},
};

/// So many execs and so many followed logs.
const EACH: usize = 50;

/// Lines that each of them brings.
const LINES: usize = 2000;

/// Descriptors that may be more afterwards: connections for other things come and go meanwhile.
const OTHER_DESCRIPTORS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_at_once_are_all_right_and_leave_nothing() {
    let Some((world, _turn)) = world().await else { return };
    let teller = format!("while [ ! -e /data/go ]; do sleep 0.1; done; seq 1 {LINES}; echo end; {SLEEP}");
    world.pod("many", &[("main", SLEEP), ("teller", &teller)]).await;
    world.until_no_stream_is_left().await;
    let descriptors = world.node.open_files().unwrap();

    let followers: Vec<_> = (0..EACH).map(|_| tokio::spawn(follow(world))).collect();
    let mut execs: Vec<Running> = (0..EACH)
        .map(|number| {
            let script = format!("echo up; read word; seq 1 {LINES}; echo \"$word\"; exit {}", number % 100 + 1);
            Running::start(&mut world.kubectl(&["exec", "-i", "many", "-c", "main", "--", "sh", "-c", &script]))
        })
        .collect();
    for exec in &mut execs {
        exec.line("up");
    }
    eventually("all are open at once", SOON, || async {
        let open = (world.open_streams("exec").await?, world.open_streams("logs").await?);
        Ok(Seen::when(open == (EACH, EACH), open))
    })
    .await
    .unwrap();

    run(&mut world.kubectl(&["exec", "many", "-c", "main", "--", "touch", "/data/go"]), b"").ok();
    let numbers: Vec<String> = (1..=LINES).map(|number| number.to_string()).collect();
    for (number, exec) in execs.iter_mut().enumerate() {
        exec.write(format!("word-{number}\n").as_bytes());
    }
    for (number, exec) in execs.iter_mut().enumerate() {
        let ended = exec.wait();
        let code = i32::try_from(number % 100 + 1).unwrap();
        assert_eq!(ended.code, Some(code), "exec {number}: {}", ended.err);
        let lines: Vec<&str> = ended.out.lines().collect();
        assert_eq!((lines[0], *lines.last().unwrap()), ("up", format!("word-{number}").as_str()));
        assert!(lines[1..=LINES] == numbers, "exec {number}: {} lines", lines.len());
    }
    for follower in followers {
        let lines = tokio::time::timeout(SOON, follower).await.unwrap().unwrap();
        assert!(lines == numbers, "a log: {} lines", lines.len());
    }
    world.until_no_stream_is_left().await;
    eventually("the descriptors are closed", SOON, || async {
        let now = world.node.open_files()?;
        Ok(Seen::when(now <= descriptors + OTHER_DESCRIPTORS, format!("{now} open, {descriptors} before")))
    })
    .await
    .unwrap();
}

/// A followed log up to its line `end`; then the reader goes away, while the container lives on.
async fn follow(world: &World) -> Vec<String> {
    let options = LogParams { container: Some("teller".into()), follow: true, ..LogParams::default() };
    let mut log = world.pods().log_stream("many", &options).await.unwrap();
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert_ne!(log.read_line(&mut line).await.unwrap(), 0, "the log ended after {} lines", lines.len());
        match line.trim_end() {
            "end" => return lines,
            line => lines.push(line.to_owned()),
        }
    }
}
