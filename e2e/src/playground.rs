//! An upper and two lower clusters to play with, and a Deployment that runs across them.
//!
//! ```text
//!  stage     brings up clusters, virtual nodes and the Deployment, and takes them down again
//!  foreign   the same with clusters that the user has: asks first, and removes what it made
//!  state     one playground at a time; what another terminal must know to remove it
//!  snapshot  what there is to see: clusters, virtual nodes, pods
//!  view      (pure) a snapshot as lines of text
//!  screen    the terminal
//!  progress  lines for steps that take long
//! ```

use std::{
    collections::BTreeSet,
    io::IsTerminal,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

mod foreign;
mod progress;
mod screen;
mod snapshot;
mod stage;
mod state;
mod view;

use self::{screen::Screen, snapshot::Snapshot, stage::Stage, state::State};

/// How often the view looks at the clusters: often enough to watch pods come and go.
const LOOK_INTERVAL: Duration = Duration::from_millis(700);

/// What to bring up.
#[derive(Clone, Debug, clap::Args)]
pub struct UpArgs {
    /// Kubeconfig of an administrator of a cluster that you have, to be the upper one; without it, clusters are started
    /// on this machine
    #[arg(long, value_name = "KUBECONFIG", requires = "lower")]
    pub upper: Option<PathBuf>,

    /// Kubeconfig of an administrator of a cluster that you have, to be a lower one; NAME becomes the virtual node's
    /// name; may be repeated
    #[arg(long, value_name = "NAME=KUBECONFIG", value_parser = named_kubeconfig, requires = "upper")]
    pub lower: Vec<(String, PathBuf)>,

    /// Address of this machine at which your upper cluster's API server reaches it, for logs and exec
    #[arg(long, value_name = "IP", requires = "upper")]
    pub node_address: Option<IpAddr>,

    /// Installs accounts and rights in your clusters without asking
    #[arg(long)]
    pub yes: bool,

    /// Image of the pods, with a shell; the default is one that is made here, or `busybox` in your clusters
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,

    /// Replicas of the Deployment
    #[arg(long, default_value_t = 6, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub replicas: u16,

    /// Prints lines instead of a live view, as is done anyway when the output is no terminal
    #[arg(long)]
    pub plain: bool,

    /// Ends, and removes everything, as soon as all replicas are ready
    #[arg(long)]
    pub exit_after_ready: bool,
}

fn named_kubeconfig(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=KUBECONFIG"))?;
    // The name of a Node, and the value of the label tensile.dev/cluster.
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > 63 || !edges || !name.chars().all(fits) {
        return Err(format!(
            "{name:?} cannot name a node: give up to 63 lower-case letters, digits and dashes, with no dash at its ends"
        ));
    }
    Ok((name.to_owned(), path.into()))
}

/// Brings the playground up, shows it until Ctrl-C, and removes it.
pub async fn up(args: &UpArgs) -> Result<()> {
    let names: BTreeSet<&str> = args.lower.iter().map(|(name, _)| name.as_str()).collect();
    if names.len() < args.lower.len() {
        bail!("two of the lower clusters have one name: each needs its own");
    }
    let state = State::claim()?;
    let mut stage = Stage::new(Instant::now());
    let played = tokio::select! {
        played = play(args, &mut stage, &state) => played,
        name = asked_to_stop() => name.map(|name| println!("\n{name}: removing everything")),
    };
    let removed = stage.take_down(state).await;
    played.and(removed)
}

/// Removes a playground that another terminal brought up, or that died without removing everything.
pub async fn down() -> Result<()> {
    match State::take_over().await? {
        None => println!("no playground is there"),
        Some(state) => {
            // The first use of the run's folder removes what dead runs left.
            crate::run::Run::current()?;
            foreign::remove(&state).await?;
            state.remove()?;
            println!("the playground is gone");
        }
    }
    Ok(())
}

async fn play(args: &UpArgs, stage: &mut Stage, state: &State) -> Result<()> {
    let live = !args.plain && std::io::stdout().is_terminal();
    match &args.upper {
        None => Box::pin(stage.bring_up_own(live)).await?,
        Some(upper) => Box::pin(foreign::bring_up(args, upper, stage, state, live)).await?,
    }
    stage.run_workload(args, state, live).await?;
    let hints = stage.hints(state).await?;
    if args.exit_after_ready {
        let snapshot = Snapshot::look(stage).await;
        for line in view::plain(&snapshot).values() {
            println!("  {line}");
        }
        print_all(&hints);
        return Ok(());
    }
    if live { watch_live(stage, &hints).await } else { watch_plain(stage, &hints).await }
}

async fn watch_live(stage: &Stage, hints: &[String]) -> Result<()> {
    let mut screen = Screen::enter()?;
    loop {
        let snapshot = Snapshot::look(stage).await;
        let (width, height) = Screen::size();
        Screen::draw(&view::lines(&snapshot, hints, width, height))?;
        if screen.wait_for_quit(LOOK_INTERVAL).await {
            drop(screen);
            println!("removing everything");
            return Ok(());
        }
    }
}

/// Prints what changed, a line each.
async fn watch_plain(stage: &Stage, hints: &[String]) -> Result<()> {
    print_all(hints);
    println!("\nNow, and then each change (Ctrl-C removes everything):");
    let mut shown = std::collections::BTreeMap::new();
    loop {
        let snapshot = Snapshot::look(stage).await;
        let lines = view::plain(&snapshot);
        let at = stage.begun.elapsed().as_secs_f64();
        for (what, line) in &lines {
            if shown.get(what) != Some(line) {
                println!("{at:7.1} s  {line}");
            }
        }
        for what in shown.keys().filter(|what| !lines.contains_key(*what)) {
            println!("{at:7.1} s  {what}: gone");
        }
        shown = lines;
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn print_all(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}

/// Waits for a request to end, and gives its name.
async fn asked_to_stop() -> Result<&'static str> {
    let listen = |kind| signal(kind).context("listening for signals");
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "asked to end",
        _ = hangup.recv() => "the terminal is gone",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lower_clusters_are_named_like_nodes() {
        assert_eq!(named_kubeconfig("east=/k/e").unwrap(), ("east".to_owned(), "/k/e".into()));
        for wrong in ["/k/e", "=x", "East=x", "-e=x", "e-=x", "a.b=x"] {
            assert!(named_kubeconfig(wrong).is_err(), "{wrong}");
        }
    }
}
