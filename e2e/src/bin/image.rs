//! Packs a service's program into a container image, as an archive. `scripts/image` builds the program and calls this.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use tensile_e2e::image::Program;

/// Packs a program into a container image: the program, the certificate authorities of this machine, and nothing else.
#[derive(Parser)]
#[command(name = "image", max_term_width = 100)]
struct Args {
    /// The program; best one that is linked statically
    #[arg(long, value_name = "FILE")]
    program: PathBuf,

    /// Full name of the image, such as registry.example.com/virtual-node:0.1.0
    #[arg(long, value_name = "NAME")]
    name: String,

    /// Where the archive is written
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// How large the archive may be, in MB; a larger one is an error
    #[arg(long, value_name = "MB", default_value_t = 30)]
    size_max_mb: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let name = args.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let program = Program { file: args.program, image: args.name, name, version: env!("CARGO_PKG_VERSION").to_owned() };
    let digest = program.pack(&args.output)?;
    let bytes = std::fs::metadata(&args.output)?.len();
    println!("{}: {} {digest}, {} kB", args.output.display(), program.image, bytes / 1000);
    ensure!(bytes <= args.size_max_mb * 1_000_000, "the image is larger than {} MB", args.size_max_mb);
    Ok(())
}
